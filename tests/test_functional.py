"""batch_norm and batch_norm_forward, against the reference and golden values from PyTorch."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from arrays import DTYPES, LAYOUTS, normal, same_bits

import bncpu
from bncpu import _reference, batch_norm, batch_norm_forward

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


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
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
    for shape in ((0, 0), (5, 0), (5, 0, 0)):
        assert batch_norm_forward(np.zeros(shape))[0].shape == shape
    with pytest.raises(ValueError, match="got 0"):
        batch_norm_forward(np.zeros((0, 2, 3)))
    assert batch_norm(np.zeros((0, 3)), [0] * 3, [1] * 3).shape == (0, 3)
    assert batch_norm(np.zeros((2, 3, 0), np.float32), [0] * 3, [1] * 3).dtype == np.float32


GOLDEN = json.loads((Path(__file__).parent / "data" / "torch_batch_norm.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: c["name"])
def test_equals_pytorch(case):
    """Golden values of PyTorch's batch_norm in float64; its momentum is 1 minus ours and its ddof is 1."""
    x = np.array(case["x"])
    running_mean, running_var = np.array(case["running_mean"]), np.array(case["running_var"])
    gamma, beta = case["weight"], case["bias"]
    inference = batch_norm(x, running_mean, running_var, gamma, beta, eps=case["eps"])
    np.testing.assert_allclose(inference, case["inference"], rtol=1e-12, atol=1e-13)
    y, _saved = batch_norm_forward(
        x, gamma, beta, running_mean=running_mean, running_var=running_var,
        momentum=1 - case["momentum"], ddof=1, eps=case["eps"],
    )  # fmt: skip
    np.testing.assert_allclose(y, case["training"], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(running_mean, case["running_mean_after"], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(running_var, case["running_var_after"], rtol=1e-13)


def test_both_functions_share_their_arguments():
    inference = inspect.signature(batch_norm).parameters
    training = inspect.signature(batch_norm_forward).parameters
    shared = ["x", "gamma", "beta", "eps", "channel_axis", "activation", "residual", "out", "n_threads"]
    for name in shared:
        assert inference[name].default == training[name].default
        assert inference[name].annotation == training[name].annotation
    assert set(bncpu.__all__) >= {"batch_norm", "batch_norm_forward", "SavedStatistics"}
