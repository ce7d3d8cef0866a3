"""Layer, instance, group and RMS normalization against the reference: values, bits, masks, memory and refusals."""

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from arrays import DTYPES, LAYOUTS, normal, same_bits, slow

import bncpu
from bncpu import SavedStatistics, _reference


class Case(NamedTuple):
    """One geometry of one norm; `argument` is normalized_shape or n_groups."""

    kind: str
    shape: tuple[int, ...]
    argument: Any = None
    channel_axis: int | None = None

    @property
    def arguments(self):
        return () if self.argument is None else (self.argument,)

    @property
    def options(self):
        return {} if self.channel_axis is None else {"channel_axis": self.channel_axis}

    @property
    def channel(self):
        return 1 if self.channel_axis is None else self.channel_axis % len(self.shape)

    @property
    def per(self):
        """Shape of gamma."""
        if self.kind in ("layer", "rms"):
            return tuple(np.atleast_1d(self.argument))
        return (self.shape[self.channel],)

    @property
    def saved_shape(self):
        if self.kind in ("instance", "group"):
            n = next(length for axis, length in enumerate(self.shape) if axis != self.channel)
            return (n, self.argument if self.kind == "group" else self.shape[self.channel])
        over = range(len(self.shape))[-len(self.per) :] if self.channel_axis is None else (self.channel,)
        return tuple(1 if axis in over else n for axis, n in enumerate(self.shape))

    @property
    def takes_two_steps(self):
        single = self.kind == "group" and np.prod(self.shape) == self.saved_shape[0] * self.shape[self.channel]
        return self.kind in ("layer", "rms") or single

    @property
    def has_beta(self):
        return self.kind != "rms"

    def parameters(self, seed=0):
        gamma, beta = normal(seed + 90, self.per), normal(seed + 91, self.per)
        return (gamma, beta) if self.has_beta else (gamma,)

    def forward(self, x, *parameters, module=bncpu, **options):
        function = getattr(module, f"{self.kind}_norm_forward")
        return function(x, *self.arguments, *parameters, **self.options, **options)

    def backward(self, dy, x, saved, gamma=None, beta=None, module=bncpu, **options):
        function = getattr(module, f"{self.kind}_norm_backward")
        options |= {"beta": beta} if self.has_beta else {}
        return function(dy, x, saved, gamma, **self.options, **options)


def all_shapes(kind):
    return [
        Case(kind, (5,), 5),
        Case(kind, (6, 4), 4),
        Case(kind, (5, 3, 7), (7,)),
        Case(kind, (5, 3, 7), (3, 7)),
        Case(kind, (2, 3, 4, 5), (3, 4, 5)),
        Case(kind, (2, 2, 3, 4, 5), (4, 5)),
        Case(kind, (3, 4), (3, 4)),
        Case(kind, (4, 1, 3), (1, 3)),
        Case(kind, (1, 1, 3), (1, 1, 3)),
        Case(kind, (3, 1), 1),
        Case(kind, (4, 6, 3, 3), 6, channel_axis=1),
        Case(kind, (4, 3, 3, 6), 6, channel_axis=-1),
        Case(kind, (3, 4, 5), (3,), channel_axis=0),
        Case(kind, (2, 5, 1, 3), 5, channel_axis=-3),
        Case(kind, (4, 1, 3), 1, channel_axis=1),
    ]


CASES = [
    *all_shapes("layer"),
    *all_shapes("rms"),
    Case("instance", (3, 4, 5)),
    Case("instance", (2, 3, 4, 5)),
    Case("instance", (2, 3, 2, 3, 4)),
    Case("instance", (1, 3, 7)),
    Case("instance", (4, 1, 6)),
    Case("instance", (2, 3, 1, 5)),
    Case("instance", (3, 5, 4), channel_axis=-1),
    Case("instance", (2, 5, 3, 4), channel_axis=2),
    Case("instance", (4, 3, 5), channel_axis=0),
    Case("group", (6, 4), 2),
    Case("group", (2, 6, 5), 3),
    Case("group", (2, 6, 4, 3), 2),
    Case("group", (2, 4, 3, 2, 2), 2),
    Case("group", (3, 4, 5), 1),
    Case("group", (3, 4, 5), 4),
    Case("group", (1, 6, 5), 2),
    Case("group", (3, 1, 4), 1),
    Case("group", (2, 6, 1, 1), 2),
    Case("group", (2, 3, 1), 3),
    Case("group", (2, 4, 5, 6), 3, channel_axis=-1),
    Case("group", (2, 5, 6, 4), 3, channel_axis=2),
    Case("group", (6, 2, 5), 3, channel_axis=0),
]
ONE_OF_EACH = [
    Case("layer", (6, 4, 5), (4, 5)),
    Case("layer", (4, 6, 3, 3), 6, channel_axis=1),
    Case("rms", (6, 4, 5), 5),
    Case("instance", (3, 4, 5)),
    Case("group", (3, 6, 5), 3),
    Case("group", (3, 5, 6), 2, channel_axis=-1),
]
# Cut into several blocks, or normalized over more values than a block holds.
BIG = [
    Case("layer", (300, 64, 40), (64, 40)),
    Case("layer", (300, 64, 40), 64, channel_axis=1),
    Case("layer", (2000, 300), 300),
    Case("layer", (2, 8, 200, 200), (8, 200, 200)),
    Case("rms", (2, 8, 200, 200), 8, channel_axis=1),
    Case("instance", (300, 64, 40)),
    Case("instance", (2, 200, 200, 8), channel_axis=-1),
    Case("group", (300, 64, 40), 8),
    Case("group", (2000, 300), 10),
    Case("group", (2, 8, 200, 200), 2),
    Case("group", (2, 200, 200, 8), 4, channel_axis=-1),
]


