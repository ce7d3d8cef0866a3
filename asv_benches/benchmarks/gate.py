"""Our code alone. The gate is of these figures, and of them the multiples: one that grows by 15 % fails a change.

    asv continuous --factor 1.15 main HEAD --bench 'gate.*track_multiple'

Two runs on one machine differ by 10 % and more in seconds; the multiple of a limit that took turns with ours does not.
"""

from .common import DTYPES, Case, bncpu, chosen, data, measured, ramp, scratch

if Case is None:
    LARGE = CALLS = {}
else:
    LARGE = {
        case.label: case
        for case in (
            Case("transform", (1_000_000, 32)),
            Case("transform", (1_000_000, 32), fresh=True),
            Case("fit", (1_000_000, 32)),
            Case("partial_fit", (1_000_000, 32)),
            Case("batch_norm", (32, 64, 56, 56), "NCHW"),
            Case("batch_norm_forward", (1_000_000, 32)),
            Case("batch_norm_forward", (32, 64, 56, 56), "NCHW"),
            Case("batch_norm_forward", (64, 256, 14, 14), "NCHW"),
            Case("batch_norm_forward", (32, 56, 56, 64), "NHWC"),
            Case("batch_norm_backward", (1_000_000, 32)),
            Case("batch_norm_backward", (32, 64, 56, 56), "NCHW"),
        )
    }
    CALLS = {
        case.label: case
        for case in (
            Case("transform", (1, 10)),
            Case("transform", (32, 10)),
            Case("partial_fit", (1, 10)),
            Case("partial_fit", (32, 10)),
            Case("batch_norm", (32, 10)),
            Case("batch_norm_forward", (32, 10)),
            Case("batch_norm_backward", (32, 10)),
        )
    }


class Large:
    """Arrays from memory: what an operation costs, in what its passes over memory cost at least."""

    params = (list(LARGE), chosen(DTYPES))
    param_names = ("case", "dtype")
    unit = "times the limit"
    timeout = 120

    def setup(self, case, dtype):
        self.case = LARGE[case]._replace(dtype=dtype)

    def track_multiple(self, *_):
        return measured(self.case).multiple


class Calls:
    """One request of a service, one step of a small network: what a call costs, in calls of its yardsticks."""

    params = (list(CALLS),)
    param_names = ("case",)
    unit = "times the limit"

    def setup(self, case):
        self.case = CALLS[case]

    def track_multiple(self, *_):
        return measured(self.case).multiple


class Call:
    """The same requests in seconds, on the estimator: for reading, as seconds depend on the day."""

    params = ([(1, 10), (32, 10)],)
    param_names = ("shape",)

    def setup(self, shape):
        self.X = data(shape, "float64")
        self.scaler = bncpu.BatchNormTransformer(n_threads=1).fit(data((32, 10), "float64"))

    def time_transform(self, *_):
        self.scaler.transform(self.X)

    def time_partial_fit(self, *_):
        self.scaler.partial_fit(self.X)


class Memory:
    """A data set of 128 MB as float32: learning from it needs memory for its features, not for its rows.

    The peak of a process holds the interpreter and the data; "nothing" shows those alone.
    """

    params = (["nothing", "fit", "partial_fit"], chosen(DTYPES))
    param_names = ("method", "dtype")

    def setup(self, method, dtype):
        self.X = ramp(dtype)
        scaler = bncpu.BatchNormTransformer(n_threads=1).fit(self.X[:10])
        self.call = (lambda X: None) if method == "nothing" else getattr(scaler, method)

    def peakmem_learn(self, *_):
        self.call(self.X)

    def track_scratch(self, *_):
        return scratch(self.call, self.X)

    track_scratch.unit = "times the data"
