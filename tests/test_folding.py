"""Folded layers: one layer gives what the layer and the batch norm behind it give."""

import itertools
import re

import numpy as np
import pytest
from arrays import LAYOUTS, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate

from bncpu import _reference, fold_conv, fold_linear


def statistics(n_channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n_channels), rng.uniform(0.1, 9, n_channels), *rng.normal(size=(2, n_channels))


def assert_close(layer, weight, bias, folded, new_bias, x, channel_axis, per):
    """The folded layer against layer and batch norm in float64, errors relative to the sum of absolute terms."""
    old = np.zeros(len(new_bias)) if bias is None else bias
    expected = _reference.batch_norm(layer(x, weight, old), *per, channel_axis=channel_axis)
    mean, var, gamma, beta = per
    terms = (np.abs(old) + np.abs(mean)) * np.abs(gamma / np.sqrt(var + 1e-5)) + np.abs(beta)  # of the bias
    error = np.abs(layer(x, folded, new_bias) - expected) / layer(np.abs(x), np.abs(folded), terms)
    # Beside the rounding of the weights, both sides add up in float64, one term for each weight.
    assert error.max() <= np.finfo(folded.dtype).eps + weight.size * np.finfo(np.float64).eps


def convolve(x, weight, bias, groups=1):
    """PyTorch's convolution of (N, in, ...) with (out, in / groups, ...), valid positions, in float64."""
    n_out, per_group = weight.shape[:2]
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    out = []
    for sample, o in itertools.product(x, range(n_out)):
        first = o // (n_out // groups) * per_group
        out.append(
            sum(correlate(sample[first + i], weight[o, i], mode="valid", method="direct") for i in range(per_group))
        )
    out = np.array(out).reshape(len(x), n_out, *out[0].shape)
    return out + np.reshape(bias, (-1,) + (1,) * (x.ndim - 2))


