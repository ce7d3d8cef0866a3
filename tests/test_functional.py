"""Batch normalization forward and backward, whole and in two phases, against the reference."""

import inspect
import pickle
import tracemalloc

import numpy as np
import pytest
from arrays import DTYPES, LAYOUTS, normal, same_bits
from hypothesis import given
from hypothesis import strategies as st

import bncpu
from bncpu import (
    BackwardSums,
    Moments,
    SavedStatistics,
    _reference,
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_frozen,
    batch_norm_backward_sums,
    batch_norm_forward,
    batch_norm_moments,
    merge,
)

# The rounding of y: subtract, scale, shift, each within half a unit of terms of at most this size.
TOLERANCE = {"float16": 2e-3, "float32": 4e-6, "float64": 4e-14}
SHAPES = [(6, 4), (50, 3), (5, 3, 7), (4, 3, 5, 6), (2, 3, 4, 5, 6), (2, 1, 3), (3, 4, 1, 1)]


def parameters(n_channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2, n_channels), rng.standard_normal(n_channels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_equals_the_reference(shape, dtype, layout):
    x = LAYOUTS[layout](normal(1, shape, mean=0.5, dtype=dtype))
    before = x.copy()
    gamma, beta = parameters(shape[1])
    y, saved = batch_norm_forward(x, gamma, beta)
    expected, mean, var = _reference.batch_norm_forward(x, gamma, beta)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE[dtype] * 4)
    np.testing.assert_allclose(saved.mean, mean, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(saved.invstd, 1 / np.sqrt(var + 1e-5), rtol=1e-13)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inference_equals_the_reference(shape, dtype, layout):
    x = LAYOUTS[layout](normal(2, shape, dtype=dtype))
    gamma, beta = parameters(shape[1])
    mean, var = parameters(shape[1], seed=1)[::-1]
    var = var + 0.5
    y = batch_norm(x, mean, var, gamma, beta, eps=1e-3)
    np.testing.assert_allclose(
        y, _reference.batch_norm(x, mean, var, gamma, beta, eps=1e-3), rtol=0, atol=4 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("channel_axis", [0, 1, 2, 3, -1, -3])
def test_any_channel_axis(channel_axis):
    x = normal(3, (3, 4, 5, 6), mean=2.0)
    n_channels = x.shape[channel_axis]
    gamma, beta = parameters(n_channels)
    y, saved = batch_norm_forward(x, gamma, beta, channel_axis=channel_axis)
    expected, mean, _ = _reference.batch_norm_forward(x, gamma, beta, channel_axis=channel_axis)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(saved.mean, mean, rtol=1e-13)


@pytest.mark.parametrize("data_mean", [0.0, -1e4, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_of_a_shifted_batch_is_exact_to_rounding(dtype, data_mean):
    x = normal(4, (16, 5, 30), mean=data_mean, dtype=dtype)
    y, _ = batch_norm_forward(x, eps=0)
    expected, _, _ = _reference.batch_norm_forward(x, eps=0)
    # |x_hat| < 4, rounded a few times; and the reference's own mean is rounded to float64.
    own = 4 * np.finfo(np.float64).eps * abs(data_mean)
    np.testing.assert_allclose(y, expected, rtol=0, atol=16 * np.finfo(dtype).eps + own)


@pytest.mark.parametrize("shape", [(100_000, 4), (16, 4, 40, 40)], ids=str)
def test_float32_keeps_its_digits_a_million_standard_deviations_from_zero(shape):
    x = normal(20, shape, mean=1e6, dtype=np.float32)
    y, _ = batch_norm_forward(x)
    assert np.abs(y - _reference.batch_norm_forward(x)[0]).max() <= 1e-6


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore:the momentum=0.1 is the weight of the old value")
def test_running_statistics_follow_the_textbook_formula(dtype, momentum, ddof):
    running_mean, running_var = np.zeros(4, dtype), np.ones(4, dtype)
    mean, var = np.zeros(4), np.ones(4)
    for k in range(50):
        x = normal(k, (8, 4, 3), mean=k, std=1 + k)
        batch_norm_forward(x, running_mean=running_mean, running_var=running_var, momentum=momentum, ddof=ddof)
        flat = np.moveaxis(x, 1, 0).reshape(4, -1)
        mean = momentum * mean + (1 - momentum) * flat.mean(1)
        var = momentum * var + (1 - momentum) * flat.var(1, ddof=ddof)
    # 50 updates, each rounded once to the dtype of the running arrays.
    np.testing.assert_allclose(running_mean, mean, rtol=50 * np.finfo(dtype).eps)
    np.testing.assert_allclose(running_var, var, rtol=50 * np.finfo(dtype).eps)


RUNNING = [batch_norm_forward, bncpu.instance_norm, bncpu.instance_norm_forward]


@pytest.mark.parametrize("function", RUNNING)
def test_a_momentum_that_looks_like_pytorchs_warns_where_it_is_used(function):
    x = normal(78, (4, 3, 5))
    message = r"^the momentum=0\.1 is the weight of the old value; PyTorch's 0\.1 is 0\.9 here$"
    with pytest.warns(UserWarning, match=message) as caught:
        function(x, running_mean=np.zeros(3), running_var=np.ones(3), momentum=0.1)
    assert len(caught) == 1
    assert function is bncpu.instance_norm or caught[0].filename == __file__
    for momentum in (0, 0.5, 0.9, 1):  # warnings are errors here
        function(x, running_mean=np.zeros(3), running_var=np.ones(3), momentum=momentum)
    function(x, momentum=0.1)


@pytest.mark.parametrize("function", RUNNING)
def test_pytorchs_momentum_of_none_is_explained(function):
    with pytest.raises(TypeError, match=r"^momentum must be .*, got None; PyTorch's None, .* BatchNormTransformer\(\)"):
        function(normal(79, (4, 3, 5)), momentum=None)


def test_running_arrays_may_be_strided_and_byte_swapped():
    running_mean, running_var = np.zeros((3, 2))[:, 1], np.ones(3, ">f4")
    x = normal(5, (9, 3))
    interleaved = np.zeros((3, 2))
    batch_norm_forward(x, running_mean=interleaved[:, 0], running_var=interleaved[:, 1])
    np.testing.assert_allclose(interleaved, 0.1 * np.column_stack([x.mean(0), x.var(0)]), rtol=1e-12)
    batch_norm_forward(x, running_mean=running_mean, running_var=running_var)
    np.testing.assert_allclose(running_mean, 0.1 * x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(running_var, 0.9 + 0.1 * x.var(0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(30, 4), (5, 4, 9)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation_and_residual(shape, dtype):
    x, z = normal(6, shape, dtype=dtype), normal(7, shape, dtype=dtype)
    y, _ = batch_norm_forward(x, residual=z, activation="relu")
    expected = np.maximum(_reference.batch_norm_forward(x)[0] + z, 0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * np.finfo(dtype).eps)
    strided, _ = batch_norm_forward(x, residual=np.repeat(z, 2, axis=-1)[..., ::2], activation="relu")
    assert same_bits(strided, y)


@pytest.mark.parametrize("layout", ["C order", "F order", "channels last", "columns of a wider array", "misaligned"])
@pytest.mark.parametrize("shape", [(40, 4), (5, 4, 3, 3)], ids=str)
def test_out_of_any_layout_receives_the_same_bits(shape, layout):
    x, z = normal(8, shape), normal(9, shape)
    expected, _ = batch_norm_forward(x, residual=z)
    out = LAYOUTS[layout](np.zeros(shape))
    y, _ = batch_norm_forward(x, residual=z, out=out)
    assert y is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("shape", [(40, 4), (12, 4, 3)], ids=str)
def test_overlapping_out_is_as_if_x_had_been_copied(shape):
    expected, _ = batch_norm_forward(normal(10, shape))
    x = normal(10, shape)
    y, _ = batch_norm_forward(x, out=x)
    assert y is x
    np.testing.assert_array_equal(x, expected)
    both = np.concatenate([normal(10, shape), np.zeros(shape)])
    x, out = both[: len(both) // 2], both[1 : len(both) // 2 + 1]
    batch_norm_forward(x, out=out)
    np.testing.assert_array_equal(out, expected)
    reversed_x = normal(10, shape)[::-1].copy()[::-1]
    expected, _ = batch_norm_forward(reversed_x)  # whose sums are added in another order
    batch_norm_forward(reversed_x, out=reversed_x[::-1])
    np.testing.assert_array_equal(reversed_x[::-1], expected)


def test_identity_parameters_give_back_the_batch():
    x = normal(11, (64, 5), mean=3.0, std=4.0)
    y, _ = batch_norm_forward(x, gamma=np.sqrt(x.var(0) + 1e-5), beta=x.mean(0))
    np.testing.assert_allclose(y, x, rtol=1e-13)


def test_output_variance_is_var_over_var_plus_eps():
    x = normal(12, (500, 3), std=1e-2)
    y, _ = batch_norm_forward(x, gamma=[2.0, 3.0, 4.0])
    np.testing.assert_allclose(y.var(0), np.array([4.0, 9.0, 16.0]) * x.var(0) / (x.var(0) + 1e-5), rtol=1e-12)


def test_permuting_a_batch_permutes_its_output():
    x = normal(13, (200, 3))
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_allclose(batch_norm_forward(x[order])[0], batch_norm_forward(x)[0][order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_channel_is_exactly_beta(dtype):
    x = np.full((1000, 2), 1e8 / 3, dtype)
    for eps in (0, 1e-5):
        y, _saved = batch_norm_forward(x, beta=[0.25, -3.0], eps=eps)
        assert np.all(y == np.array([0.25, -3.0], dtype))
    assert np.all(batch_norm(x, [0, 0], [0, 0], beta=[0.25, -3.0], eps=0) == np.array([0.25, -3.0], dtype))
    assert np.all(batch_norm_forward(x, eps=0)[1].invstd == 0)


@pytest.mark.parametrize("at", [(0, 1, 0), (3, 1, 2), (39, 1, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_channel(bad, dtype, at):
    x = normal(14, (40, 3, 5), dtype=dtype)
    clean, _ = batch_norm_forward(x)
    x[at] = bad
    y, _ = batch_norm_forward(x)
    assert np.all(np.isnan(y[:, 1]))
    np.testing.assert_array_equal(y[:, [0, 2]], clean[:, [0, 2]])


def test_a_side_of_weight_zero_does_not_count_even_if_it_is_nan():
    x = normal(15, (9, 2))
    running_mean, running_var = np.zeros(2), np.ones(2)
    batch_norm_forward(x * np.nan, running_mean=running_mean, running_var=running_var, momentum=1)
    assert list(running_mean) == [0, 0] and list(running_var) == [1, 1]
    running_mean[:] = np.nan
    batch_norm_forward(x, running_mean=running_mean, running_var=running_var, momentum=0)
    np.testing.assert_allclose(running_mean, x.mean(0), rtol=1e-13)


def test_overflow_of_the_result_is_infinity():
    for dtype in ("float16", "float32"):
        big = np.finfo(dtype).max
        y = batch_norm(np.full((2, 1), big, dtype), [0], [1], gamma=[10.0])
        assert np.all(y == np.inf) and y.dtype == dtype


def test_residual_of_another_layout_where_float32_would_overflow():
    def channels_outside(a):
        return np.ascontiguousarray(a.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)

    x, z = normal(16, (5, 4, 6, 7), std=1e-39, dtype=np.float32), normal(17, (5, 4, 6, 7), dtype=np.float32)
    expected = _reference.batch_norm(x, np.zeros(4), np.full(4, 1e-78), eps=0) + z
    for residual, out in ((z, None), (channels_outside(z), channels_outside(np.zeros_like(x)))):
        y = batch_norm(x, np.zeros(4), np.full(4, 1e-78), eps=0, residual=residual, out=out)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_out_that_overlaps_the_residual_is_as_if_it_had_been_copied():
    x, both = normal(18, (30, 4)), np.zeros((31, 4))
    both[:-1] = z = normal(19, (30, 4))
    expected = batch_norm(x, np.zeros(4), np.ones(4), residual=z.copy())
    batch_norm(x, np.zeros(4), np.ones(4), residual=both[:-1], out=both[1:])
    np.testing.assert_array_equal(both[1:], expected)


def test_negative_zero_is_the_same_everywhere():
    for shape in ((19, 2), (1, 2, 19), (19, 2, 1)):
        y = batch_norm(np.full(shape, -0.0), [0.0, 0.0], [1.0, 1.0], beta=[-0.0, 0.0], eps=0)
        assert np.all(np.signbit(y[:, 0]) == np.signbit(y[0, 0].flat[0])) and not np.any(np.signbit(y[:, 1]))


def test_empty_input_to_inference_is_empty():
    assert batch_norm(np.zeros((0, 3)), [0] * 3, [1] * 3).shape == (0, 3)
    assert batch_norm(np.zeros((2, 3, 0), np.float32), [0] * 3, [1] * 3).dtype == np.float32


@pytest.mark.parametrize("layout", [{}, {"channel_axis": -1}], ids=["axis 1", "last axis"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 3), (5, 0, 3), (0, 0), (5, 0), (5, 0, 0)], ids=str)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_batch_without_values_teaches_nothing(norm, shape, activation, layout):
    """As in PyTorch: the last batch of a loader, or the share of a process, may be empty."""
    forward, backward = (getattr(bncpu, f"{norm}_norm_{name}") for name in ("forward", "backward"))
    x = np.zeros(shape, np.float32)
    n = x.shape[layout.get("channel_axis", 1)]
    gamma, beta = parameters(n)
    running, out = abs(normal(73, (2, n))), np.zeros(shape, np.float32)
    before = running.copy()
    options = dict(residual=x, activation=activation, **layout)
    y, saved = forward(x, gamma, beta, running_mean=running[0], running_var=running[1], ddof=1, out=out, **options)
    assert y is out
    assert saved.count == 0
    np.testing.assert_array_equal(running, before)
    dx, dgamma, dbeta, dz = backward(x, x, saved, gamma, beta=beta, **options)
    assert dx.shape == dz.shape == shape
    assert dgamma.shape == dbeta.shape == (n,)
    assert not dgamma.any() and not dbeta.any()


def test_a_part_without_values_has_the_statistics_of_the_whole_batch():
    x, dy, running = normal(74, (6, 3)), normal(75, (6, 3)), [abs(normal(76, (2, 3))) for _ in range(2)]
    moments = merge(batch_norm_moments(x[:0]), batch_norm_moments(x))
    y, of_none = batch_norm_forward(x[:0], moments=moments, running_mean=running[0][0], running_var=running[0][1])
    _, saved = batch_norm_forward(x, running_mean=running[1][0], running_var=running[1][1])
    assert y.shape == (0, 3)
    assert of_none == saved
    np.testing.assert_array_equal(*running)
    sums = merge(batch_norm_backward_sums(dy[:0], x[:0], of_none), batch_norm_backward_sums(dy, x, saved))
    dx, *gradients = batch_norm_backward(dy[:0], x[:0], of_none, sums=sums)
    assert dx.shape == (0, 3)
    np.testing.assert_allclose(gradients, batch_norm_backward(dy, x, saved)[1:], rtol=1e-14)


def test_moments_of_parts_that_are_all_empty_teach_nothing():
    running = abs(normal(77, (2, 3)))
    before, moments = running.copy(), merge(batch_norm_moments(x := np.zeros((0, 3))), batch_norm_moments(x))
    y, saved = batch_norm_forward(x, moments=moments, running_mean=running[0], running_var=running[1])
    assert y.shape == (0, 3)
    np.testing.assert_array_equal(running, before)
    assert not batch_norm_backward(x, x, saved)[1].any()


# ---- backward ----

FUSED = {
    "plain": {},
    "relu": {"activation": "relu"},
    "residual": {"residual": True},
    "both": {"activation": "relu", "residual": True},
}


def case(shape, dtype, fused, mean=0.5):
    x, dy, z = normal(30, shape, mean, dtype=dtype), normal(31, shape, dtype=dtype), normal(32, shape, dtype=dtype)
    options = dict(FUSED[fused])
    if "residual" in options:
        options["residual"] = z
    return x, dy, options


def check_gradients(got, expected, dtype, scale=1.0):
    tolerance = TOLERANCE[np.dtype(dtype).name] * scale
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max(initial=0)))


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_the_reference(shape, dtype, layout, fused):
    x, dy, options = case(shape, dtype, fused)
    gamma, beta = parameters(shape[1])
    y, saved = batch_norm_forward(x, gamma, beta, **options)
    mine, theirs = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    before = mine.copy(), theirs.copy()
    got = batch_norm_backward(theirs, mine, saved, gamma, beta=beta, **options)
    expected = _reference.batch_norm_backward(dy, x, saved, gamma, beta=beta, **options)
    assert [a.dtype for a in got] == [x.dtype, np.float64, np.float64, *[x.dtype] * (len(got) - 3)]
    check_gradients(got, expected, dtype, 8)
    np.testing.assert_array_equal(mine, before[0])
    np.testing.assert_array_equal(theirs, before[1])
    frozen = batch_norm_backward_frozen(theirs, mine, saved._replace(kind="frozen"), gamma, beta=beta, **options)
    check_gradients(
        frozen, _reference.batch_norm_backward(dy, x, saved, gamma, beta=beta, frozen=True, **options), dtype, 8
    )
    if "activation" in options and dtype != "float16":  # whose y is rounded once more
        g = np.where(y > 0, dy, 0)
        np.testing.assert_allclose(got[2], np.moveaxis(g, 1, 0).reshape(shape[1], -1).sum(1, dtype=float), atol=1e-12)
        assert "residual" not in options or np.all(got[3] == g)
        assert np.all(frozen[0][y <= 0] == 0)


@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("layout", ["C order", "channels last", "every second row"])
def test_every_array_may_have_its_own_layout(layout, other):
    for shape in ((40, 4), (5, 4, 6, 3)):
        x, dy, options = case(shape, "float64", "both")
        _, saved = batch_norm_forward(x, **options)
        expected = batch_norm_backward(dy, x, saved, **options)
        out = LAYOUTS["every second row" if other == "read-only" else other](np.zeros(shape))
        options["residual"] = LAYOUTS[other](options["residual"])
        dx, dgamma, dbeta, dz = batch_norm_backward(LAYOUTS[other](dy), LAYOUTS[layout](x), saved, out=out, **options)
        assert dx is out
        np.testing.assert_allclose(dx, expected[0], rtol=0, atol=1e-14)
        np.testing.assert_allclose([dgamma, dbeta], expected[1:3], rtol=0, atol=1e-13)
        np.testing.assert_array_equal(dz, expected[3])


@pytest.mark.parametrize("channel_axis", [0, 2, -1])
def test_gradients_along_any_channel_axis(channel_axis):
    x, dy = normal(33, (3, 4, 5)), normal(34, (3, 4, 5))
    gamma, beta = parameters(x.shape[channel_axis])
    _, saved = batch_norm_forward(x, gamma, beta, channel_axis=channel_axis, activation="relu")
    options = dict(beta=beta, channel_axis=channel_axis, activation="relu")
    got = batch_norm_backward(dy, x, saved, gamma, **options)
    check_gradients(got, _reference.batch_norm_backward(dy, x, saved, gamma, **options), "float64")


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("shape", [(40, 4), (12, 4, 3)], ids=str)
def test_overlapping_out_of_a_gradient_is_as_if_everything_had_been_copied(shape, fused):
    x, dy, options = case(shape, "float64", fused)
    _, saved = batch_norm_forward(x, **options)
    expected = batch_norm_backward(dy, x, saved, **options)
    names = ("dy", "x", *(["residual"] if "residual" in options else []))
    for name in names:
        for shift in (0, 1):
            both = np.concatenate([np.zeros((1, *shape[1:])), {"dy": dy, "x": x, **options}[name]])
            a, out = both[1:], both[1 - shift : len(both) - shift]
            arrays = {"dy": dy, "x": x, **options, name: a}
            got = batch_norm_backward(arrays.pop("dy"), arrays.pop("x"), saved, out=out, **arrays)
            assert got[0] is out
            for mine, theirs in zip(got, expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradients_beyond_the_range_of_float32_coefficients(scale, dtype):
    x, dy = normal(35, (500, 3), std=scale, dtype=dtype), normal(36, (500, 3), dtype=dtype)
    gamma = np.array([1.0, 2.0, 3.0])
    y, saved = batch_norm_forward(x, gamma, eps=0, activation="relu")
    dx, dgamma, dbeta = batch_norm_backward(dy, x, saved, gamma, activation="relu")
    expected = _reference.batch_norm_backward(np.where(y > 0, dy, 0), x, saved, gamma)
    check_gradients((dx * scale, dgamma, dbeta), (expected[0] * scale, *expected[1:]), dtype)


@pytest.mark.parametrize("data_mean", [-1e4, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_a_shifted_batch_are_exact_to_rounding(dtype, data_mean):
    x, dy = normal(37, (16, 5, 30), mean=data_mean, dtype=dtype), normal(38, (16, 5, 30), dtype=dtype)
    _, saved = batch_norm_forward(x)
    # The reference, too, knows what rounding took from the mean.
    check_gradients(batch_norm_backward(dy, x, saved), _reference.batch_norm_backward(dy, x, saved), dtype)


def test_relu_stops_exactly_where_the_result_is_not_positive():
    # The middle value is the mean as float64 rounds it: its result is what that rounding took.
    for x in (np.array([[0.1], [0.2], [0.3]]), np.arange(12.0).reshape(6, 2) * 0.1, normal(39, (4000, 3), mean=1e9)):
        y, saved = batch_norm_forward(x, activation="relu")
        frozen = saved._replace(kind="frozen")
        dx = batch_norm_backward_frozen(np.ones_like(x), x, frozen, activation="relu")[0]
        np.testing.assert_array_equal(dx > 0, y > 0)


def test_the_gradient_of_relu_passes_nan_and_stops_at_zero(isa):
    x = np.array([[1.0, np.nan], [-1.0, 1.0], [0.0, 2.0]])
    saved = SavedStatistics(np.zeros(2), np.ones(2))
    dx, _, dbeta = batch_norm_backward_frozen(np.ones_like(x), x, saved, activation="relu")
    np.testing.assert_array_equal(dx[:, 0], [1, 0, 0])
    assert dbeta[0] == 1
    # Where the residual alone is NaN, nothing else of the gradient is.
    x, z = np.zeros((20, 3, 9)), np.tile([np.nan, 1.0, -1.0, 0.0, np.nan, 2.0, -2.0, 3.0, 5.0], (20, 3, 1))
    saved = SavedStatistics(np.zeros(3), np.ones(3))
    dx, _, dbeta, dz = batch_norm_backward_frozen(np.ones_like(x), x, saved, residual=z, activation="relu")
    for gradient in (dx, dz):
        np.testing.assert_array_equal(gradient, np.broadcast_to([1, 1, 0, 0, 1, 1, 0, 1, 1], x.shape))
    np.testing.assert_array_equal(dbeta, [120] * 3)


def test_a_constant_channel_has_no_gradient_with_eps_0():
    x, dy = np.full((50, 2), 7.1), normal(40, (50, 2))
    _, saved = batch_norm_forward(x, eps=0)
    dx, dgamma, dbeta = batch_norm_backward(dy, x, saved)
    assert not dx.any()
    assert not dgamma.any()
    np.testing.assert_allclose(dbeta, dy.sum(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_of_a_gradient_stay_in_their_channel(bad):
    x, dy = normal(41, (40, 3, 5)), normal(42, (40, 3, 5))
    _, saved = batch_norm_forward(x)
    clean = batch_norm_backward(dy, x, saved)
    dy[3, 1, 2] = bad
    dx, dgamma, dbeta = batch_norm_backward(dy, x, saved)
    assert not np.isfinite(dbeta[1])
    np.testing.assert_array_equal(dx[:, [0, 2]], clean[0][:, [0, 2]])
    np.testing.assert_array_equal(dgamma[[0, 2]], clean[1][[0, 2]])


def test_a_sample_changes_the_gradient_of_another_but_not_with_frozen_statistics():
    x, dy = normal(43, (6, 3)), np.zeros((6, 3))
    dy[0] = 1
    _, saved = batch_norm_forward(x)
    assert np.all(batch_norm_backward(dy, x, saved)[0][1:] != 0)
    assert not np.any(batch_norm_backward_frozen(dy, x, SavedStatistics(*saved))[0][1:])


@given(st.integers(0, 10**6), st.integers(2, 40), st.booleans())
def test_gradients_are_orthogonal_to_shifts_and_scalings_of_the_batch(seed, n, planes):
    """y does not change with x + c, nor (eps=0) with c * x: so dx sums to 0, and with x to 0, in each channel."""
    shape = (n, 3, 4) if planes else (n, 3)
    x, dy = normal(seed, shape, mean=2.0), normal(seed + 1, shape)
    _, saved = batch_norm_forward(x, eps=0)
    dx = batch_norm_backward(dy, x, saved)[0]
    others = (0, 2) if planes else 0
    # Sums of rounding errors of terms of at most this size.
    bound = 1e-14 * np.sum(np.abs(dx) + saved.invstd[:, None] if planes else np.abs(dx) + saved.invstd)
    assert np.all(np.abs(dx.sum(axis=others)) <= bound)
    assert np.all(np.abs((dx * x).sum(axis=others)) <= bound * np.abs(x).max())


# ---- two phases ----


@given(st.integers(0, 10**6), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.booleans())
def test_parts_of_a_batch_give_the_results_of_the_whole(seed, sizes, planes):
    shape = (sum(sizes) + 1, 3, 5) if planes else (sum(sizes) + 1, 3)
    x, dy, z = normal(seed, (3, *shape), mean=3.0)
    gamma, beta = parameters(3, seed)
    options = dict(activation="relu", residual=z)
    y, saved = batch_norm_forward(x, gamma, beta, **options)
    expected = batch_norm_backward(dy, x, saved, gamma, beta=beta, **options)

    cuts = np.cumsum(sizes)
    parts = list(zip(*(np.split(a, cuts) for a in (x, dy, z)), strict=True))
    moments = merge(*(batch_norm_moments(part) for part, *_ in parts))
    results = [batch_norm_forward(x, gamma, beta, moments=moments, activation="relu", residual=z) for x, _, z in parts]
    np.testing.assert_allclose(np.concatenate([y for y, _ in results]), y, rtol=0, atol=1e-13)
    whole = results[0][1]
    np.testing.assert_allclose(whole.mean, saved.mean, rtol=1e-14)
    np.testing.assert_allclose(whole.invstd, saved.invstd, rtol=1e-13)

    common = dict(beta=beta, activation="relu")
    sums = merge(*(batch_norm_backward_sums(dy, x, saved, gamma, residual=z, **common) for x, dy, z in parts))
    some = [batch_norm_backward(dy, x, saved, gamma, sums=sums, residual=z, **common) for x, dy, z in parts]
    dx, _, _, dz = map(np.concatenate, zip(*some, strict=True))
    np.testing.assert_allclose(dx, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(dz, expected[3])
    for _, dgamma, dbeta, _ in some:
        np.testing.assert_allclose(dgamma, expected[1], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(dbeta, expected[2], rtol=1e-12, atol=1e-12)


def test_running_statistics_move_towards_those_of_the_whole_batch():
    x = normal(44, (30, 3), mean=5.0)
    running, alone = [np.zeros(3), np.ones(3)], [np.zeros(3), np.ones(3)]
    batch_norm_forward(x, running_mean=alone[0], running_var=alone[1], ddof=1)
    moments = merge(*(batch_norm_moments(part) for part in np.array_split(x, 4)))
    batch_norm_forward(x[:1], running_mean=running[0], running_var=running[1], ddof=1, moments=moments)
    np.testing.assert_allclose(running, alone, rtol=1e-14)


def test_one_value_is_enough_for_a_part_but_not_for_the_whole():
    x = normal(45, (2, 3))
    moments = merge(batch_norm_moments(x[:1]), batch_norm_moments(x[1:]))
    y = np.concatenate([batch_norm_forward(row[None], moments=moments)[0] for row in x])
    np.testing.assert_allclose(y, batch_norm_forward(x)[0], rtol=1e-13)
    with pytest.raises(ValueError, match="at least 2 values per channel, got 1"):
        batch_norm_forward(x[:1], moments=batch_norm_moments(x[:1]))


def test_collecting_changes_and_allocates_nothing_of_the_size_of_the_data():
    x, dy = normal(46, (200_000, 4)), normal(47, (200_000, 4))
    before = x.copy(), dy.copy()
    _, saved = batch_norm_forward(x)
    tracemalloc.start()
    moments = batch_norm_moments(x)
    sums = batch_norm_backward_sums(dy, x, saved, residual=x)
    assert tracemalloc.get_traced_memory()[1] < x.nbytes / 20
    tracemalloc.stop()
    assert all(a.shape == (4,) and a.dtype == np.float64 for a in (*moments, *sums))
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(dy, before[1])


def test_merge_refuses_what_does_not_belong_together():
    a, b = batch_norm_moments(normal(48, (5, 3))), batch_norm_moments(normal(49, (5, 2)))
    sums = BackwardSums(*np.zeros((3, 3)))
    for parts, message in (
        ((), "got nothing"),
        ((a, sums), "BackwardSums, Moments"),
        ((a, tuple(a)), "Moments, tuple"),
    ):
        with pytest.raises(TypeError, match=message):
            merge(*parts)
    with pytest.raises(ValueError, match=r"part 1's count must have shape \(3,\)"):
        merge(a, b)
    with pytest.raises(TypeError, match="part 0's mean must hold real numbers"):
        merge(a._replace(mean="abc"))
    halves = merge(*(Moments(*(np.asarray(m, np.float32) for m in a)) for _ in range(2)))
    assert all(m.dtype == np.float64 for m in halves)
    x = normal(50, (5, 3))
    with pytest.raises(TypeError, match="moments must be Moments, got BackwardSums"):
        batch_norm_forward(x, moments=sums)
    with pytest.raises(ValueError, match=r"moments.count must have shape \(3,\)"):
        batch_norm_forward(x, moments=b)
    with pytest.raises(TypeError, match="sums must be BackwardSums, got Moments"):
        batch_norm_backward(x, x, SavedStatistics(np.zeros(3), np.ones(3)), sums=a)


# ---- what is refused, and what is not ----


@pytest.mark.parametrize("name", ["moments", "sums"])
def test_moments_and_sums_of_less_than_the_batch_are_refused(name):
    x = normal(57, (6, 3))
    _, saved = batch_norm_forward(x)
    message = f"{name} must be merged from all parts of the batch: x has 6 values per channel, {name}.count is 2"
    with pytest.raises(ValueError, match=message):
        if name == "moments":
            batch_norm_forward(x, moments=batch_norm_moments(x[:2]))
        else:
            batch_norm_backward(x, x, saved, sums=batch_norm_backward_sums(x[:2], x[:2], saved))


@pytest.mark.parametrize("name", ["gamma", "beta", "x", "residual", "out", "running_var"])
@pytest.mark.parametrize("function", [batch_norm_forward, bncpu.instance_norm_forward])
def test_running_arrays_share_memory_with_no_other_argument(function, name):
    x, running_mean = normal(58, (4, 3, 5)), np.zeros(3)
    arguments = dict(x=x, gamma=np.ones(3), beta=np.ones(3), residual=x, out=x.copy(), running_mean=running_mean,
                     running_var=np.ones(3))  # fmt: skip
    before = pickle.dumps(arguments)
    function(**pickle.loads(before))
    shared = arguments[name] if arguments[name].ndim == 1 else arguments[name][0, :, 0]
    with pytest.raises(ValueError, match=f"running_mean and {'x' if name == 'residual' else name} must not share"):
        function(**arguments | {"running_mean": shared})


@pytest.mark.parametrize("name", ["running_mean", "gamma"])
def test_masked_arrays_are_refused_wherever_their_mask_would_be_ignored(name):
    arguments = {
        "running_mean": np.zeros(3),
        "running_var": np.ones(3),
        name: np.ma.masked_array(np.ones(3), [1, 0, 0]),
    }
    with pytest.raises(TypeError, match=f"{name} must .*MaskedArray"):
        batch_norm_forward(normal(59, (4, 3)), **arguments)


def test_what_overflows_is_infinity_without_a_warning():
    running = np.zeros(2, np.float16), np.ones(2, np.float16)
    x = normal(60, (50, 2, 3), std=1e5)
    batch_norm_forward(x, running_mean=running[0], running_var=running[1])
    assert np.all(np.isinf(running[1]))
    bncpu.instance_norm_forward(x, running_mean=running[0], running_var=running[1])
    dy = x.copy()
    dy[0, 0, 0] = np.inf
    for forward, backward, arguments in (
        (batch_norm_forward, batch_norm_backward, ()),
        (bncpu.group_norm_forward, bncpu.group_norm_backward, (2,)),
        (bncpu.layer_norm_forward, bncpu.layer_norm_backward, (3,)),
    ):
        n = 3 if arguments == (3,) else 2
        for gamma in (np.ones(n), np.full(n, np.inf), np.full(n, 1e300)):
            _, saved = forward(x, *arguments, gamma)
            assert not np.isfinite(backward(dy, x, saved, gamma)[0][0, 0]).any()


@pytest.mark.parametrize("function", [batch_norm_forward, bncpu.instance_norm_forward])
def test_results_that_underflow_are_written_whatever_numpy_is_told_to_raise(function):
    x = normal(61, (5, 3, 4), dtype=np.float16)
    results = []
    for told in ({}, {"all": "raise"}):
        running_mean, running_var, out = (np.full(shape, 6e-8, np.float16) for shape in (3, 3, x.shape))
        with np.errstate(**told):
            function(x, gamma=[1e-6, 1e-4, 1], running_mean=running_mean, running_var=running_var, out=out)
        results.append((running_mean, running_var, out))
    assert all(map(same_bits, *results))
    assert np.all(np.abs(results[0][2][:, 0]) < np.finfo(np.float16).tiny)


def test_the_sums_of_merged_gradients_do_not_depend_on_the_other_channels():
    parts = [BackwardSums(*normal(k, (3, 2))) for k in range(100)]
    whole = merge(*parts)
    alone = merge(*(BackwardSums(*(a[:1] for a in part)) for part in parts))
    for a, b in zip(whole, alone, strict=True):
        assert a[0] == b[0]


SAVED = SavedStatistics(np.zeros(3), np.ones(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(dy=np.zeros((5, 2))), ValueError, r"dy must have the shape of the input, \(5, 3\); got \(5, 2\)"),
        (dict(dy=np.zeros((5, 3), "f4")), TypeError, "dy must be float64 like the input, got float32"),
        (dict(dy=[[0.0] * 3] * 5), TypeError, "dy must be a NumPy array, got list"),
        (
            dict(saved=(np.zeros(3), np.ones(3))),
            TypeError,
            "saved must be the SavedStatistics of a forward pass, got tuple",
        ),
        (
            dict(saved=SavedStatistics(np.zeros(2), np.ones(2))),
            ValueError,
            r"saved.mean must have shape \(3,\), one value",
        ),
        (dict(saved=SavedStatistics(None, np.ones(3))), ValueError, "saved.mean must be the mean of the forward pass"),
        (dict(saved=SavedStatistics(np.zeros(3), None)), ValueError, "saved.invstd must be that of the forward pass"),
        (dict(gamma=np.ones(2)), ValueError, r"gamma must have shape \(3,\)"),
        (dict(beta="abc"), TypeError, "beta must hold real numbers"),
        (dict(activation="gelu"), ValueError, "activation must be None or 'relu'"),
        (dict(residual=np.zeros((5, 3, 1))), ValueError, "residual must have the shape"),
        (dict(out=np.zeros((5, 3), "f4")), TypeError, "out must be float64"),
        (dict(channel_axis=2), ValueError, "channel_axis must name an axis"),
        (dict(n_threads=0), ValueError, "n_threads == 0, must be >= 1"),
    ],
)
def test_a_backward_pass_names_the_argument_it_refuses(arguments, error, message):
    given = {"dy": np.zeros((5, 3)), "x": normal(54, (5, 3)), "saved": SAVED, **arguments}
    out = np.zeros((5, 3)) if "out" not in arguments else None
    for function in (batch_norm_backward, batch_norm_backward_frozen):
        with pytest.raises(error, match=message):
            function(
                given["dy"],
                given["x"],
                given["saved"],
                **{"out": out, **{k: v for k, v in given.items() if k not in ("dy", "x", "saved")}},
            )
    assert out is None or not out.any()


def test_empty_input_has_an_empty_gradient():
    for shape in ((0, 3), (5, 0), (2, 3, 0)):
        x = np.zeros(shape)
        saved = SavedStatistics(np.zeros(shape[1]), np.ones(shape[1]))
        dx, dgamma, dbeta = batch_norm_backward(x, x, saved)
        assert dx.shape == shape
        assert not dgamma.any()
        assert not dbeta.any()
    assert not merge(batch_norm_moments(np.zeros((0, 3))), Moments(*np.zeros((4, 3)))).count.any()


def test_functions_of_one_pass_share_their_arguments():
    """Names, defaults and types of what means the same."""
    for functions in (
        (batch_norm, batch_norm_forward),
        (batch_norm_backward, batch_norm_backward_frozen, batch_norm_backward_sums),
    ):
        first, *others = (inspect.signature(f).parameters for f in functions)
        for other in others:
            for name in first.keys() & other.keys():
                assert first[name] == other[name]
    assert list(inspect.signature(batch_norm_backward).parameters)[:4] == ["dy", "x", "saved", "gamma"]
    names = {name for name, a in vars(bncpu).items() if "_norm" in name and inspect.isfunction(a)}
    assert set(bncpu.__all__) >= names | {"Moments", "BackwardSums", "SavedStatistics", "merge"}
