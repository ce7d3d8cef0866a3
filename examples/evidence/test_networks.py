"""The networks that the examples share: gradients, data and training."""

# ruff: noqa: D103 (a test's name is its docstring)

import itertools

import numpy as np
import pytest
from networks import (
    CHANCE,
    THREADS,
    Adam,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GroupNorm,
    LayerNorm,
    Linear,
    Network,
    ReLU,
    Residual,
    Sigmoid,
    cross_entropy,
    digits,
    loss_and_gradients,
    mnist1d,
    outcome,
    train,
)

from bncpu import _kernels

THREADS.restore_original_limits()  # other tests of this process may want more


def small_network(norm, rng):
    """Every kind of layer around one normalization of 4 channels."""
    if norm == "layer":
        first = [Linear(36, 12, rng), LayerNorm(12)]
        return Network(Flatten(), *first, ReLU(), Residual(Linear(12, 12, rng), Sigmoid()), Linear(12, 3, rng))
    made = {"batch": lambda: BatchNorm(4), "group": lambda: GroupNorm(2, 4)}[norm]
    return Network(
        Conv(1, 4, rng), made(), ReLU(), Conv(4, 4, rng, stride=2), made(), Sigmoid(), Flatten(), Linear(36, 3, rng)
    )


def float64(layer):
    for one in getattr(layer, "layers", [getattr(layer, "linear", layer)]):
        if one is layer:
            layer.parameters = [p.astype(np.float64) for p in layer.parameters]
        else:
            float64(one)


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_gradients_of_a_network_are_central_differences(norm):
    rng = np.random.default_rng(0)
    network = small_network(norm, rng)
    float64(network)
    x, labels = rng.normal(3, 2, (5, 1, 6, 6)), np.array([0, 1, 2, 0, 1])

    def loss():
        return cross_entropy(network.forward(x, training=True), labels)[0]

    network.backward(cross_entropy(network.forward(x, training=True), labels)[1])
    found = [np.array(g) for g in network.gradients]
    step = 1e-6
    for p, g in zip(network.parameters, found, strict=True):
        assert p.shape == g.shape
        for k in rng.choice(p.size, min(p.size, 6), replace=False):
            at = np.unravel_index(k, p.shape)
            kept = p[at]
            p[at] = kept + step
            above = loss()
            p[at] = kept - step
            below = loss()
            p[at] = kept
            # Central differences: step**2 of the third derivative, and 1e-16 / step of rounding.
            assert g[at] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_the_input_of_a_convolution_is_a_central_difference(stride):
    rng = np.random.default_rng(1)
    layer = Conv(2, 3, rng, stride=stride)
    float64(layer.linear)
    x = rng.normal(size=(2, 2, 4, 6))
    dy = rng.normal(size=layer.forward(x).shape)
    dx = layer.backward(dy)
    direction = rng.normal(size=x.shape)
    above, below = ((layer.forward(x + h * direction) * dy).sum() for h in (1e-6, -1e-6))
    assert (dx * direction).sum() == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_a_convolution_over_one_axis_is_the_sum_it_stands_for():
    rng = np.random.default_rng(2)
    layer = Conv(2, 3, rng, stride=2, kernel=(5,))
    float64(layer.linear)
    weight = layer.linear.parameters[0].reshape(2, 5, 3)
    x = rng.normal(size=(4, 2, 11))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
    expected = [[np.einsum("cw,cwk->k", one[:, i : i + 5], weight) for i in range(0, 9, 2)] for one in padded]
    y = layer.forward(x)
    np.testing.assert_allclose(y, np.swapaxes(expected, 1, 2), rtol=1e-12)
    dy, direction, h = rng.normal(size=y.shape), rng.normal(size=x.shape), 1e-6
    dx = layer.backward(dy)
    above, below = ((layer.forward(x + side * h * direction) * dy).sum() for side in (1, -1))
    assert (dx * direction).sum() == pytest.approx((above - below) / (2 * h), rel=1e-6)