def transposed(x, weight, bias, groups=1):
    """PyTorch's transposed convolution of (N, in, ...) with (in, out / groups, ...), stride 1, by its definition."""
    first, (n_in, n_out), size = x.shape[2:], weight.shape[:2], weight.shape[2:]
    y = np.zeros((len(x), groups * n_out, *np.add(first, size) - 1))
    for i, at in itertools.product(range(n_in), np.ndindex(*size)):
        outputs = slice(n_out * (i // (n_in // groups)), n_out * (i // (n_in // groups) + 1))
        where = (slice(None), outputs, *(slice(k, k + n) for k, n in zip(at, first, strict=True)))
        y[where] += x[:, i : i + 1] * weight[i][:, *at].reshape(1, -1, *[1] * len(size))
    return y + np.reshape(bias, (-1,) + (1,) * len(size))


def linear(x, weight, bias):
    return x @ weight.astype(np.float64).T + bias


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channel_axis", [0, -1, 1, None])
def test_a_folded_linear_layer_is_the_layer_and_the_batch_norm(channel_axis, dtype, bias):
    weight, per, x = normal(1, (4, 7), dtype=dtype), statistics(4), normal(2, (9, 7))
    stored = weight.T if channel_axis in (-1, 1) else weight
    old = normal(3, 4, dtype=dtype) if bias else None
    folded, new_bias = fold_linear(stored, old, *per, channel_axis=channel_axis)
    assert folded.dtype == new_bias.dtype == dtype
    assert folded.shape == stored.shape
    assert_close(linear, weight, old, folded.T if channel_axis in (-1, 1) else folded, new_bias, x, 1, per)


# name -> shape of PyTorch's weight and number of groups
CONVOLUTIONS = {
    "1-D": ((4, 3, 5), 1),
    "2-D": ((4, 3, 3, 2), 1),
    "3-D": ((4, 3, 2, 1, 3), 1),
    "grouped": ((6, 2, 3, 3), 3),
    "depthwise": ((5, 1, 3, 3), 5),
    "depthwise with multiplier": ((6, 1, 2, 2), 3),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("keras", [False, True], ids=["PyTorch", "Keras"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_folded_convolution_is_the_convolution_and_the_batch_norm(case, keras, dtype, bias):
    shape, groups = CONVOLUTIONS[case]
    weight, per = normal(4, shape, dtype=dtype), statistics(shape[0])
    x = normal(5, (2, shape[1] * groups, *(n + 2 for n in shape[2:])))
    old = normal(6, shape[0]) if bias else None
    stored = weight.transpose(*range(2, weight.ndim), 1, 0) if keras else weight
    folded, new_bias = fold_conv(stored, old, *per, channel_axis=-1 if keras else 0)
    assert folded.dtype == new_bias.dtype == dtype
    assert folded.shape == stored.shape
    folded = folded.transpose(-1, -2, *range(weight.ndim - 2)) if keras else folded
    assert_close(lambda *a: convolve(*a, groups), weight, old, folded, new_bias, x, 1, per)


def test_a_depthwise_keras_kernel_has_its_output_channels_on_two_axes():
    weight, per = normal(7, (3, 2, 4, 2)), statistics(8)  # (height, width, in, multiplier)
    for channel_axis in ((-2, -1), (2, 3), None):
        folded, new_bias = fold_conv(weight, None, *per, channel_axis=channel_axis)
        torch = [w.reshape(3, 2, 8).transpose(2, 0, 1)[:, None] for w in (weight, folded)]
        x = normal(8, (2, 4, 5, 5))
        assert_close(lambda *a: convolve(*a, groups=4), torch[0], None, torch[1], new_bias, x, 1, per)


def test_a_transposed_convolution_is_folded_along_the_axis_that_is_named():
    weight, per = normal(9, (3, 5, 4)), statistics(5)  # PyTorch: (in, out, length)
    folded, new_bias = fold_conv(weight, None, *per, channel_axis=1)
    x = normal(10, (2, 3, 6))
    assert_close(transposed, weight, None, folded, new_bias, x, 1, per)
    swapped, _ = fold_conv(weight.transpose(2, 1, 0), None, *per, channel_axis=-2)  # Keras: (length, out, in)
    np.testing.assert_array_equal(swapped.transpose(2, 1, 0), folded)
    with pytest.raises(ValueError, match=r"mean must have shape \(5,\), one value per channel; got \(10,\)"):
        fold_conv(weight, None, *statistics(10), channel_axis=1)  # two groups


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((4, 3, 2), 2), ((6, 2, 3, 2), 3), ((4, 1, 2, 2), 4), ((3, 5, 2, 2), 1), ((2, 3, 2, 1, 2), 2)],
    ids=str,
)
def test_a_grouped_transposed_convolution_is_the_convolution_and_the_batch_norm(shape, groups, bias):
    n_out = shape[1] * groups
    weight, per, x = normal(23, shape), statistics(n_out), normal(24, (2, shape[0], *[3] * (len(shape) - 2)))
    old = normal(25, n_out) if bias else None
    folded, new_bias = fold_conv(weight, old, *per, channel_axis=1, groups=groups)
    assert folded.shape == shape
    assert_close(lambda *a: transposed(*a, groups=groups), weight, old, folded, new_bias, x, 1, per)


def test_groups_of_other_convolutions_do_not_matter():
    weight, per = normal(26, (6, 2, 3, 3)), statistics(6)
    expected = fold_conv(weight, None, *per, channel_axis=0)
    for axis in (0, None):
        assert all(map(same_bits, fold_conv(weight, None, *per, channel_axis=axis, groups=2), expected))
    depthwise = normal(27, (6, 1, 3, 3))  # transposed or not, each channel is scaled by its own number
    expected = fold_conv(depthwise, None, *per, channel_axis=0)
    for axis in (0, 1, None):
        assert all(map(same_bits, fold_conv(depthwise, None, *per, channel_axis=axis, groups=6), expected))


@pytest.mark.parametrize(
    ("shape", "n", "groups", "readings"),
    [
        ((3, 2, 2, 2), 2, 1, "-1 (Keras) or 1 (PyTorch, transposed)"),
        ((5, 2, 4, 3), 2, 1, "1 (PyTorch, transposed)"),
        ((3, 3, 6, 2), 6, 1, "-2 (Keras, transposed)"),
        ((4, 3, 2), 6, 2, "(-2, -1) (Keras, depthwise) or 1 (PyTorch, transposed)"),
        ((3, 5, 4), 5, 1, "1 (PyTorch, transposed)"),
    ],
    ids=str,
)
def test_a_weight_that_may_be_of_a_transposed_convolution_needs_its_axis(shape, n, groups, readings):
    """Kernel positions or input channels would be scaled, in silence."""
    message = (
        f"channel_axis must be given, as {n} output channels in a weight of shape {shape} may be on axis {readings}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fold_conv(normal(28, shape), None, *statistics(n), groups=groups)


@pytest.mark.parametrize(("shape", "n", "axis"), [((4, 4, 3, 3), 4, 0), ((3, 3, 6, 6), 6, -1), ((8, 2, 3, 3), 8, 0)])
def test_as_many_input_as_output_channels_are_taken_for_an_ordinary_convolution(shape, n, axis):
    weight, per = normal(29, shape), statistics(n)
    assert all(map(same_bits, fold_conv(weight, None, *per), fold_conv(weight, None, *per, channel_axis=axis)))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.data())
@settings(deadline=None, max_examples=60)
def test_every_output_channel_is_scaled_by_its_own_number(shape, data):
    weight = normal(11, shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    pair = data.draw(st.booleans()) and len(shape) > 2 and (axis % len(shape)) < len(shape) - 1
    axes = [axis % len(shape), axis % len(shape) + 1] if pair else [axis % len(shape)]
    n_channels = int(np.prod([shape[a] for a in axes]))
    mean, var, gamma, beta = statistics(n_channels)
    bias = normal(12, n_channels)
    function = fold_linear if len(shape) == 2 else fold_conv
    folded, new_bias = function(
        weight, bias, mean, var, gamma, beta, eps=0.25, channel_axis=tuple(axes) if pair else axis
    )
    expected = weight.copy()
    for c, at in enumerate(np.ndindex(*(shape[a] for a in axes))):
        index = [slice(None)] * len(shape)
        for a, i in zip(axes, at, strict=True):
            index[a] = i
        expected[tuple(index)] *= gamma[c] / np.sqrt(var[c] + 0.25)
    np.testing.assert_allclose(folded, expected, rtol=4 * np.finfo(np.float64).eps)
    size = (np.abs(bias) + np.abs(mean)) * np.abs(gamma) / np.sqrt(var + 0.25) + np.abs(beta)
    error = np.abs(new_bias - ((bias - mean) * gamma / np.sqrt(var + 0.25) + beta))
    assert np.all(error <= 4 * np.finfo(np.float64).eps * size)


@pytest.mark.parametrize(
    ("function", "shape", "n", "readings"),
    [
        (fold_linear, (4, 4), 4, r"0 \(PyTorch, scikit-learn\) or -1 \(Keras\)"),
        (fold_conv, (3, 3, 8, 3), 3, r"0 \(PyTorch\) or -1 \(Keras\)"),
        (fold_conv, (9, 4, 3, 3), 9, r"0 \(PyTorch\) or \(-2, -1\) \(Keras, depthwise\)"),
        (fold_conv, (6, 6, 6), 6, r"0 \(PyTorch\) or -1 \(Keras\)"),
    ],
)
def test_an_ambiguous_shape_is_refused_with_its_readings(function, shape, n, readings):
    with pytest.raises(ValueError, match=rf"^channel_axis must be given, as {n} output channels.*axis {readings}$"):
        function(normal(13, shape), None, *statistics(n))
    function(normal(13, shape), None, *statistics(n), channel_axis=0)


def test_readings_that_mean_the_same_are_not_ambiguous():
    per = statistics(6)
    weight = normal(14, (3, 3, 1, 6))  # of one input channel: depthwise or not
    np.testing.assert_array_equal(fold_conv(weight, None, *per)[0], fold_conv(weight, None, *per, channel_axis=-1)[0])
    one = normal(15, (1, 1, 3, 3))
    np.testing.assert_array_equal(fold_conv(one, None, [1.0], [4.0], eps=0)[0], one / 2)


LINEAR, CONV, PER = normal(16, (3, 5)), normal(17, (3, 5, 2, 2)), statistics(3)

REFUSED = [
    (lambda: fold_linear(LINEAR.tolist(), None, *PER), TypeError, "weight must be a NumPy array, got list"),
    (lambda: fold_linear(LINEAR.astype(int), None, *PER), TypeError, "weight must be float16, .*got int64"),
    (lambda: fold_linear(np.ma.array(LINEAR), None, *PER), TypeError, "weight must be a NumPy array, got MaskedArray"),
    (
        lambda: fold_linear(CONV, None, *PER),
        ValueError,
        r"weight of a linear layer must have 2 dimensions, got shape \(3",
    ),
    (lambda: fold_conv(LINEAR, None, *PER), ValueError, "weight of a convolution must have 3 or 4 or 5 dimensions"),
    (lambda: fold_linear(LINEAR, None, *statistics(4)), ValueError, r"mean has values, 4, .*got shape \(3, 5\)"),
    (lambda: fold_conv(CONV, None, *statistics(7)), ValueError, r"on channel_axis 0 .*depthwise.*got shape \(3, 5, 2"),
    (lambda: fold_linear(LINEAR, None, *PER, channel_axis=1), ValueError, r"mean must have shape \(5,\).*got \(3,\)"),
    (lambda: fold_linear(LINEAR, None, *PER, channel_axis=2), ValueError, "channel_axis must name an axis of weight"),
    (lambda: fold_linear(LINEAR, None, *PER, channel_axis=0.0), TypeError, "channel_axis must be an integer or None"),
    (lambda: fold_linear(LINEAR, None, *PER, channel_axis=True), TypeError, "channel_axis must be an integer or None"),
    (
        lambda: fold_linear(LINEAR, None, *PER, channel_axis=(0, 1)),
        TypeError,
        "channel_axis must be an integer or None",
    ),
    (lambda: fold_conv(CONV, None, *PER, channel_axis=(0, 2)), ValueError, r"two adjacent ones in order, got \(0, 2\)"),
    (lambda: fold_conv(CONV, None, *PER, channel_axis=(-1, -2)), ValueError, "two adjacent ones in order"),
    (lambda: fold_conv(CONV, None, *PER, channel_axis=()), ValueError, "two adjacent ones in order"),
    (
        lambda: fold_conv(CONV, None, *PER, channel_axis=[0]),
        TypeError,
        "channel_axis must be an integer, two in a tuple",
    ),
    (
        lambda: fold_linear(LINEAR, [1.0], *PER),
        ValueError,
        r"bias must have shape \(3,\), one value per channel; got \(1",
    ),
    (lambda: fold_linear(LINEAR, ["a"] * 3, *PER), TypeError, "bias must hold real numbers"),
    (lambda: fold_linear(LINEAR, None, None, PER[1]), TypeError, r"mean must be an array of shape \(C,\), got None"),
    (lambda: fold_linear(LINEAR, None, None, PER[1], channel_axis=0), TypeError, "mean must be an array of shape"),
    (lambda: fold_linear(LINEAR, None, [1, [2]], PER[1]), ValueError, r"mean must have shape \(C,\)"),
    (lambda: fold_linear(LINEAR, None, PER[0][None], PER[1]), ValueError, r"mean must have shape \(3,\).*\(1, 3\)"),
    (lambda: fold_linear(LINEAR, None, PER[0], -PER[1]), ValueError, "var must not be negative"),
    (lambda: fold_linear(LINEAR, None, PER[0], None), TypeError, "var must be an array"),
    (lambda: fold_linear(LINEAR, None, *PER[:2], [1, 2]), ValueError, r"gamma must have shape \(3,\)"),
    (lambda: fold_conv(CONV, None, *PER[:2], beta=[1j] * 3), TypeError, "beta must hold real numbers"),
    (lambda: fold_conv(CONV, None, *PER, groups=0), ValueError, "groups == 0, must be >= 1"),
    (lambda: fold_conv(CONV, None, *PER, groups=1.5), TypeError, "groups must be an instance of"),
    (lambda: fold_conv(CONV, None, *PER, groups=None), TypeError, "groups must be an integer, got None"),
    (
        lambda: fold_conv(CONV, None, *statistics(10), channel_axis=1, groups=2),
        ValueError,
        "groups must divide the number of channels, 3; got 2",
    ),
    (lambda: fold_conv(CONV, None, *PER, channel_axis=0, groups=2), ValueError, "groups must divide"),
    (lambda: fold_conv(CONV, None, *PER, channel_axis=1, groups=3), ValueError, r"mean must have shape \(15,\)"),
    (lambda: fold_conv(CONV, None, *PER, eps=-1), ValueError, "eps == -1, must be >= 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_an_error_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64"])
def test_any_memory_layout_gives_the_same_and_is_not_written(layout, dtype):
    weight, bias = LAYOUTS[layout](normal(18, (3, 5, 2, 2)).astype(dtype)), normal(19, 3)
    arguments = [weight, bias, *PER]
    before = [a.copy() for a in arguments]
    folded, new_bias = fold_conv(*arguments)
    expected, expected_bias = fold_conv(np.ascontiguousarray(weight), bias, *PER)
    assert folded.dtype == new_bias.dtype == weight.dtype
    assert same_bits(folded, expected) and same_bits(new_bias, expected_bias)
    assert not any(np.shares_memory(folded, a) or np.shares_memory(new_bias, a) for a in arguments)
    assert all(same_bits(a, b) for a, b in zip(arguments, before, strict=True))


def test_the_identity_gives_the_weights_back():
    weight, bias = normal(20, (3, 5), dtype=np.float32), normal(21, 3, dtype=np.float32)
    folded, new_bias = fold_linear(weight, bias, np.zeros(3), np.ones(3), eps=0)
    assert same_bits(folded, weight) and same_bits(new_bias, bias)


def test_a_channel_of_variance_0_without_eps_becomes_beta():
    folded, new_bias = fold_linear(LINEAR, [5.0, 6.0, 7.0], [1e8, 2, 3], [0, 4, 0], [9, 1, 9], [0.1, 0.2, 0.3], eps=0)
    np.testing.assert_array_equal(folded[[0, 2]], 0)
    np.testing.assert_array_equal(new_bias, [0.1, 2.2, 0.3])


def test_integers_and_float64_statistics_of_float16_weights_are_exact_to_its_rounding():
    weight = normal(22, (3, 5), dtype=np.float16)
    with pytest.warns(RuntimeWarning, match="the folded (weight|bias) overflows float16: it is infinite") as told:
        folded, new_bias = fold_linear(weight, [1, 2, 3], [10**6, 0, 0], [1, 1, 0], [1, 70000, 1], eps=0)
    assert len(told) == 2
    assert same_bits(folded[0], weight[0])
    assert np.all(np.isinf(new_bias[:1])) and new_bias[2] == 0  # beyond float16
    exact = weight[1].astype(np.float64) * 70000
    np.testing.assert_array_equal(np.isinf(folded[1]), np.abs(exact) >= 65520)


def test_what_is_not_a_number_stays_in_its_channel():
    folded, new_bias = fold_linear(LINEAR, None, [0, np.inf, 0], [1, 1, np.nan], [np.inf, 1, 1])
    clean, clean_bias = fold_linear(LINEAR, None, [0, 0, 0], [1, 1, 1])
    np.testing.assert_array_equal(folded[1], clean[1])
    assert new_bias[1] == -np.inf and np.isnan(new_bias[2]) and np.all(np.isnan(folded[2]))
    assert clean_bias[1] == 0
