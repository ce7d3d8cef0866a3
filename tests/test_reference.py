"""The specification itself, against exact fractions and the recursions it sums up."""

from fractions import Fraction

import numpy as np
import pytest
from arrays import exact_moments, hostile_columns, normal

from bncpu import _reference


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_equal_exact_fractions(weighted):
    names, X = hostile_columns(200, np.float64)
    w = np.random.default_rng(0).uniform(0.1, 2, 200) if weighted else None
    count, mean, m2 = _reference.moments(X[:, :, None], w)
    for c, name in enumerate(names):
        n, center, squares = exact_moments(X[:, c], w)
        spread = float(squares / n) ** 0.5
        assert count[c] == pytest.approx(float(n), rel=1e-14)
        assert mean[c] == pytest.approx(float(center), rel=1e-15, abs=1e-14 * spread), name
        # Its one mean is rounded to float64; the squares carry that rounding 200 times.
        assert m2[c] == pytest.approx(float(squares), rel=1e-12, abs=200 * (2.0**-52 * float(abs(center))) ** 2), name


def test_missing_values_are_left_out_or_stay_in_their_channel():
    X = normal(0, (20, 3))
    X[3, 1] = np.nan
    X[:, 2] = np.nan
    count, mean, _ = _reference.moments(X[:, :, None], skip_missing=True)
    assert list(count) == [20, 19, 0]
    assert mean[1] == pytest.approx(np.delete(X[:, 1], 3).mean(), rel=1e-14)
    assert list(np.isnan(_reference.moments(X[:, :, None])[1])) == [False, True, True]


def test_apply_is_the_formula_then_residual_then_relu():
    x = np.array([[[1.0, 2.0], [4.0, 8.0]]])
    y = _reference.apply(x, [1, 2], [2, 3], [5, -7], np.array([[[0.0, 1.0], [0.0, -20.0]]]), relu=True)
    np.testing.assert_array_equal(y, [[[5.0, 8.0], [0.0, 0.0]]])


def test_batch_norm_forward_equals_exact_fractions():
    x = [[1.0, 0.1], [2.0, 0.7], [4.0, -3.0]]
    y, mean, var = _reference.batch_norm_forward(np.array(x), [2, 3], [1, -1], eps=0.5)
    for c in range(2):
        values = [Fraction(row[c]) for row in x]
        center = sum(values) / 3
        spread = sum((v - center) ** 2 for v in values) / 3
        assert mean[c] == pytest.approx(float(center), rel=1e-15)
        assert var[c] == pytest.approx(float(spread), rel=1e-15)
        for i in range(3):
            expected = [2, 3][c] * float(values[i] - center) / float(spread + Fraction(1, 2)) ** 0.5 + [1, -1][c]
            assert y[i, c] == pytest.approx(expected, rel=1e-14)


def test_a_constant_channel_without_eps_is_beta():
    y, _, _ = _reference.batch_norm_forward(np.full((4, 1), 0.1), beta=[0.3], eps=0)
    np.testing.assert_array_equal(y, 0.3)


def test_running_averages_equal_their_recursions():
    batches, momentum = [normal(k, (5, 2), mean=k) for k in range(6)], 0.8
    mean, var, weight = np.zeros(2), np.zeros(2), 0.0
    for batch in batches:
        mean = momentum * mean + (1 - momentum) * batch.mean(0)
        var = momentum * var + (1 - momentum) * batch.var(0, ddof=1)
        weight = momentum * weight + 1 - momentum
    got = _reference.running_momentum(batches, momentum, ddof=1)
    np.testing.assert_allclose(got, [mean / weight, var / weight], rtol=1e-13)

    rows, w = np.concatenate(batches), 0.0
    total, squares = np.zeros(2), np.zeros(2)
    for row in rows:
        w, total, squares = (0.5 ** (1 / 7) * a + b for a, b in ((w, 1), (total, row), (squares, row**2)))
    mean, var = _reference.running_halflife(rows, 7)
    np.testing.assert_allclose(mean, total / w, rtol=1e-13)
    np.testing.assert_allclose(var, squares / w - (total / w) ** 2, rtol=1e-11)