def test_adam_steps_as_its_authors_say():
    rng = np.random.default_rng(0)
    network = Network(Linear(3, 2, rng))
    float64(network)
    p = [np.array(one) for one in network.parameters]
    optimizer, m, v = Adam(network, 0.01), [0.0, 0.0], [0.0, 0.0]
    for t in range(1, 6):
        network.layers[0].gradients = [rng.normal(size=one.shape) for one in p]
        optimizer.step()
        for k, g in enumerate(network.gradients):
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
            p[k] -= 0.01 * (m[k] / (1 - 0.9**t)) / np.sqrt(v[k] / (1 - 0.999**t))
            # Without the eps of 1e-8, which counts beside gradients of 1e-3 and more.
            np.testing.assert_allclose(network.parameters[k], p[k], rtol=0, atol=1e-6)


def test_mnist1d_is_as_published():
    pytest.importorskip("mnist1d", reason="pip install mnist1d")
    data = mnist1d()
    assert data.x_train.shape == (4000, 1, 40)
    assert data.x_test.shape == (1000, 1, 40)
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    both = np.concatenate([data.x_train, data.x_test]).astype(np.float64)
    assert both.mean() == pytest.approx(0, abs=1e-6)
    assert both.std() == pytest.approx(1, abs=1e-6)
    assert np.bincount(np.concatenate([data.y_train, data.y_test])).tolist() == [500] * 10


def test_all_is_computed_in_float32():
    data = digits(0, images=True)
    rng = np.random.default_rng(0)
    network = Network(
        Conv(1, 4, rng), BatchNorm(4), ReLU(), Conv(4, 4, rng, stride=2), GroupNorm(2, 4), Sigmoid(),
        Flatten(), Dropout(0.5, rng), Linear(64, 16, rng), LayerNorm(16), Residual(Linear(16, 16, rng)),
        Linear(16, 10, rng),
    )  # fmt: skip
    x = data.x_train[:8]
    assert x.dtype == np.float32
    for layer in network.layers:
        x = layer.forward(x, training=True)
        assert x.dtype == np.float32, layer
    dy = cross_entropy(x, data.y_train[:8])[1]
    for layer in reversed(network.layers):
        assert dy.dtype == np.float32, layer
        dy = layer.backward(dy)
    train(network, data, 0.1, batch=8, steps=2)
    assert {p.dtype for p in network.parameters} == {np.dtype(np.float32)}


def test_digits_are_standardized_by_what_is_trained_on():
    data = digits(3)
    assert data.x_train.shape == (1198, 64)
    assert data.x_test.shape == (599, 64)
    # float32 data of mean 0 and spread 1: its own rounding is 6e-8 a value.
    assert data.x_train.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert data.x_train.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert abs(data.x_test.mean(dtype=np.float64)) > 1e-6
    assert not np.array_equal(digits(4).y_test, data.y_test)


def test_the_same_seed_trains_the_same_network():
    def trained(seed):
        rng = np.random.default_rng(seed)
        network = Network(Linear(64, 16, rng), BatchNorm(16), ReLU(), Linear(16, 10, rng))
        return train(network, digits(seed), 0.5, steps=60, every=20, seed=seed)

    first, again, other = trained(0), trained(0), trained(1)
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert first.diverged is None
    assert first.steps.tolist() == [20, 40, 60]
    assert first.accuracy[-1] > 0.8
    assert not np.array_equal(first.loss, other.loss)


def test_a_network_that_diverges_has_a_history_of_full_length_that_says_when():
    rng = np.random.default_rng(0)
    network = Network(*(layer for _ in range(6) for layer in (Linear(64, 64, rng), ReLU())))
    diverged = train(network, digits(0), 3.0, steps=55, every=2)
    assert diverged.steps.tolist() == [*range(2, 55, 2), 55]
    assert {len(diverged.steps), len(diverged.loss), len(diverged.accuracy)} == {28}
    assert 1 <= diverged.diverged < 55
    before = diverged.steps < diverged.diverged
    assert before.any()
    assert np.isfinite(diverged.loss[before]).all()
    assert np.isnan(diverged.loss[~before]).all()
    assert (diverged.accuracy[~before] == CHANCE).all()

    trained = train(Network(Linear(64, 10, rng)), digits(0), 0.1, steps=55, every=2)
    assert trained.diverged is None
    np.array([trained.accuracy, diverged.accuracy])  # of one shape
    assert outcome([trained, diverged]) == f"1 of 2 trainings diverged, at step {diverged.diverged}"
    assert outcome([trained] * 2) == "0 of 2 trainings diverged"
    said = f"2 of 3 trainings diverged, at steps {diverged.diverged} to 99"
    assert outcome([diverged._replace(diverged=99), trained, diverged]) == said