def name(case):
    return " ".join(str(part) for part in case if part is not None)


cases = pytest.mark.parametrize("case", CASES, ids=name)
one_of_each = pytest.mark.parametrize("case", ONE_OF_EACH, ids=name)
BIG_SOME_SLOW = [*BIG[::4], *slow(*(case for case in BIG if case not in BIG[::4]))]
big = pytest.mark.parametrize("case", BIG_SOME_SLOW, ids=name)
float16_too = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])


def eps_of(dtype):
    return float(np.finfo(dtype).eps)


# Float64 sums of up to 320,000 values, whose roundings mostly cancel.
SUMS = 64 * eps_of("float64")


def assert_result(y, expected, x, *terms):
    """y is a sum of terms with at most 8 roundings in the dtype of x, each half a unit of the largest."""
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    largest = max((np.abs(a).max(initial=0) for a in (expected, *terms)), default=0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=(4 * eps_of(x.dtype) + SUMS) * largest)


def assert_gradients(case, got, expected, dy, saved, gamma):
    """dx to 32 half units of ``gamma * dy * invstd``, dbeta to a float64 sum, and dgamma if x_hat is not rounded."""
    dx, *of_parameters = got
    dx_expected, *of_parameters_expected = expected
    assert dx.dtype == dy.dtype
    assert dx.shape == dy.shape
    size = np.abs(dy).max(initial=0).astype(float)
    scale = 1 if gamma is None else np.abs(gamma).max()
    # |x_hat| <= 5 and |mean(g * x_hat)| <= max|g|, so the three terms are at most 7 times this.
    largest = size * scale * saved.invstd.max(initial=0)
    np.testing.assert_allclose(dx, dx_expected, rtol=0, atol=16 * eps_of(dx.dtype) * largest)
    # Two steps keep x_hat in the dtype of the kernels.
    x_hat = eps_of("float32") if case.takes_two_steps and dx.dtype != "float64" else 0
    for a, b, eps in zip(of_parameters, of_parameters_expected, (x_hat, 0), strict=False):
        assert a.dtype == np.float64
        b = b.reshape([1] * (a.ndim - b.ndim) + list(b.shape))  # the reference may not know of axes of length 1
        assert a.shape == b.shape
        terms = max(dx.size / max(a.size, 1), 1) * size * 5
        np.testing.assert_allclose(a, b, rtol=0, atol=(eps + SUMS) * terms)
    assert len(of_parameters) == len(of_parameters_expected) == 1 + case.has_beta


@float16_too
@cases
def test_forward_and_backward_equal_the_reference(case, dtype):
    gamma, *beta = case.parameters()
    largest_mean = 6e4 if dtype == "float16" else 1e6  # the largest float16 is 65504
    for data_mean, parameters in product((0.0, -1e4, largest_mean), [(gamma, *beta), (gamma,), ()]):
        x, dy = normal(1, case.shape, mean=data_mean, dtype=dtype), normal(2, case.shape, dtype=dtype)
        y, saved = case.forward(x, *parameters)
        expected, mean, var = case.forward(x, *parameters, module=_reference)
        invstd = _reference.inverse_std(var)
        assert_result(y, expected, x, *parameters[1:])
        assert saved.invstd.dtype == np.float64
        assert saved.invstd.shape == invstd.shape == case.saved_shape
        np.testing.assert_allclose(saved.invstd, invstd, rtol=SUMS)
        if case.kind == "rms":
            assert saved.mean is None
        else:
            assert saved.mean.shape == case.saved_shape
            np.testing.assert_allclose(saved.mean, mean, rtol=1e-14, atol=1e-15)

        got = case.backward(dy, x, saved, *parameters)
        wanted = case.backward(dy, x, saved, *parameters, module=_reference)
        assert_gradients(case, got, wanted, dy, saved, parameters[0] if parameters else None)


@pytest.mark.parametrize("dtype", DTYPES)
@cases
def test_the_short_function_gives_the_same_bits(case, dtype):
    x, parameters = normal(3, case.shape, dtype=dtype), case.parameters()
    z = normal(4, case.shape, dtype=dtype)
    options = dict(eps=0.25, activation="relu", residual=z, n_threads=1)
    y, _ = case.forward(x, *parameters, **options)
    short = getattr(bncpu, f"{case.kind}_norm")
    assert same_bits(short(x, *case.arguments, *parameters, **case.options, **options), y)


@pytest.mark.parametrize("data_mean", [0.0, -1e4, 1e6])
@pytest.mark.parametrize("kind", ["layer", "instance", "group"])
def test_float32_far_from_zero_keeps_its_digits(kind, data_mean):
    case = {k: Case(k, (8, 6, 500), a) for k, a in (("layer", 500), ("instance", None), ("group", 2))}[kind]
    x = normal(5, case.shape, mean=data_mean, dtype=np.float32)
    y, _ = case.forward(x, eps=0)
    expected, _, _ = case.forward(x, eps=0, module=_reference)
    assert np.abs(y - expected).max() <= 1e-6  # 4 half units in the last place of 4


