"""Statistics of badly conditioned data against exact fractions, within the bounds of numerical analysis.

The bound is that of shifted data, ``n kappa_s**2 u`` relative to the variance, where u is half of float64's epsilon
and kappa_s the condition number of the data less the shift: Chan, Golub & LeVeque (1983), "Algorithms for computing
the sample variance", The American Statistician 37(3), 242-247. The shift is a value of the data, no further than 8
standard deviations from the mean, or else the mean rounded, so that kappa_s does not grow with ``kappa = sqrt(1 +
mean**2 / var)`` before that is near 1 / u. Updating formulas have ``n kappa u``, textbook formulas ``n kappa**2 u``.
The mean is kept in two parts, so that its error is measured in standard deviations.
"""

from fractions import Fraction

import numpy as np
import pytest
from arrays import DTYPES, exact_moments, examples, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from bncpu import BatchNormTransformer, batch_norm_forward, batch_norm_moments

U = 2.0**-53


def bound(column, mean, var, farther=1):
    """Relative error that the variance may have, if the shift is as far off as any value, or a multiple of that."""
    farthest = max(abs(Fraction(float(x)) - mean) for x in (min(column), max(column))) * farther
    kappa2_shifted = 1 + min(float(farthest**2 / var), 64.0) + float(mean**2 / var) * U**2
    return len(column) * kappa2_shifted * U + 4 * U


def assert_exact(moments, columns):
    """Moments of some columns are those of exact arithmetic, to rounding."""
    for c, column in enumerate(columns):
        count, mean, m2 = exact_moments(column)
        var = m2 / count
        assert moments.count[c] == count
        got = Fraction(float(moments.mean[c])) + Fraction(float(moments.mean_lo[c]))
        # A sum of n deviations, of up to 8 standard deviations, has n roundings. Of the mean's own nothing is left.
        of_the_sum = (8 * len(column) + 4) * Fraction(U) * Fraction(float(var) ** 0.5)
        assert abs(got - mean) <= len(column) * Fraction(U) ** 2 * abs(mean) + of_the_sum
        assert abs(Fraction(float(moments.m2[c])) - m2) <= Fraction(bound(column, mean, var)) * m2


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("digits", range(13))
def test_the_variance_is_exact_to_rounding_up_to_a_condition_of_1e12(digits, order, isa):
    rng = np.random.default_rng(digits)
    # Integers about 10**digits have a standard deviation near 1 and are exact in float64.
    x = np.asarray(10.0**digits + rng.integers(-2, 3, (3000, 7)), order=order)
    assert_exact(batch_norm_moments(x), x.T)


@settings(max_examples=examples(60, 5000), deadline=None)
@given(st.integers(-300, 120), st.integers(0, 12), st.integers(2, 400), st.integers(0, 2**32 - 1))
def test_no_scale_and_no_shift_costs_digits(exponent, digits, n, seed):
    rng = np.random.default_rng(seed)
    x = np.ldexp(10.0**digits + rng.standard_normal((n, 3)), exponent)
    assert_exact(batch_norm_moments(x), x.T)
    streamed = BatchNormTransformer()
    for part in np.array_split(x, rng.integers(1, n + 1)):
        streamed.partial_fit(part)
    for c, column in enumerate(x.T):
        count, mean, m2 = exact_moments(column)
        # A batch's own mean may be as far on the other side.
        relative = bound(column, mean, m2 / count, farther=2) + 16 * U * streamed.n_batches_seen_
        assert abs(Fraction(float(streamed.running_var_[c])) * count - m2) <= Fraction(relative) * m2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_denormal_numbers_have_an_exact_mean_and_no_negative_variance(order, dtype):
    k = np.random.default_rng(1).integers(-1000, 1000, (500, 5))
    x = np.asarray(k * np.finfo(dtype).smallest_subnormal, dtype, order=order)
    found = batch_norm_moments(x)
    for c, column in enumerate(x.T):
        _, mean, m2 = exact_moments(column)
        smallest = Fraction(float(np.finfo(np.float64).smallest_subnormal))
        assert abs(Fraction(float(found.mean[c])) - mean) <= max(smallest, Fraction(4 * U * float(m2 / 500) ** 0.5))
        # Squares of float64's denormal numbers are 0; float32's have room.
        expected = Fraction(0) if dtype == np.float64 else m2
        assert abs(Fraction(float(found.m2[c])) - expected) <= 500 * Fraction(U) * expected
    y, _ = batch_norm_forward(x, beta=np.arange(5.0))
    np.testing.assert_allclose(y, np.broadcast_to(np.arange(5.0), y.shape), rtol=0, atol=1e-30)


def test_float32_near_its_largest_number_has_finite_exact_statistics():
    x = np.random.default_rng(2).uniform(-3e38, 3e38, (1000, 4)).astype(np.float32)
    assert_exact(batch_norm_moments(x), x.T)
    y, _ = batch_norm_forward(x, eps=0)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, (wide - wide.mean(0)) / wide.std(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n", [2, 3, 1000, 70_000])
def test_a_constant_column_of_any_size_is_constant(n, order, dtype):
    constants = np.array([s * 10.0**e / 3 for e in range(-40, 39, 6) for s in (1, -1)] + [0.0, -0.0, 1e8, 0.1], dtype)
    x = np.asarray(np.broadcast_to(constants, (n, len(constants))), order=order).copy(order)
    beta = np.linspace(-2, 2, len(constants))
    found = batch_norm_moments(x)
    assert not found.m2.any()
    assert same_bits(found.mean.astype(dtype) + dtype(0), constants + dtype(0))
    assert not found.mean_lo.any()
    streamed = BatchNormTransformer(beta=beta)
    for part in np.array_split(x, 2):
        streamed.partial_fit(part)
    assert not streamed.running_var_.any()
    for y in (batch_norm_forward(x, beta=beta)[0], streamed.transform(x)):
        np.testing.assert_array_equal(y, np.broadcast_to(beta.astype(dtype), y.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_million_rows_are_counted_summed_and_squared_exactly_to_rounding(dtype):
    n, far = 10_000_000, 4096
    pattern = np.arange(7, dtype=dtype)
    x = np.resize(far + np.stack([pattern, pattern[::-1] ** 2], axis=1), (n, 2))
    found = batch_norm_moments(x)
    times = [n // 7 + (k < n % 7) for k in range(7)]
    for c in range(2):
        values = [Fraction(float(v)) for v in far + (pattern, pattern[::-1] ** 2)[c]]
        mean = sum(t * v for t, v in zip(times, values, strict=True)) / n
        m2 = sum(t * (v - mean) ** 2 for t, v in zip(times, values, strict=True))
        assert found.count[c] == n
        got = Fraction(float(found.mean[c])) + Fraction(float(found.mean_lo[c]))
        assert abs(got - mean) <= Fraction(U * float(m2 / n) ** 0.5)
        # Far below n u = 1e-9: blocks, lanes and a pairwise merge.
        assert abs(Fraction(float(found.m2[c])) - m2) <= Fraction(1e-14) * m2
