"""Layer, RMS, group and instance norm of device arrays, against the same functions on the CPU in float64."""

import inspect
import itertools
import typing

import numpy as np
import pytest
from devices import IS_SIMULATED, MANY, assert_of_kind, assert_rounded, device, needs_cuda, on_host, shown_launches
from ml_dtypes import bfloat16

import bncpu
from bncpu.gpu import _plan

# Name of the norm, shape of x, and shape of parameters, or the number of groups.
CASES = {
    "layer": ("layer", (5, 8), (8,)),
    "layer of odd size": ("layer", (2, 3, 7), (7,)),
    "layer over two axes": ("layer", (2, 3, 4, 6), (4, 6)),
    "layer in a block": ("layer", (2, 600), (600,)),
    "layer in several slices": ("layer", (1, 2400 * MANY), (2400 * MANY,)),
    "layer of many samples": ("layer", (300, 2), (2,)),
    "layer of single values": ("layer", (3, 1), (1,)),
    "one sample": ("layer", (12,), (12,)),
    "rms": ("rms", (5, 8), (8,)),
    "rms of odd size": ("rms", (4, 5), (5,)),
    "rms in several slices": ("rms", (1, 2400 * MANY), (2400 * MANY,)),
    "group": ("group", (2, 6, 4, 4), 3),
    "group of odd size": ("group", (3, 6, 3), 2),
    "group of all channels": ("group", (3, 4, 5), 1),
    "group in several slices": ("group", (1, 4, 700 * MANY), 2),
    "group without pixels": ("group", (5, 6), 2),
    "group of odd size without pixels": ("group", (4, 12), 4),
    "group of whole vectors without pixels": ("group", (4, 16), 2),
    "group of single values": ("group", (3, 4), 4),
    "instance": ("group", (2, 6, 4, 4), 6),
    "instance in several slices": ("group", (1, 2, 2500 * MANY), 2),
    "instance of many samples": ("group", (70, 2, 3), 2),
}