# ---- memory ----


@float16_too
@pytest.mark.parametrize("layout", LAYOUTS)
@one_of_each
def test_any_layout_of_x_dy_and_residual(case, layout, dtype):
    x, dy, z = (normal(k, case.shape, mean=0.5, dtype=dtype) for k in (6, 7, 8))
    gamma, *beta = parameters = case.parameters()
    expected = np.maximum(case.forward(x, *parameters, module=_reference)[0] + z, 0)
    laid = LAYOUTS[layout](x)
    for other in LAYOUTS.values():
        residual, upstream = other(z), other(dy)
        arrays = [laid, residual, upstream, *parameters]
        before = [a.copy() for a in arrays]
        y, saved = case.forward(laid, *parameters, residual=residual, activation="relu")
        assert_result(y, expected, x, z, *beta, *(gamma,))
        options = dict(activation="relu", residual=residual)
        got = case.backward(upstream, laid, saved, *parameters, **options)
        wanted = case.backward(np.where(y > 0, dy, 0), x, saved, *parameters, residual=z, module=_reference)
        assert_gradients(case, got[:-1], wanted[:-1], dy, saved, gamma)
        np.testing.assert_array_equal(got[-1], np.where(y > 0, dy, 0))
        assert all(same_bits(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
@one_of_each
def test_out_of_any_layout_receives_the_same_bits(case, layout, dtype):
    x, dy, z = (normal(k, case.shape, dtype=dtype) for k in (9, 10, 11))
    parameters = case.parameters()
    options = dict(residual=z, activation="relu")
    expected, saved = case.forward(x, *parameters, **options)
    out = LAYOUTS[layout](np.zeros(case.shape, dtype))
    y, _ = case.forward(x, *parameters, **options, out=out)
    assert y is out
    np.testing.assert_array_equal(out, expected)
    expected_gradients = case.backward(dy, x, saved, *parameters, **options)
    dx, *more = case.backward(dy, x, saved, *parameters, **options, out=out)
    assert dx is out
    for a, b in zip((dx, *more), expected_gradients, strict=True):
        np.testing.assert_array_equal(a, b)


@one_of_each
def test_a_new_result_is_in_the_memory_order_of_x(case):
    parameters = case.parameters()
    for layout in ("C order", "F order", "channels last"):
        x = LAYOUTS[layout](normal(12, case.shape))
        y, saved = case.forward(x, *parameters)
        assert y.strides == x.strides
        assert case.backward(normal(13, case.shape), x, saved, *parameters)[0].strides == x.strides


@pytest.mark.parametrize("dtype", DTYPES)
@one_of_each
def test_overlapping_out_is_as_if_the_inputs_had_been_copied(case, dtype):
    parameters, n = case.parameters(), case.shape[0]
    first, second = (normal(k, case.shape, dtype=dtype) for k in (14, 15))
    expected, saved = case.forward(first, *parameters)
    expected_dx = case.backward(second, first, saved, *parameters)[0]

    def room(a):
        both = np.concatenate([a, np.zeros_like(a)])
        return both[:n], both[1 : n + 1]

    for make in (lambda a: (a, a), room, lambda a: (a, a[::-1]), lambda a: (a, a[..., ::-1])):
        x, out = make(first.copy())
        assert case.forward(x, *parameters, out=out)[0] is out
        np.testing.assert_array_equal(out, expected)
        x, out = make(first.copy())
        case.backward(second, x, saved, *parameters, out=out)
        np.testing.assert_array_equal(out, expected_dx)
        dy, out = make(second.copy())
        case.backward(dy, first, saved, *parameters, out=out)
        np.testing.assert_array_equal(out, expected_dx)
        z, out = make(second.copy())
        with_residual = case.forward(first, *parameters, residual=second)[0]
        case.forward(first, *parameters, residual=z, out=out)
        np.testing.assert_array_equal(out, with_residual)


# ---- relu and residual ----


@float16_too
@cases
def test_the_gradient_is_zero_exactly_where_the_result_is(case, dtype):
    dy, z = (normal(k, case.shape, dtype=dtype) for k in (17, 18))
    parameters = case.parameters()
    for data_mean, residual in product((0.0, 1e3), (None, z)):
        x = normal(16, case.shape, mean=data_mean, dtype=dtype)
        options = dict(activation="relu", residual=residual)
        y, saved = case.forward(x, *parameters, **options)
        plain = case.forward(x, *parameters, module=_reference)[0]
        assert_result(y, np.maximum(plain + (0 if residual is None else z), 0), x, plain, z, *parameters)
        masked = np.where(y > 0, dy, 0)
        got = case.backward(dy, x, saved, *parameters, **options)
        wanted = case.backward(masked, x, saved, *parameters, residual=residual, module=_reference)
        n = 2 + case.has_beta
        assert_gradients(case, got[:n], wanted[:n], dy, saved, parameters[0])
        if residual is not None:
            assert got[-1].dtype == x.dtype
            np.testing.assert_array_equal(got[-1], masked)
            by_hand = SavedStatistics(*saved)  # which does not know of the ReLU
            dresidual = case.backward(dy, x, by_hand, *parameters, residual=residual)[-1]
            np.testing.assert_array_equal(dresidual, dy)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e-50), ("float64", 0.0)])
