"""Beside other libraries, each in turn with the limit of the operation; one that is not installed shows n/a.

The calls are those of ``bncpu bench`` (`bncpu/_contenders.py`). A peer is n/a, too, where it cannot do the operation.
"""

from sklearn.preprocessing import StandardScaler

from .common import DTYPES, SMALLEST, bench, bncpu, chosen, measured, ramp, scratch

if bench is None:
    CASES, PEERS = {}, []
else:
    from bncpu import _contenders

    CASES = {case.name: case for case in (bench.CASES[::4] if SMALLEST else bench.CASES)}
    PEERS = ["bncpu", *_contenders.PEERS]


class Operations:
    """A data set or a layer from memory, in multiples of the limit; one small request, in microseconds."""

    params = (PEERS, list(CASES))
    param_names = ("peer", "case")
    unit = "times the limit, or us"
    timeout = 300

    def setup(self, peer, case):
        if peer == "bncpu":
            return
        try:
            call = _contenders.PEERS[peer](_contenders.Data(CASES[case].smallest()))
        except ImportError as error:
            raise NotImplementedError(f"{peer} is not installed") from error
        if call is None:
            raise NotImplementedError(f"{peer} cannot do it")

    def track_cost(self, peer, case):
        row = measured(CASES[case], [] if peer == "bncpu" else [peer])
        return row.figures[peer].median


class Memory:
    """What learning from 128 MB (256 as float64) needs beside them, in units of the data: ours next to nothing."""

    params = (["bncpu", "StandardScaler"], ["fit", "partial_fit"], chosen(DTYPES))
    param_names = ("estimator", "method", "dtype")
    unit = "times the data"

    def setup(self, estimator, method, dtype):
        self.X = ramp(dtype)
        scaler = StandardScaler() if estimator == "StandardScaler" else bncpu.BatchNormTransformer(n_threads=1)
        self.learn = getattr(scaler.fit(self.X[:10]), method)

    def peakmem_learn(self, *_):
        self.learn(self.X)

    def track_scratch(self, *_):
        return scratch(self.learn, self.X)