class Case:
    """A norm, data, and parameters."""

    def __init__(self, name, dtype, *, parameters=np.float32, fused=False):
        rng = np.random.default_rng(3)
        self.norm, self.shape, self.of = CASES[name]
        self.per = self.of if isinstance(self.of, tuple) else self.shape[1:2]
        far = 10.0 * np.arange(self.shape[0]).reshape(-1, *[1] * (len(self.shape) - 1)) % 70
        self.x = (2 * rng.standard_normal(self.shape) + far).astype(dtype)
        self.dy, z = rng.standard_normal((2, *self.shape)).astype(dtype)
        self.gamma, beta = rng.standard_normal((2, *self.per)).astype(parameters) if parameters else (None, None)
        self.beta = {} if self.norm == "rms" else {"beta": beta}
        self.more = {"activation": "relu", "residual": z} if fused else {}

    def passes(self, make):
        """What both passes give for arrays that `make` makes."""
        forward, backward = (getattr(bncpu, f"{self.norm}_norm_{way}") for way in ("forward", "backward"))
        x, dy, gamma = make(self.x), make(self.dy), make(self.gamma)
        more = {name: make(a) if name in ("residual", "beta") else a for name, a in (self.beta | self.more).items()}
        y, saved = forward(x, self.of, gamma, **more)
        return y, saved, backward(dy, x, saved, gamma, **more)

    def assert_as_on_cpu(self, ulps=1.0):
        """Data are those of the CPU in float64, rounded once; statistics and gradients of parameters are those."""
        y, saved, found = self.passes(device)
        expected, of_cpu, wanted = self.passes(lambda a: a if a is None else a.astype(float))
        n = 2 if "beta" in self.beta else 1
        assert len(found) == len(wanted) == 1 + n + ("residual" in self.more)
        data = zip((y, found[0], *found[1 + n :]), (expected, wanted[0], *wanted[1 + n :]), strict=True)
        for got, exact in data:
            assert on_host(got).dtype == self.x.dtype
            assert_rounded(on_host(got), exact, ulps)
        for got, exact in zip(found[1 : 1 + n], wanted[1 : 1 + n], strict=True):
            assert (on_host(got).dtype, got.shape) == (np.float64, self.per)
            np.testing.assert_allclose(on_host(got), exact, rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(on_host(saved.invstd), of_cpu.invstd, rtol=1e-13)
        assert (saved.mean is None) is (of_cpu.mean is None)
        if saved.mean is not None:
            np.testing.assert_allclose(on_host(saved.mean), of_cpu.mean, rtol=1e-14, atol=1e-14)
        assert (saved.count, saved.kind, saved.call) == (of_cpu.count, of_cpu.kind, of_cpu.call)


# Every case in one type, and every type in some cases.
EVERY = [(name, np.float32) for name in CASES]
EVERY += [(name, dtype) for name in ("layer", "rms", "group", "instance") for dtype in (np.float16, np.float64)]


@needs_cuda
@pytest.mark.parametrize(("name", "dtype"), EVERY)
def test_both_passes_equal_those_of_the_cpu(name, dtype):
    Case(name, dtype).assert_as_on_cpu()


@needs_cuda
@pytest.mark.parametrize("name", ["layer", "layer over two axes", "rms", "group", "group without pixels", "instance"])
def test_activation_and_residual_are_fused(name):
    Case(name, np.float32, fused=True).assert_as_on_cpu()


@needs_cuda
@pytest.mark.parametrize("name", ["layer", "rms", "group", "group without pixels", "instance"])
def test_parameters_may_be_left_out(name):
    Case(name, np.float32, parameters=None).assert_as_on_cpu()


@needs_cuda
@pytest.mark.parametrize("parameters", [np.float16, np.float64])
@pytest.mark.parametrize("name", ["layer", "group", "group of whole vectors without pixels"])
def test_parameters_may_be_of_another_type(name, parameters):
    Case(name, np.float32, parameters=parameters).assert_as_on_cpu()


@needs_cuda
@pytest.mark.parametrize("name", ["layer", "rms", "group", "group of whole vectors without pixels", "instance"])
def test_arrays_may_lie_anywhere(name, monkeypatch):
    if IS_SIMULATED:
        from bncpu.gpu import _arrays

        monkeypatch.setattr(_arrays, "aligned", lambda addresses: False)
    Case(name, np.float32, fused=True).assert_as_on_cpu()


@needs_cuda
def test_statistics_may_be_made_by_hand():
    c = Case("layer", np.float64)
    _, saved, (dx, *_) = c.passes(device)
    by_hand = bncpu.SavedStatistics(mean=saved.mean, invstd=saved.invstd)
    got, *_ = bncpu.layer_norm_backward(device(c.dy), device(c.x), by_hand, device(c.gamma))
    np.testing.assert_allclose(on_host(got), on_host(dx), rtol=0, atol=1e-12)


@needs_cuda
@pytest.mark.parametrize("name", ["layer in several slices", "group in several slices", "instance in several slices"])
def test_a_hundred_slices_and_few_threads(monkeypatch, name):
    if IS_SIMULATED:
        from bncpu.gpu import _call

        monkeypatch.setattr(_call, "_device", lambda device: (132, 2))
    Case(name, np.float32, fused=True).assert_as_on_cpu()


@needs_cuda
def test_bfloat16_is_rounded_by_way_of_float32():
    c = Case("layer", bfloat16)
    y, _, (dx, *_) = c.passes(device)
    expected, _, (wanted, *_) = c.passes(lambda a: a.astype(float))
    for got, exact in ((y, expected), (dx, wanted)):
        np.testing.assert_array_equal(on_host(got), exact.astype(np.float32).astype(bfloat16))


@needs_cuda
@pytest.mark.parametrize("name", ["layer", "rms", "group", "group without pixels", "instance"])
def test_out_may_be_what_is_read_last(name):
    c = Case(name, np.float64, fused=True)
    forward, backward = (getattr(bncpu, f"{c.norm}_norm_{way}") for way in ("forward", "backward"))
    y, saved, (dx, *others) = c.passes(device)
    parameters = {name: device(a) for name, a in c.beta.items()}
    for into in ("dy", "x", "residual"):
        arrays = {"dy": device(c.dy), "x": device(c.x), "residual": device(c.more["residual"])}
        more = {"activation": "relu", "residual": arrays["residual"], "out": arrays[into], **parameters}
        got = backward(arrays["dy"], arrays["x"], saved, device(c.gamma), **more)
        assert got[0] is arrays[into]
        for a, b in zip(got, (dx, *others), strict=True):
            np.testing.assert_array_equal(on_host(a), on_host(b))
    x = device(c.x)
    more = {"activation": "relu", "residual": device(c.more["residual"]), "out": x, **parameters}
    assert forward(x, c.of, device(c.gamma), **more)[0] is x
    np.testing.assert_array_equal(on_host(x), on_host(y))


@needs_cuda
def test_names_without_a_backward_pass_and_instance_norm_take_device_arrays():
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    gamma = np.array([1.0, 2.0, 3.0, 4.0])
    for ours, theirs in (
        (bncpu.layer_norm(device(x), 3), bncpu.layer_norm(x, 3)),
        (bncpu.layer_norm(device(x), 3, channel_axis=-1), bncpu.layer_norm(x, 3)),
        (bncpu.rms_norm(device(x), (4, 3)), bncpu.rms_norm(x, (4, 3))),
        (bncpu.group_norm(device(x), 2, device(gamma)), bncpu.group_norm(x, 2, gamma)),
        (bncpu.instance_norm(device(x), device(gamma)), bncpu.instance_norm(x, gamma)),
    ):
        np.testing.assert_allclose(on_host(ours), theirs, rtol=1e-12, atol=1e-13)
    _, saved = bncpu.instance_norm_forward(device(x))
    _, of_cpu = bncpu.instance_norm_forward(x)
    dx, *_ = bncpu.instance_norm_backward(device(x), device(x), saved)
    np.testing.assert_allclose(on_host(dx), bncpu.instance_norm_backward(x, x, of_cpu)[0], rtol=0, atol=1e-12)


@needs_cuda
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # of the simulator
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_value_stays_with_what_it_is_normalized_with(bad):
    x = np.random.default_rng(2).standard_normal((4, 6, 5))
    x[1, 2, 3] = bad
    spoiled = {
        "layer": (np.arange(4) == 1)[:, None, None] & (np.arange(6) == 2)[:, None],
        "group": (np.arange(4) == 1)[:, None, None] & (np.arange(6) // 2 == 1)[:, None],
    }
    for norm, of in (("layer", 5), ("group", 3)):
        y = on_host(getattr(bncpu, f"{norm}_norm")(device(x), of))
        np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(spoiled[norm], x.shape))


REFUSED = [
    (lambda x: bncpu.layer_norm(x, 3), ValueError, r"^normalized_shape must be that of the last axes of x of shape \("),
    (lambda x: bncpu.layer_norm(x, 6, channel_axis=1), ValueError, "^channel_axis must be the last axis of device"),
    (lambda x: bncpu.layer_norm(x, 5, device(np.ones(4))), ValueError, r"^gamma must have shape \(5,\); got \(4,\)$"),
    (lambda x: bncpu.layer_norm(x, 5, np.ones(5)), TypeError, "^gamma must be a device array"),
    (lambda x: bncpu.layer_norm(x, 5, eps=-1), ValueError, "^eps == -1"),
    (lambda x: bncpu.layer_norm(x, 5, activation="gelu"), ValueError, "^activation must"),
    (lambda x: bncpu.layer_norm(x, 5, where=np.ones((4, 6, 5), bool)), TypeError, "^where must be None for device"),
    (lambda x: bncpu.group_norm(x, 4), ValueError, "^n_groups must divide the number of channels, 6; got 4"),
    (lambda x: bncpu.group_norm(x, 3, channel_axis=-1), ValueError, "^(n_groups|channel_axis) must"),
    (lambda x: bncpu.group_norm(x, 5, channel_axis=2), ValueError, "^channel_axis must be 1 for device arrays"),
    (lambda x: bncpu.batch_norm_moments(x), TypeError, "^x must be a NumPy array"),
    (lambda x: bncpu.group_norm(x, 3, where=True), TypeError, "^where must be None for device"),
    (lambda x: bncpu.group_norm(x[:, :, ::2], 3), ValueError, "^x must be C-contiguous"),
    (
        lambda x: bncpu.instance_norm(x, running_mean=device(np.ones(6)), running_var=device(np.ones(6))),
        TypeError,
        "^running_mean must be None for device arrays",
    ),
    (lambda x: bncpu.instance_norm(device(np.ones((2, 3)))), ValueError, "^instance_norm needs"),
]


@needs_cuda
@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_a_refused_call_is_one_line_that_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call(device(np.ones((4, 6, 5))))


@needs_cuda
@pytest.mark.parametrize("name", ["layer", "rms", "group"])
def test_a_backward_pass_of_another_forward_pass_is_refused(name):
    c = Case(name, np.float64)
    backward = getattr(bncpu, f"{c.norm}_norm_backward")
    _, saved, _ = c.passes(device)
    x, dy, gamma = device(c.x), device(c.dy), device(c.gamma)
    with pytest.raises(ValueError, match=r"^gamma must be given, as in the forward pass"):
        backward(dy, x, saved)
    with pytest.raises(ValueError, match=r"^activation must be that of the forward pass"):
        backward(dy, x, saved, gamma, activation="relu")
    with pytest.raises(TypeError, match=r"^dy must be a device array, got None"):
        backward(None, x, saved, gamma)
    with pytest.raises(TypeError, match=r"^saved must be the SavedStatistics"):
        backward(dy, x, None, gamma)
    with pytest.raises((TypeError, ValueError), match=r"^saved"):
        backward(dy, x, saved._replace(mean=None if saved.mean is not None else saved.invstd), gamma)
    with pytest.raises((TypeError, ValueError), match=r"^saved"):
        backward(device(c.dy[:1]), device(c.x[:1]), saved, gamma)


@needs_cuda
def test_kernels_get_the_groups_and_numbers_that_they_are_compiled_for(monkeypatch):
    launches = shown_launches(monkeypatch)
    for name in ("layer in several slices", "rms", "group", "instance"):
        Case(name, np.float32).passes(device)
    assert {"moments", "apply", "forward", "backward_sums", "backward_apply", "backward", "fold"} == {
        kernel.__name__ for kernel, _ in launches
    }
    for kernel, arguments in launches:
        annotations = typing.get_type_hints(inspect.unwrap(kernel)).values()
        for value, annotation in zip(arguments, annotations, strict=True):
            assert_of_kind(value, annotation)


@pytest.mark.parametrize(("width", "itemsize"), itertools.product([1, 7, 64, 768, 2048, 2052, 5000], [2, 4, 8]))
def test_a_short_row_has_a_warp(width, itemsize):
    p = _plan.plan((1, 1_000_000, width), 1, itemsize, rows=False)
    assert p.slices == 1
    assert p.members == (_plan.THREADS if p.inner > 512 else min(32, 1 << (p.inner - 1).bit_length()))
    assert p.columns * p.members == _plan.THREADS
    for few in (1, 8, 64, 132, 1000):
        p = _plan.plan((1, few, width), 1, itemsize, rows=False)
        assert p.members == min(_plan.THREADS, 1 << (p.inner - 1).bit_length())
    for rows in (1056, 1500, 5000):
        assert _plan.plan((1, rows, width), 1, itemsize, rows=False).slices == 1


@needs_cuda
def test_what_is_written_shares_no_memory_with_parameters():
    v, gamma = device(np.arange(12.0)), device(np.ones(12))
    with pytest.raises(ValueError, match=r"^out and gamma must not share memory$"):
        bncpu.layer_norm(v, 12, gamma, out=gamma)