@one_of_each
def test_a_result_that_underflows_to_zero_passes_no_gradient(case, dtype, scale):
    x, dy, z = normal(19, case.shape, dtype=dtype), normal(20, case.shape, dtype=dtype), np.zeros(case.shape, dtype)
    parameters = [scale * np.abs(p) for p in case.parameters()]
    y, saved = case.forward(x, *parameters, residual=z, activation="relu")
    assert not np.any(y)
    gradients = case.backward(dy, x, saved, *parameters, residual=z, activation="relu")
    assert not any(np.any(a) for a in gradients)


# ---- edges ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in [*CASES, *BIG[:5]] if case.kind != "rms"], ids=name)
def test_constant_values_without_eps_give_beta_and_no_gradient(case, dtype):
    gamma, beta = case.parameters()
    x, dy = np.full(case.shape, 1e8 / 3, dtype), normal(21, case.shape, dtype=dtype)
    y, saved = case.forward(x, gamma, beta, eps=0)
    axes = (
        range(len(case.shape))[-len(case.per) :]
        if case.kind == "layer" and case.channel_axis is None
        else [case.channel]
    )
    along = beta.astype(dtype).reshape([n if axis in axes else 1 for axis, n in enumerate(case.shape)])
    assert np.all(y == along)
    assert not np.any(saved.invstd)
    dx, dgamma, _ = case.backward(dy, x, saved, gamma, beta=beta)
    assert not np.any(dx)
    assert not np.any(dgamma)
    assert np.all(case.forward(x, gamma, beta)[0] == along)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_of_zeros_without_eps_is_zero_without_gradient(dtype):
    x = np.zeros((3, 4), dtype)
    y, saved = bncpu.rms_norm_forward(x, 4, eps=0)
    dx, dgamma = bncpu.rms_norm_backward(np.ones_like(x), x, saved)
    assert not any(np.any(a) for a in (y, saved.invstd, dx, dgamma))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@float16_too
