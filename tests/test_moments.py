"""The algebra on O(channels) arrays, against exact fractions and the definitions in the reference."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
from arrays import exact_moments, hostile_columns, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from bncpu import _reference, moments
from bncpu.moments import BackwardSums, Moments

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
data_sets = st.lists(finite, min_size=1, max_size=30)


def moments_of(values, weights=None):
    """Moments from exact fractions, rounded once."""
    count, mean, m2 = exact_moments(values, weights)
    hi = float(mean)
    return Moments(*(np.array([v]) for v in (float(count), hi, float(mean - Fraction(hi)), float(m2))))


def exact_mean(m):
    return Fraction(float(m.mean[0])) + Fraction(float(m.mean_lo[0]))


@given(data_sets, data_sets)
def test_merge_equals_the_moments_of_the_union(a, b):
    got = moments.merge(moments_of(a), moments_of(b))
    count, mean, m2 = exact_moments(a + b)
    assert got.count[0] == count
    spread = max(a + b) - min(a + b)
    assert abs(float(mean - exact_mean(got))) <= 2.0**-50 * spread + 2.0**-100 * abs(float(mean))
    assert got.m2[0] == pytest.approx(float(m2), rel=1e-14, abs=1e-300)


@given(data_sets, data_sets)
def test_merge_does_not_depend_on_the_order_of_its_sides(a, b):
    one, other = moments.merge(moments_of(a), moments_of(b)), moments.merge(moments_of(b), moments_of(a))
    np.testing.assert_array_equal(one.count, other.count)
    np.testing.assert_allclose(one.m2, other.m2, rtol=1e-15)
    apart = (one.mean - other.mean) + (one.mean_lo - other.mean_lo)
    assert abs(apart[0]) <= 2.0**-51 * (max(a + b) - min(a + b))


@given(data_sets)
def test_merging_nothing_changes_nothing(a):
    m, nothing = moments_of(a), Moments.empty(1)
    for merged in (moments.merge(m, nothing), moments.merge(nothing, m)):
        assert merged.count == m.count
        assert merged.m2 == m.m2
        # The same number; half a unit may stand on either side of it.
        assert exact_mean(merged) == exact_mean(m)


def test_a_side_of_weight_zero_leaves_the_other_exactly_as_it_is():
    old = Moments(*(np.array([v]) for v in (0.0, 1e8, 0.25, 0.0)))
    new = Moments(*(np.array([v]) for v in (3.0, 0.1, 1e-18, 2.0)))
    assert moments.merge(old, new) == new
    assert moments.merge(new, old) == new


def test_empty_sides_stay_empty():
    merged = moments.merge(Moments.empty(2), Moments.empty(2))
    assert all(np.all(a == 0) for a in merged)
    assert np.all(np.isnan(moments.variance(merged)))


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4, 5, 8, 13, 100])
def test_merge_blocks_equals_the_moments_of_all(n_blocks):
    _, x = hostile_columns(n_blocks * 7, np.float64)
    parts = [[moments_of(column) for column in part.T] for part in np.split(x, n_blocks)]
    got = moments.merge_blocks(np.ascontiguousarray(np.moveaxis(np.array(parts)[..., 0], 2, 0)))
    for c in range(x.shape[1]):
        _, mean, exact_m2 = exact_moments(x[:, c])
        error = float(mean - Fraction(float(got.mean[c])) - Fraction(float(got.mean_lo[c])))
        assert abs(error) <= 2.0**-50 * x[:, c].std()
        assert got.m2[c] == pytest.approx(float(exact_m2), rel=1e-12)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 0.999])
def test_momentum_is_the_bias_corrected_average_of_batches(momentum, ddof):
    batches = [normal(k, (20, 3), mean=1e3 + 10 * k, std=1 + k) for k in range(50)]
    running = Moments.empty(3)
    for k, batch in enumerate(batches):
        count, mean, m2 = _reference.moments(batch[:, :, None])
        running = moments.update_momentum(running, Moments(count, mean, 0 * mean, m2), momentum, ddof)
        expected_mean, expected_var = _reference.running_momentum(batches[: k + 1], momentum, ddof)
        np.testing.assert_allclose(running.mean, expected_mean, rtol=1e-13)
        np.testing.assert_allclose(moments.variance(running), expected_var, rtol=1e-12)
    np.testing.assert_allclose(running.count, 1 - momentum**50, rtol=1e-13)


def test_momentum_leaves_a_channel_without_values_alone():
    running = Moments(*np.array([[0.5, 0.5], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]))
    batch = Moments(*np.array([[10.0, 0.0], [5.0, 0.0], [0.0, 0.0], [10.0, 0.0]]))
    updated = moments.update_momentum(running, batch, 0.9)
    assert [a[1] for a in updated] == [a[1] for a in running]
    assert updated.mean[0] != running.mean[0]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0.01, 1e4))
def test_halflife_does_not_depend_on_how_the_stream_is_cut(sizes, halflife):
    rows = normal(len(sizes), (sum(sizes), 2), mean=100.0)
    running, age, start = Moments.empty(2), np.zeros(2), 0
    for size in sizes:
        part = rows[start : start + size, :, None]
        count, mean, m2 = _reference.moments(part, moments.recency_weights(size, halflife))
        batch = Moments(count, mean, 0 * mean, m2)
        running, age = moments.update_halflife(running, age, batch, size, halflife)
        start += size
    mean, var = _reference.running_halflife(rows, halflife)
    np.testing.assert_allclose(running.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.variance(running), var, rtol=1e-10, atol=1e-12)


def test_inverse_std_of_a_constant_without_eps_is_zero():
    assert moments.inverse_std(np.array([0.0, 4.0]), 0.0).tolist() == [0.0, 0.5]


def test_running_statistics_fold_as_their_formulas_say():
    learned = np.array(
        [[0.0, 5.0, 5.0, 1.0], [0.0, 3.0, 1e8, 2.0], [0.0, 1e-17, 0.0, 0.0], [0.0, 20.0, 0.0, 0.0], [0] * 4]
    )
    gamma, beta = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, -1.0, 0.5])
    for eps, with_mean, with_std in ((0.0, True, True), (1e-3, True, False), (0.0, False, True), (0.5, False, False)):
        (mean, var, divisor, *folded), single = moments.fold_running(
            learned, None, 1.0, eps, with_mean, with_std, gamma, beta
        )
        np.testing.assert_array_equal(mean, [np.nan, 3, 1e8, 2])
        np.testing.assert_array_equal(var, [np.nan, 5, 0, np.nan])
        np.testing.assert_array_equal(divisor, [np.nan, np.sqrt(5 + eps), np.sqrt(eps) if eps else 1, np.nan])
        scale = gamma / divisor if with_std else gamma
        np.testing.assert_allclose(folded[0], mean if with_mean else np.zeros(4), rtol=0)
        np.testing.assert_allclose(folded[1], scale, rtol=1e-15)
        np.testing.assert_allclose(folded[2], beta - scale * with_mean * learned[2], rtol=1e-15)
        expected, fits = moments.rounded(moments.Coefficients(*folded), np.dtype(np.float32))
        assert fits is None
        np.testing.assert_array_equal(single, expected)


def test_near_constants_depend_on_how_many_values_are_behind_them():
    learned = np.array([[1.0, 1.0], [1e3, 1e3], [0.0, 0.0], [1e-18, 1e-18]])
    fold = lambda n: moments.fold_running(learned, n, 0.0, 0.0, True, True, None, None)[0][2]  # noqa: E731
    np.testing.assert_array_equal(fold(2), [1e-9, 1e-9])
    np.testing.assert_array_equal(fold(1e6), [1, 1])
    np.testing.assert_array_equal(fold(np.array([2, 10**6])), [1e-9, 1])
    learned[3] = 16385**2 * 2.0**-104 * 1e6
    np.testing.assert_allclose(fold(np.inf), 16385 * 2.0**-52 * 1e3, rtol=1e-15)
    np.testing.assert_array_equal(fold(16386), fold(np.inf))


def test_coefficients_beyond_float32_are_not_rounded_to_it():
    learned = np.array([[2.0, 2.0], [1.0, 1e35], [0.0, 0.0], [1.0, 1.0]])
    assert moments.fold_running(learned, None, 0.0, 0.0, True, True, None, None)[1] is None


def test_variance_needs_more_values_than_ddof():
    m = Moments(*np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 3.0]]))
    np.testing.assert_array_equal(moments.variance(m, ddof=1), [np.nan, 3.0])


@pytest.mark.parametrize(
    ("mean", "scale", "shift"),
    [(0, 1e-38, 0), (0, 1e38, 0), (0, np.inf, 0), (1e31, 1, 0), (0, 1, 1e38), (1e25, 1e25, 0)],
)
def test_float32_coefficients_outside_its_range_are_refused(mean, scale, shift):
    c = moments.Coefficients(*(np.array([1.0, v]) for v in (mean, scale, shift)))
    np.testing.assert_array_equal(moments.rounded(c, np.dtype(np.float32))[1], [True, False])
    assert moments.rounded(c, np.dtype(np.float64)) == (c, None)


def test_channels_without_statistics_stay_in_float32():
    c = moments.Coefficients(*(np.array([1.0, np.nan]) for _ in range(3)))
    assert moments.rounded(c, np.dtype(np.float32))[1] is None


def test_a_gradient_fits_float32_where_all_its_coefficients_do():
    ones = np.ones(5)
    k = moments.Gradient(mean=ones * [1, 1e31, 1, 1, 1], dy_scale=ones * [1, 1, 1e-40, 1, 1],
                         x_scale=ones * [1, 1, 1, 1e39, 1], offset=ones)  # fmt: skip
    np.testing.assert_array_equal(
        moments.rounded_gradient(k, np.dtype(np.float32))[1], [True, False, False, False, True]
    )
    assert moments.rounded_gradient(k, np.dtype(np.float64)) == (k, None)


@given(st.integers(1, 70), st.integers(1, 4))
def test_sums_of_blocks_are_added_in_one_order_whatever_the_other_axes(n, width):
    sums = normal(n, (2, n, width))
    whole = moments.sum_blocks(sums.copy())
    np.testing.assert_allclose(whole, sums.sum(axis=1), rtol=1e-12, atol=1e-12)
    assert whole[0, 0] == moments.sum_blocks(sums[:1, :, :1].copy())[0, 0]


def test_rounding_the_mean_to_float32_moves_its_remainder_into_shift():
    mean = np.array([1e6 + 1 / 3])
    c, fits = moments.rounded(moments.Coefficients(mean, np.array([2.0]), np.array([0.5])), np.dtype(np.float32))
    assert fits is None
    remainder = mean - c.mean.astype(np.float64)
    assert remainder[0] != 0
    np.testing.assert_allclose(c.shift, 0.5 - 2 * remainder, rtol=1e-7)


@pytest.mark.parametrize("kind", [Moments, BackwardSums])
def test_moments_and_sums_are_equal_if_their_arrays_are(kind):
    def made(change=0.0):
        arrays = np.arange(3.0 * len(kind._fields)).reshape(-1, 3)
        arrays[-1, -1] += change
        return kind(*arrays)

    a = made()
    for same in (made(), pickle.loads(pickle.dumps(a)), copy.copy(a), kind(*(field.tolist() for field in a))):
        assert a == same
        assert (a != same) is False
        assert a in [same]
    for other in (made(1e-9), made(np.nan), kind(*(field[:2] for field in a)), tuple(a), None, 1.0):
        assert a != other
        assert (a == other) is False
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)