def test_watch_sees_parameters_and_gradients_before_each_step():
    network, seen = Network(Linear(64, 10, np.random.default_rng(0))), []

    def watch(step, x, labels):
        assert x.shape == (32, 64)
        assert labels.shape == (32,)
        seen.append((step, network.parameters[0].copy(), network.gradients[0].copy()))

    train(network, digits(0), 0.1, batch=32, steps=4, every=4, watch=watch)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    for (_, weight, gradient), (_, moved, _) in itertools.pairwise(seen):
        np.testing.assert_array_equal(moved, weight - (0.1 * gradient).astype(np.float32))


def test_training_that_ends_early_leaves_the_rest_open():
    rng = np.random.default_rng(0)
    history = train(Network(Linear(64, 10, rng)), digits(0), 0.1, steps=300, every=10, until=0.7)
    assert len(history.accuracy) == 30
    (reached,) = np.flatnonzero(history.accuracy >= 0.7)
    assert reached < 29
    assert np.isfinite(history.loss[: reached + 1]).all()
    assert np.isnan([history.loss[reached + 1 :], history.accuracy[reached + 1 :]]).all()
    assert history.diverged is None


def test_every_instruction_set_trains_the_same_network():
    def trained(isa):
        _kernels.use_isa(isa)
        rng = np.random.default_rng(0)
        network = Network(
            Conv(1, 4, rng), BatchNorm(4), ReLU(), Conv(4, 4, rng, stride=2), GroupNorm(2, 4), ReLU(),
            Flatten(), Linear(64, 19, rng), LayerNorm(19), ReLU(), Linear(19, 10, rng), BatchNorm(10),
        )  # fmt: skip
        history = train(network, digits(0, images=True), 0.1, batch=24, steps=40, every=40)
        norms = [layer for layer in network.layers if isinstance(layer, BatchNorm)]
        running = [array for norm in norms for array in (norm.running_mean, norm.running_var)]
        return [*network.parameters, *running, history.loss, history.accuracy]

    before = _kernels.isa()
    try:
        first, *others = map(trained, _kernels.isa_variants())
    finally:
        _kernels.use_isa(before)
    for other in others:
        for one, same in zip(first, other, strict=True):
            np.testing.assert_array_equal(one, same)


def test_dropout_keeps_the_mean_and_does_nothing_at_inference():
    layer = Dropout(0.25, np.random.default_rng(0))
    x = np.ones((100, 100), np.float32)
    y = layer.forward(x, training=True)
    # 10,000 draws: 6 standard errors of sqrt(p / (1 - p) / n)
    assert y.mean() == pytest.approx(1, abs=6 * np.sqrt(0.25 / 0.75 / 1e4))
    np.testing.assert_array_equal(layer.backward(x), y)
    np.testing.assert_array_equal(layer.forward(x), x)


def test_inference_uses_running_statistics():
    norm = BatchNorm(2, momentum=0.5)
    x = np.array([[0.0, 10.0], [2.0, 30.0]], np.float32)
    norm.forward(x, training=True)
    # By hand: half of 0 and of the means 1 and 20; half of 1 and of the variances 1 and 100.
    expected = (x - [0.5, 10.0]) / np.sqrt(np.array([1.0, 50.5]) + 1e-5)
    np.testing.assert_allclose(norm.forward(x), expected, rtol=1e-6)


def test_a_loss_leaves_gradients_in_the_layers():
    rng = np.random.default_rng(0)
    network = Network(Linear(64, 10, rng))
    data = digits(0)
    loss_and_gradients(network, data.x_train[:20], data.y_train[:20])
    p = np.exp(network.forward(data.x_train[:20]).astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    by_hand = data.x_train[:20].T @ (p - np.eye(10)[data.y_train[:20]]) / 20
    np.testing.assert_allclose(network.gradients[0], by_hand, rtol=1e-3, atol=1e-6)