@one_of_each
def test_what_is_not_finite_stays_where_it_is_normalized(case, dtype, bad):
    x, dy = normal(22, case.shape, dtype=dtype), normal(23, case.shape, dtype=dtype)
    clean, saved = case.forward(x)
    at = tuple(n // 2 for n in case.shape)
    x[at] = bad
    y, spoiled = case.forward(x)
    dx = case.backward(dy, x, spoiled)[0]
    here = ~np.isfinite(spoiled.invstd) | (spoiled.invstd == 0)
    assert np.sum(here) == 1
    np.testing.assert_array_equal(spoiled.invstd[~here], saved.invstd[~here])
    mine = spread(case, here)
    assert np.isnan(y[at])
    np.testing.assert_array_equal(y[~mine], clean[~mine])
    if case.kind != "rms":
        assert np.all(np.isnan(y[mine]))
    assert np.all(np.isfinite(dx[~mine]))
    assert np.isnan(dx[at])


def spread(case, saved):
    """A number for each of the saved statistics at all values of x that it was made of."""
    if case.kind in ("layer", "rms"):
        return np.broadcast_to(saved, case.shape)
    moved = np.moveaxis(np.empty(case.shape), case.channel, 1)
    per_channel = np.repeat(saved, moved.shape[1] // saved.shape[1], axis=1)
    full = np.broadcast_to(per_channel.reshape(per_channel.shape + (1,) * (moved.ndim - 2)), moved.shape)
    return np.moveaxis(full, 1, case.channel)


def samples_outermost(cases):
    """Those whose samples are on axis 0, and are not what is normalized."""
    own = [case for case in cases if len(case.per) < len(case.shape) and case.saved_shape[0] == case.shape[0]]
    return [case for case in own if case.kind in ("layer", "rms") or case.channel != 0]


@pytest.mark.parametrize("case", samples_outermost(CASES), ids=name)
def test_no_samples_give_no_results(case):
    empty = case._replace(shape=(0, *case.shape[1:]))
    x, parameters = np.zeros(empty.shape, np.float32), case.parameters()
    y, saved = empty.forward(x, *parameters)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert saved.invstd.shape == empty.saved_shape
    dx, *gradients = empty.backward(x, x, saved, *parameters)
    assert dx.shape == x.shape
    assert all(a.shape == case.per and not np.any(a) for a in gradients)


def test_without_gamma_the_gradient_has_the_shape_that_was_normalized():
    x = normal(24, (4, 3, 2))
    for normalized_shape in (2, (3, 2), (4, 3, 2)):
        _, saved = bncpu.layer_norm_forward(x, normalized_shape)
        _, dgamma, dbeta = bncpu.layer_norm_backward(x, x, saved)
        assert dgamma.shape == dbeta.shape == tuple(np.atleast_1d(normalized_shape))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("channel_axis", [1, -1, 0])
def test_running_statistics_follow_the_mean_over_the_instances(channel_axis, momentum, ddof):
    x = np.moveaxis(normal(25, (5, 3, 7), mean=2.0, std=3.0), 1, channel_axis)
    for dtype in ("float32", "float64", ">f8"):
        running_mean, running_var = np.full(3, 4.0).astype(dtype), np.full(3, 2.0).astype(dtype)
        y, _ = bncpu.instance_norm_forward(
            x, running_mean=running_mean, running_var=running_var,
            momentum=momentum, ddof=ddof, channel_axis=channel_axis,
        )  # fmt: skip
        instances = np.moveaxis(x, channel_axis, 1)
        mean = momentum * 4 + (1 - momentum) * instances.mean(2).mean(0)
        var = momentum * 2 + (1 - momentum) * instances.var(2, ddof=ddof).mean(0)
        tolerance = 16 * np.finfo(dtype).eps
        np.testing.assert_allclose(running_mean, mean, rtol=tolerance)
        np.testing.assert_allclose(running_var, var, rtol=tolerance)
        assert same_bits(y, bncpu.instance_norm(x, channel_axis=channel_axis))


# ---- the same bits ----

BITS: dict[tuple, int] = {}  # a hash of the results of the first processor


@pytest.mark.parametrize("dtype", DTYPES)
@big
def test_big_arrays_equal_the_reference(case, dtype):
    x, dy = float32_normal(26, case.shape, dtype), float32_normal(27, case.shape, dtype)
    parameters = case.parameters()
    y, saved = case.forward(x, *parameters)
    expected, _, var = case.forward(x, *parameters, module=_reference)
    assert_result(y, expected, x, *parameters)
    np.testing.assert_allclose(saved.invstd, _reference.inverse_std(var), rtol=SUMS)
    got = case.backward(dy, x, saved, *parameters)
    wanted = case.backward(dy, x, saved, *parameters, module=_reference)
    assert_gradients(case, got, wanted, dy, saved, parameters[0])


@cache
def drawn(seed, shape):
    return LAYOUTS["read-only"](np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def float32_normal(seed, shape, dtype):
    """Numbers that are cheap to draw, in a read-only array."""
    return drawn(seed, shape).astype(dtype, copy=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*ONE_OF_EACH, *BIG_SOME_SLOW], ids=name)
def test_any_number_of_threads_and_every_processor_give_the_same_bits(case, dtype, isa):
    x, dy, z = (float32_normal(k, case.shape, dtype) for k in (28, 29, 30))
    parameters = case.parameters()
    first = None
    for n_threads in (1, 2, 3):
        options = dict(residual=z, activation="relu", n_threads=n_threads)
        y, saved = case.forward(x, *parameters, **options)
        found = [y, *(a for a in saved if a is not None), *case.backward(dy, x, saved, *parameters, **options)]
        first = found if first is None else first
        assert all(same_bits(a, b) for a, b in zip(found, first, strict=True))
    bits = hash(b"".join(a.tobytes() for a in first))
    assert BITS.setdefault((case, dtype), bits) == bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["C order", "channels last"])
@pytest.mark.parametrize("case", [*samples_outermost(CASES), BIG[7], *slow(*BIG[:3], BIG[5])], ids=name)
def test_a_sample_alone_gives_the_bits_it_gives_in_a_batch(case, layout, dtype):
    x, dy = (LAYOUTS[layout](float32_normal(k, case.shape, dtype)) for k in (31, 32))
    parameters = case.parameters()
    y, saved = case.forward(x, *parameters)
    dx = case.backward(dy, x, saved, *parameters)[0]
    for i in {0, len(x) // 2, len(x) - 1}:
        only = slice(i, i + 1)
        for own, own_dy in ((x[only], dy[only]), (x[only].copy(order="K"), dy[only].copy(order="K"))):
            alone, own_saved = case.forward(own, *parameters)
            assert same_bits(alone, y[only])
            assert same_bits(own_saved.invstd, saved.invstd[only])
            assert same_bits(case.backward(own_dy, own, own_saved, *parameters)[0], dx[only])


# ---- identities ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_group_is_layer_norm_over_a_sample(dtype):
    x, dy = normal(33, (4, 6, 5), dtype=dtype), normal(34, (4, 6, 5), dtype=dtype)
    gamma, beta = normal(35, 6), normal(36, 6)
    wide = [np.repeat(p, 5).reshape(6, 5) for p in (gamma, beta)]
    y, saved = bncpu.group_norm_forward(x, 1, gamma, beta)
    expected, layer_saved = bncpu.layer_norm_forward(x, (6, 5), *wide)
    assert_result(y, expected, x, *wide)
    np.testing.assert_allclose(saved.invstd[:, :, None], layer_saved.invstd, rtol=1e-14)
    dx, dgamma, dbeta = bncpu.group_norm_backward(dy, x, saved, gamma)
    dx_layer, dgamma_layer, dbeta_layer = bncpu.layer_norm_backward(dy, x, layer_saved, wide[0])
    expected = (dx_layer, dgamma_layer.sum(1), dbeta_layer.sum(1))
    assert_gradients(Case("layer", x.shape), (dx, dgamma, dbeta), expected, dy, saved, gamma)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 6, 40, 6), (30, 64, 50)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_for_each_channel_is_instance_norm_to_the_bit(dtype, shape, channel_axis):
    x, dy, z = (normal(k, shape, dtype=dtype) for k in (37, 38, 39))
    n_channels = shape[channel_axis]
    gamma, beta = normal(40, n_channels), normal(41, n_channels)
    options = dict(channel_axis=channel_axis, activation="relu", residual=z)
    y, saved = bncpu.group_norm_forward(x, n_channels, gamma, beta, **options)
    expected, expected_saved = bncpu.instance_norm_forward(x, gamma, beta, **options)
    gradients = bncpu.group_norm_backward(dy, x, saved, gamma, beta=beta, **options)
    expected_gradients = bncpu.instance_norm_backward(dy, x, saved, gamma, beta=beta, **options)
    for a, b in zip((y, *saved, *gradients), (expected, *expected_saved, *expected_gradients), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_of_one_sample_is_instance_norm(dtype):
    x, dy = normal(42, (1, 6, 50), dtype=dtype), normal(43, (1, 6, 50), dtype=dtype)
    gamma, beta = normal(44, 6), normal(45, 6)
    y, saved = bncpu.instance_norm_forward(x, gamma, beta)
    expected, batch_saved = bncpu.batch_norm_forward(x, gamma, beta)
    assert_result(y, expected, x, gamma, beta)
    np.testing.assert_allclose(saved.invstd[0], batch_saved.invstd, rtol=1e-14)
    got = bncpu.instance_norm_backward(dy, x, saved, gamma)
    expected = bncpu.batch_norm_backward(dy, x, batch_saved, gamma)
    assert_gradients(Case("instance", x.shape), got, expected, dy, saved, gamma)


# ---- a statistic of one value ----


@pytest.mark.parametrize("eps", [0, 1e-5])
def test_one_value_gives_beta_where_the_layer_asks_for_it_and_else_is_refused(eps):
    x, gamma, beta = normal(51, (4, 3, 1, 1), mean=5.0), normal(52, 3), normal(53, 3)
    whole = np.broadcast_to(beta[:, None, None], x.shape)
    np.testing.assert_array_equal(bncpu.group_norm(x, 3, gamma, beta, eps=eps), whole)
    np.testing.assert_array_equal(bncpu.layer_norm(x, 1, gamma[:1], beta[:1], eps=eps), np.full(x.shape, beta[0]))
    np.testing.assert_allclose(bncpu.rms_norm(x, 1, eps=eps), np.sign(x), rtol=1e-3)
    for function, alone in ((bncpu.instance_norm, x), (bncpu.batch_norm_forward, x[:1])):
        with pytest.raises(ValueError, match=r"needs at least 2 values per channel.*, got 1;"):
            function(alone, gamma, beta, eps=eps)


# ---- byte order ----


@pytest.mark.parametrize("more", [{}, {"activation": "relu"}], ids=["plain", "relu"])
@pytest.mark.parametrize("fused", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
@pytest.mark.parametrize("case", [Case("batch", (3, 4, 5)), *ONE_OF_EACH], ids=name)
def test_results_are_in_native_byte_order_and_have_the_same_bits(case, dtype, fused, more):
    """As those of NumPy; each array may have a byte order of its own."""
    swapped = [normal(k, case.shape).astype(dtype) for k in (47, 48, 49)]
    straight = [a.astype(a.dtype.newbyteorder("=")) for a in swapped]
    parameters = [p.astype(">f8") for p in case.parameters()]

    def both(x, dy, z, **out):
        options = more | ({"residual": z} if fused else {})
        y, saved = case.forward(x, *parameters, **options, **out)
        return [y, *case.backward(dy, x, saved, *parameters, **options)]

    expected = both(*straight)
    for arrays in (swapped, [swapped[0], *straight[1:]], [straight[0], *swapped[1:]]):
        got = both(*arrays)
        assert all(a.dtype.isnative for a in got)
        assert all(map(same_bits, got, expected))
    for kind in (swapped[0].dtype, straight[0].dtype):
        for x in (swapped[0], straight[0]):
            out = np.zeros(case.shape, kind)
            y, _ = case.forward(x, *parameters, **more, out=out)
            assert y is out
            assert out.dtype == kind
            np.testing.assert_array_equal(out, case.forward(straight[0], *parameters, **more)[0])


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_results_of_inference_are_in_native_byte_order(dtype):
    x = normal(50, (6, 3)).astype(dtype)
    y = bncpu.batch_norm(x, np.zeros(3), np.ones(3))
    assert y.dtype == x.dtype.newbyteorder("=") and y.dtype.isnative
    out = np.zeros((6, 3), dtype)
    assert bncpu.batch_norm(x, np.zeros(3), np.ones(3), out=out) is out
    np.testing.assert_array_equal(out, y)


# ---- refusals ----

X = normal(46, (4, 6, 5))
OUT, RUNNING = np.zeros(X.shape), np.zeros(6)
LAYER, GROUP = (
    SavedStatistics(np.zeros((4, 6, 1)), np.ones((4, 6, 1))),
    SavedStatistics(np.zeros((4, 3)), np.ones((4, 3))),
)
INSTANCE = SavedStatistics(np.zeros((4, 6)), np.ones((4, 6)))

# the call, the error, and the name of the argument, or more, in its message
REFUSED = [
    (lambda: bncpu.layer_norm(X.tolist(), 5), TypeError, "x"),
    (lambda: bncpu.rms_norm(X.astype(int), 5), TypeError, "x"),
    (lambda: bncpu.group_norm(X[0, 0], 1), ValueError, "x"),
    (lambda: bncpu.instance_norm(np.ma.array(X)), TypeError, "x"),
    (lambda: bncpu.layer_norm(X, 4), ValueError, "normalized_shape"),
    (lambda: bncpu.layer_norm(X, (5, 6)), ValueError, "normalized_shape"),
    (lambda: bncpu.layer_norm(X, (1, 4, 6, 5)), ValueError, "normalized_shape"),
    (lambda: bncpu.layer_norm(X, ()), ValueError, "normalized_shape"),
    (lambda: bncpu.rms_norm(X, 5.0), TypeError, "normalized_shape"),
    (lambda: bncpu.rms_norm(X, (6, "5")), TypeError, "normalized_shape"),
    (lambda: bncpu.layer_norm(X, 5, channel_axis=1), ValueError, "normalized_shape"),
    (lambda: bncpu.layer_norm(X, (6, 5), channel_axis=1), ValueError, "normalized_shape"),
    (lambda: bncpu.layer_norm(X, 5, channel_axis=3), ValueError, "channel_axis"),
    (lambda: bncpu.layer_norm(X, 5, channel_axis=1.0), TypeError, "channel_axis"),
    (lambda: bncpu.layer_norm(X, 5, np.ones(6)), ValueError, "gamma"),
    (lambda: bncpu.layer_norm(X, (6, 5), None, np.ones(5)), ValueError, "beta"),
    (lambda: bncpu.rms_norm(X, 5, np.ones(5) * 1j), TypeError, "gamma"),
    (lambda: bncpu.group_norm(X, 4), ValueError, "n_groups"),
    (lambda: bncpu.group_norm(X, 0), ValueError, "n_groups"),
    (lambda: bncpu.group_norm(X, -2), ValueError, "n_groups"),
    (lambda: bncpu.group_norm(X, 2.0), TypeError, "n_groups"),
    (lambda: bncpu.group_norm(X, True), TypeError, "n_groups"),
    (lambda: bncpu.group_norm(X, 2, np.ones(2)), ValueError, "gamma"),
    (lambda: bncpu.group_norm(X, 2, channel_axis=-4), ValueError, "channel_axis"),
    (lambda: bncpu.instance_norm(X, np.ones(4)), ValueError, "gamma"),
    (lambda: bncpu.instance_norm(X[:, :, 0]), ValueError, "2 values"),
    (lambda: bncpu.instance_norm_forward(X[:, :, :1]), ValueError, "2 values"),
    (lambda: bncpu.instance_norm(X, ddof=5, running_mean=RUNNING, running_var=RUNNING + 1), ValueError, "6 values"),
    (lambda: bncpu.instance_norm(X, running_mean=RUNNING), ValueError, "running_mean"),
    (lambda: bncpu.instance_norm(X, running_mean=RUNNING[:4], running_var=RUNNING[:4]), ValueError, "running_mean"),
    (lambda: bncpu.instance_norm(X, momentum=2), ValueError, "momentum"),
    (lambda: bncpu.layer_norm(X, 5, eps=-1), ValueError, "eps"),
    (lambda: bncpu.rms_norm(X, 5, eps=np.nan), ValueError, "eps"),
    (lambda: bncpu.layer_norm(X, 5, activation="gelu"), ValueError, "activation"),
    (lambda: bncpu.layer_norm(X, 5, n_threads=0), ValueError, "n_threads"),
    (lambda: bncpu.group_norm(X, 2, residual=X[:2]), ValueError, "residual"),
    (lambda: bncpu.group_norm(X, 2, residual=X.astype("f4")), TypeError, "residual"),
    (lambda: bncpu.instance_norm(X, out=OUT[:2]), ValueError, "out"),
    (lambda: bncpu.instance_norm(X, out=OUT.astype("f4")), TypeError, "out"),
    (lambda: bncpu.layer_norm(X, 5, out=LAYOUTS["read-only"](OUT)), ValueError, "out"),
    (lambda: bncpu.layer_norm_backward(X[:2], X, LAYER), ValueError, "dy"),
    (lambda: bncpu.layer_norm_backward(X.astype("f4"), X, LAYER), TypeError, "dy"),
    (lambda: bncpu.layer_norm_backward(X, X, GROUP), ValueError, "saved"),
    (lambda: bncpu.layer_norm_backward(X, X, LAYER, np.ones(6)), ValueError, "gamma"),
    (lambda: bncpu.layer_norm_backward(X, X, LAYER, channel_axis=1), ValueError, "saved"),
    (lambda: bncpu.layer_norm_backward(X, X, LAYER._replace(mean=None)), (TypeError, ValueError), "saved"),
    (lambda: bncpu.rms_norm_backward(X, X, SavedStatistics(None, np.ones(4))), ValueError, "saved"),
    (lambda: bncpu.group_norm_backward(X, X, SavedStatistics(*np.ones((2, 4, 4)))), ValueError, "saved"),
    (lambda: bncpu.group_norm_backward(X, X, SavedStatistics(*np.ones((2, 2, 3)))), ValueError, "saved"),
    (lambda: bncpu.group_norm_backward(X, X, GROUP, beta=np.ones(3)), ValueError, "beta"),
    (lambda: bncpu.group_norm_backward(X, X, GROUP, residual=X[:2]), ValueError, "residual"),
    (lambda: bncpu.instance_norm_backward(X, X, GROUP), ValueError, "saved"),
    (lambda: bncpu.instance_norm_backward(X, X, SavedStatistics(*np.ones((2, 6)))), ValueError, "saved"),
    (lambda: bncpu.instance_norm_backward(X, X, INSTANCE, out=OUT[1:]), ValueError, "out"),
    (lambda: bncpu.instance_norm_backward(X, X, 3.0), TypeError, "saved"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_refusal_names_the_argument_and_changes_nothing(case):
    call, error, named = REFUSED[case]
    before = [a.copy() for a in (X, OUT, RUNNING)]
    with pytest.raises(error, match=rf"\b{named}\b"):
        call()
    assert all(same_bits(a, b) for a, b in zip((X, OUT, RUNNING), before, strict=True))


# ---- one sample's values never change another's bits ----

HOSTILE = {"tiny": 1e-39, "huge": 1e30}


@pytest.mark.parametrize("scale", HOSTILE.values(), ids=HOSTILE)
@one_of_each
def test_a_sample_beyond_float32_coefficients_changes_no_bit_of_the_others(case, scale):
    x, dy, z = (float32_normal(k, case.shape, "float32").copy() for k in (33, 34, 35))
    dy *= np.float32(1e-3)  # or dx of the tiny sample would overflow
    parameters = case.parameters()
    options = dict(eps=0, activation="relu", residual=z)
    calm, saved = case.forward(x, *parameters, **options)
    gradients = case.backward(dy, x, saved, *parameters, activation="relu", residual=z)
    x[1] *= np.float32(scale)
    y, saved = case.forward(x, *parameters, **options)
    others = [i for i in range(len(x)) if i != 1]
    assert same_bits(y[others], calm[others])
    dx, *_, dz = case.backward(dy, x, saved, *parameters, activation="relu", residual=z)
    assert same_bits(dx[others], gradients[0][others])
    np.testing.assert_array_equal(dz, np.where(y > 0, dy, 0))
    expected = case.forward(x, *parameters, eps=0, module=_reference)[0] + z
    np.testing.assert_allclose(
        y, np.maximum(expected, 0), rtol=0, atol=16 * np.finfo("f4").eps * np.abs(expected).max()
    )
    wanted = case.backward(np.where(y > 0, dy, 0), x, saved, *parameters, module=_reference)
    size = np.abs(np.float64(wanted[0][1])).max()
    np.testing.assert_allclose(dx[1] / size, wanted[0][1] / size, rtol=0, atol=1e-5)


def test_a_large_sample_has_the_same_gradient_bits_alone():
    x, dy = normal(36, (2, 1, 1 << 20)), normal(37, (2, 1, 1 << 20), mean=3.0)
    for norm, arguments in (("instance", ()), ("layer", (1 << 20,))):
        forward, backward = (getattr(bncpu, f"{norm}_norm_{name}") for name in ("forward", "backward"))
        _, saved = forward(x, *arguments)
        _, first = forward(x[:1], *arguments)
        assert same_bits(backward(dy[:1], x[:1], first)[0], backward(dy, x, saved)[0][:1])


def test_beta_alone_tells_which_axes_were_normalized_over():
    x, beta = normal(38, (4, 1, 3)), np.ones((1, 3))
    _, saved = bncpu.layer_norm_forward(x, (1, 3), None, beta, activation="relu")
    for some in (saved, SavedStatistics(*saved)):
        _, dgamma, dbeta = bncpu.layer_norm_backward(x, x, some, beta=beta, activation="relu")
        assert dgamma.shape == dbeta.shape == (1, 3)


def test_parameters_in_lists_tell_it_too():
    x, gamma = normal(39, (1, 4, 3)), normal(40, (1, 4, 3))
    _, saved = bncpu.rms_norm_forward(x, (1, 4, 3), gamma)
    expected = bncpu.rms_norm_backward(x, x, saved, gamma)
    got = bncpu.rms_norm_backward(x, x, SavedStatistics(*saved), gamma.tolist())
    assert all(map(same_bits, got, expected))
    with pytest.raises(ValueError, match="gamma must have shape"):
        bncpu.rms_norm_backward(x, x, SavedStatistics(*saved), [[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("case", [*ONE_OF_EACH, Case("layer", (2, 1 << 20), 1 << 20)], ids=name)
def test_infinite_gradients_of_both_signs_give_nan_without_a_warning(case):
    x, dy = float32_normal(41, case.shape, "float32"), np.ones(case.shape, np.float32)
    dy[0], dy[1] = np.inf, -np.inf
    dx, dgamma, *_ = case.backward(dy, x, case.forward(x)[1])
    assert np.isnan(dx[:2]).all()
    assert not np.isfinite(dgamma).any()


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 2, 4), (2, 0, 0), (2, 2, 0), (0, 0, 0)], ids=str)
def test_arrays_without_values_have_results_and_gradients_of_their_shape(shape):
    x = np.zeros(shape)
    groups = ("group", (1,), (shape[0], 1))
    layer = ("layer", (4,), (shape[0], shape[1], 1))
    for norm, arguments, saved_shape in (("instance", (), shape[:2]), groups, layer):
        if norm == "layer" and shape[2] != 4:
            continue
        forward, backward = (getattr(bncpu, f"{norm}_norm_{name}") for name in ("forward", "backward"))
        y, saved = forward(x, *arguments)
        assert y.shape == shape
        assert saved.mean.shape == saved_shape
        dx, dgamma, _ = backward(x, x, saved)
        assert dx.shape == shape
        assert dgamma.shape == ((4,) if norm == "layer" else (shape[1],))
        assert not dgamma.any()
