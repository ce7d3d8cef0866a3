"""The loops over data, one by one, as each instruction set of this machine runs them on one thread."""

from .common import DTYPES, bncpu, channel_axis, chosen, data

if bncpu is None:
    VARIANTS = ()
else:
    from bncpu import _kernels

    VARIANTS = _kernels.isa_variants()


class Loops:
    """One pass over an array larger than cache, in either memory form."""

    params = (list(VARIANTS), ["rows", "NCHW"], chosen(DTYPES))
    param_names = ("instruction set", "layout", "dtype")

    def setup(self, isa, layout, dtype):
        self.x, self.dy, self.out = (data(layout, dtype) for _ in range(3))
        self.options = {"channel_axis": channel_axis(layout), "n_threads": 1}
        _, self.saved = bncpu.batch_norm_forward(self.x, **self.options)
        self.frozen = bncpu.SavedStatistics(*self.saved)
        self.before = _kernels.isa()
        _kernels.use_isa(isa)

    def teardown(self, *_):
        _kernels.use_isa(self.before)

    def time_moments(self, *_):
        bncpu.batch_norm_moments(self.x, **self.options)

    def time_apply(self, *_):
        bncpu.batch_norm(self.x, self.saved.mean, self.saved.invstd, out=self.out, **self.options)

    def time_backward_sums(self, *_):
        bncpu.batch_norm_backward_sums(self.dy, self.x, self.saved, **self.options)

    def time_backward(self, *_):
        bncpu.batch_norm_backward(self.dy, self.x, self.frozen, out=self.out, **self.options)
