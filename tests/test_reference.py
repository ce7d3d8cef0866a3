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


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_each_norm_has_mean_beta_and_variance_gamma_squared_where_it_normalizes(mean):
    x = normal(1, (4, 6, 5), mean=mean)
    for y, over in [
        (_reference.batch_norm_forward(x, np.full(6, 3.0), np.full(6, 2.0), eps=0)[0], (0, 2)),
        (_reference.layer_norm_forward(x, (6, 5), np.full((6, 5), 3.0), np.full((6, 5), 2.0), eps=0)[0], (1, 2)),
        (_reference.layer_norm_forward(x, 6, np.full(6, 3.0), np.full(6, 2.0), eps=0, channel_axis=1)[0], 1),
        (_reference.instance_norm_forward(x, np.full(6, 3.0), np.full(6, 2.0), eps=0)[0], 2),
    ]:
        np.testing.assert_allclose(y.mean(over), 2, rtol=1e-14)
        np.testing.assert_allclose(y.var(over), 9, rtol=1e-13)
    y = _reference.group_norm_forward(x, 2, np.full(6, 3.0), np.full(6, 2.0), eps=0)[0].reshape(4, 2, 3, 5)
    np.testing.assert_allclose([y.mean((2, 3)), y.var((2, 3))], [np.full((4, 2), 2), np.full((4, 2), 9)], rtol=1e-13)
    y, no_mean, square = _reference.rms_norm_forward(x, 5, np.full(5, 3.0), eps=0)
    assert no_mean is None
    np.testing.assert_allclose((y**2).mean(2), 9, rtol=1e-13)
    np.testing.assert_allclose(square, (x**2).mean(2, keepdims=True), rtol=1e-14)


FROZEN_MEAN, FROZEN_VAR = normal(2, 3), normal(3, 3) ** 2 + 0.5

# name -> shape of x and of gamma, the forward function of (x, gamma, beta) and the backward function
NORMS = {
    "batch": ((5, 3), (3,), _reference.batch_norm_forward, _reference.batch_norm_backward),
    "batch, channels last": (
        (3, 2, 3), (3,),
        lambda *a: _reference.batch_norm_forward(*a, channel_axis=-1),
        lambda *a, **k: _reference.batch_norm_backward(*a, channel_axis=-1, **k),
    ),
    "batch, frozen": (
        (4, 3, 2), (3,),
        lambda x, *a: (_reference.batch_norm(x, FROZEN_MEAN, FROZEN_VAR, *a), FROZEN_MEAN, FROZEN_VAR),
        lambda *a, **k: _reference.batch_norm_backward(*a, frozen=True, **k),
    ),
    "layer": (
        (3, 2, 4), (2, 4),
        lambda x, *a: _reference.layer_norm_forward(x, (2, 4), *a),
        _reference.layer_norm_backward,
    ),
    "layer, one axis": (
        (6,), (6,),
        lambda x, *a: _reference.layer_norm_forward(x, 6, *a),
        _reference.layer_norm_backward,
    ),
    "layer, channels": (
        (2, 5, 3), (5,),
        lambda x, *a: _reference.layer_norm_forward(x, 5, *a, channel_axis=1),
        lambda *a, **k: _reference.layer_norm_backward(*a, channel_axis=1, **k),
    ),
    "instance": ((2, 3, 4), (3,), _reference.instance_norm_forward, _reference.instance_norm_backward),
    "group": ((2, 6, 3), (6,), lambda x, *a: _reference.group_norm_forward(x, 2, *a), _reference.group_norm_backward),
    "group, channels first": (
        (4, 2, 3), (4,),
        lambda x, *a: _reference.group_norm_forward(x, 2, *a, channel_axis=0),
        lambda *a, **k: _reference.group_norm_backward(*a, channel_axis=0, **k),
    ),
    "rms": (
        (3, 2, 4), (2, 4),
        lambda x, gamma, beta: _reference.rms_norm_forward(x, (2, 4), gamma),
        lambda *a, beta, **k: _reference.rms_norm_backward(*a, **k),
    ),
}  # fmt: skip


@pytest.mark.parametrize("finish", ["plain", "relu", "residual", "relu and residual"])
@pytest.mark.parametrize("norm", NORMS)
def test_backward_equals_central_differences(norm, finish):
    shape, per, forward, backward = NORMS[norm]
    x, dy, z, gamma, beta = (normal(k, s) for k, s in enumerate((shape, shape, shape, per, per), start=4))
    relu, residual = "relu" in finish, z if "residual" in finish else None

    def before_relu():
        y = forward(x, gamma, beta)[0]
        return y if residual is None else y + residual

    def loss():
        y = before_relu()
        return np.sum(dy * (np.maximum(y, 0) if relu else y))

    assert np.abs(before_relu()).min() > 5e-4  # no difference crosses the bend of relu
    _, mean, var = forward(x, gamma, beta)
    options = {"beta": beta, "activation": "relu" if relu else None, "residual": residual}
    gradients = backward(dy, x, (mean, _reference.inverse_std(var)), gamma, **options)
    inputs = [x, gamma] + [beta] * (norm != "rms") + [z] * (residual is not None)
    for gradient, a in zip(gradients, inputs, strict=True):
        # Steps of 1e-5: the third derivative leaves 1e-10, the rounding of the loss 1e-15 / 1e-5.
        np.testing.assert_allclose(gradient, central_differences(loss, a, 1e-5), rtol=0, atol=2e-8)


def central_differences(loss, a, step):
    """Derivatives of the number `loss()` by the values of `a`, which it reads."""
    gradient = np.empty_like(a)
    for at, value in np.ndenumerate(a.copy()):
        a[at] = value + step
        above = loss()
        a[at] = value - step
        gradient[at] = (above - loss()) / (2 * step)
        a[at] = value
    return gradient


def test_without_gamma_the_gradient_has_the_shape_that_was_normalized():
    x = normal(9, (4, 3, 2))
    for normalized_shape in (2, (3, 2), (4, 3, 2)):
        _, mean, var = _reference.layer_norm_forward(x, normalized_shape)
        _, dgamma, dbeta = _reference.layer_norm_backward(x, x, (mean, _reference.inverse_std(var)))
        assert dgamma.shape == dbeta.shape == tuple(np.atleast_1d(normalized_shape))
