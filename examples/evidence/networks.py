"""Small networks in NumPy, whose normalization is bncpu's: what the examples beside this file share.

A layer has ``forward(x, training)``, which keeps what the backward pass needs, and ``backward(dy)``, which returns the
gradient of x and leaves those of the layer's ``parameters`` in ``gradients``. A network is a layer, too. Everything is
computed in the dtype of the parameters and of the data: float32, unless a caller changes both.
"""

# ruff: noqa: D102 (Layer explains forward and backward for all)

import json
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import bncpu

# For the whole process: so small arrays gain nothing from more threads, and scripts may run side by side. More threads
# make the examples slower and change how products of matrices round, which is what .ci/run roundings wants.
THREADS = threadpool_limits(int(os.environ.get("BNCPU_EVIDENCE_THREADS", "1")))

# What a network that diverged gets right of ten equally frequent digits: it guesses.
CHANCE = 0.1

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
)  # fmt: skip


class Layer:
    """What all layers have."""

    parameters: list = []  # noqa: RUF012 (layers with parameters have a list of their own)
    gradients: list = []  # noqa: RUF012

    def forward(self, x, training=False):
        """The layer's function of a batch, samples first."""
        raise NotImplementedError

    def backward(self, dy):
        """The gradient of the last x, from that of the result."""
        raise NotImplementedError


class Linear(Layer):
    """``x @ weight + bias``; weights normal with standard deviation ``scale * sqrt(2 / n_in)`` (He et al. 2015)."""

    def __init__(self, n_in, n_out, rng, scale=1.0):
        weight = rng.normal(0, scale * np.sqrt(2 / n_in), (n_in, n_out))
        self.parameters = [weight.astype(np.float32), np.zeros(n_out, np.float32)]

    def forward(self, x, training=False):
        self.x = x
        weight, bias = self.parameters
        return x @ weight + bias

    def backward(self, dy):
        self.gradients = [self.x.T @ dy, dy.sum(axis=0)]
        return dy @ self.parameters[0].T


class Conv(Layer):
    """Convolution of (N, C, ...) with a border of zeros: a linear layer on every window."""

    def __init__(self, n_in, n_out, rng, stride=1, scale=1.0, kernel=(3, 3), border=1):
        self.linear, self.stride = Linear(n_in * math.prod(kernel), n_out, rng, scale), stride
        self.kernel, self.border = kernel, border

    parameters = property(lambda self: self.linear.parameters)
    gradients = property(lambda self: self.linear.gradients)

    def forward(self, x, training=False):
        self.within = (..., *(slice(self.border, self.border + n) for n in x.shape[2:]))
        self.padded = np.zeros((*x.shape[:2], *(n + 2 * self.border for n in x.shape[2:])), x.dtype)
        self.padded[self.within] = x
        windows = sliding_window_view(self.padded, self.kernel, axis=tuple(range(2, x.ndim)))
        windows = windows[(*np.s_[:, :], *[np.s_[:: self.stride]] * len(self.kernel))]
        columns = np.moveaxis(windows, 1, len(self.kernel) + 1)  # sample, place, then what the window holds
        self.shape = columns.shape
        y = self.linear.forward(columns.reshape(-1, self.linear.parameters[0].shape[0]))
        return np.moveaxis(y.reshape(*self.shape[: len(self.kernel) + 1], -1), -1, 1)

    def backward(self, dy):
        dcolumns = self.linear.backward(np.moveaxis(dy, 1, -1).reshape(-1, dy.shape[1])).reshape(self.shape)
        dpadded = np.zeros_like(self.padded)
        for at in np.ndindex(self.kernel):
            reached = (slice(i, i + self.stride * n, self.stride) for i, n in zip(at, dy.shape[2:], strict=True))
            where = dpadded[(..., *reached)]
            where += np.moveaxis(dcolumns[(..., *at)], -1, 1)
        return dpadded[self.within]


class ReLU(Layer):
    """``max(x, 0)``."""

    def forward(self, x, training=False):
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy):
        return dy * self.positive


class Sigmoid(Layer):
    """``1 / (1 + exp(-x))``."""

    def forward(self, x, training=False):
        self.y = 1 / (1 + np.exp(-x))
        return self.y

    def backward(self, dy):
        return dy * self.y * (1 - self.y)


class Norm(Layer):
    """A normalization with a scale and a shift, 1 and 0 at first, for each of n channels or features."""

    def __init__(self, n):
        self.parameters = [np.ones(n, np.float32), np.zeros(n, np.float32)]

    def keep(self, x, result):
        self.x, (y, self.saved) = x, result
        return y

    def passed(self, gradients):
        dx, *self.gradients = gradients
        return dx


class BatchNorm(Norm):
    """By the statistics of the batch in training, by running ones otherwise."""

    def __init__(self, n_channels, momentum=0.9):
        super().__init__(n_channels)
        self.momentum = momentum
        self.running_mean, self.running_var = np.zeros(n_channels), np.ones(n_channels)

    def forward(self, x, training=False):
        if not training:
            return bncpu.batch_norm(x, self.running_mean, self.running_var, *self.parameters)
        running = {"running_mean": self.running_mean, "running_var": self.running_var, "momentum": self.momentum}
        return self.keep(x, bncpu.batch_norm_forward(x, *self.parameters, **running))

    def backward(self, dy):
        return self.passed(bncpu.batch_norm_backward(dy, self.x, self.saved, self.parameters[0]))


class GroupNorm(Norm):
    """By the statistics of a group of a sample's channels, in training and afterwards."""

    def __init__(self, n_groups, n_channels):
        super().__init__(n_channels)
        self.n_groups = n_groups

    def forward(self, x, training=False):
        return self.keep(x, bncpu.group_norm_forward(x, self.n_groups, *self.parameters))

    def backward(self, dy):
        return self.passed(bncpu.group_norm_backward(dy, self.x, self.saved, self.parameters[0]))


class LayerNorm(Norm):
    """By the statistics of a sample, over the features, in training and afterwards; n is the shape of a sample."""

    def forward(self, x, training=False):
        return self.keep(x, bncpu.layer_norm_forward(x, x.shape[1:], *self.parameters))

    def backward(self, dy):
        return self.passed(bncpu.layer_norm_backward(dy, self.x, self.saved, self.parameters[0]))


class Dropout(Layer):
    """In training each value is 0 with the given probability; the others grow to keep the mean."""

    def __init__(self, probability, rng):
        self.probability, self.rng = probability, rng

    def forward(self, x, training=False):
        if not training:
            return x
        self.factor = (self.rng.random(x.shape) >= self.probability).astype(x.dtype) / (1 - self.probability)
        return x * self.factor

    def backward(self, dy):
        return dy * self.factor


class Flatten(Layer):
    """A row for each sample."""

    def forward(self, x, training=False):
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy):
        return dy.reshape(self.shape)


class Network(Layer):
    """Layers one after the other."""

    def __init__(self, *layers):
        self.layers = layers

    parameters = property(lambda self: [p for layer in self.layers for p in layer.parameters])
    gradients = property(lambda self: [g for layer in self.layers for g in layer.gradients])

    def forward(self, x, training=False):
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy


class Residual(Network):
    """What the layers make of x is added to x (He et al. 2016)."""

    def forward(self, x, training=False):
        return x + super().forward(x, training)

    def backward(self, dy):
        return dy + super().backward(dy)


class SGD:
    """Steps against the gradient."""

    def __init__(self, network, rate):
        self.network, self.rate = network, rate

    def step(self):
        """Move the parameters, in place, by the gradients of the last backward pass."""
        for p, g in zip(self.network.parameters, self.network.gradients, strict=True):
            p -= (self.rate * g).astype(p.dtype)


class Adam:
    """Kingma and Ba's (2015, algorithm 1) steps: a mean of past gradients over the root of that of their squares."""

    def __init__(self, network, rate, beta1=0.9, beta2=0.999, eps=1e-8):
        self.network, self.rate, self.betas, self.eps = network, rate, (beta1, beta2), eps
        self.means, self.squares = ([np.zeros_like(p) for p in network.parameters] for _ in "ms")
        self.steps = 0

    def step(self):
        """As SGD's."""
        self.steps += 1
        (beta1, beta2), rows = self.betas, zip(self.means, self.squares, strict=True)
        rate = self.rate * math.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)  # both means start at 0
        for p, g, (mean, square) in zip(self.network.parameters, self.network.gradients, rows, strict=True):
            mean += (1 - beta1) * (g - mean)
            square += (1 - beta2) * (g * g - square)
            p -= (rate * mean / (np.sqrt(square) + self.eps)).astype(p.dtype)


class Data(NamedTuple):
    """Samples and labels to learn from and to test with."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class History(NamedTuple):
    """The course of a training, of the same length whatever came of it.

    After how many steps, the loss of the last batch and the accuracy on the test data; and the step whose loss was no
    finite number, or None. From that step on the loss is NaN and the accuracy that of guessing, ``CHANCE``, so that
    means over seeds count a network that diverged for what it is worth. What an early end left out is NaN.
    """

    steps: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    diverged: int | None


def digits(seed, images=False):
    """scikit-learn's 1,797 handwritten digits, a third to test with; one mean and one spread for all pixels.

    Rows of 64, or with `images` of shape (N, 1, 8, 8), float32.
    """
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 1, 8, 8).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=1 / 3, random_state=seed, stratify=y)
    scaler = bncpu.BatchNormTransformer(channel_axis=1).fit(x_train)
    parts = [scaler.transform(part) for part in (x_train, x_test)]
    x_train, x_test = parts if images else [part.reshape(len(part), 64) for part in parts]
    return Data(x_train, y_train, x_test, y_test)


def mnist1d():
    """Greydanus and Kobak's (2024) 4,000 signals of 40 values in ten classes, and 1,000 to test with.

    Of shape (N, 1, 40), float32, made by their package with its own arguments and seed. Mean and spread are 0 and 1.
    """
    from mnist1d.data import make_dataset  # other examples do without

    made = make_dataset()
    x_train, x_test = (made[part].astype(np.float32)[:, None] for part in ("x", "x_test"))
    return Data(x_train, made["y"], x_test, made["y_test"])


def cross_entropy(logits, labels):
    """The mean loss of softmax(logits), and its gradient."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    dlogits = np.exp(log_p)
    dlogits[rows, labels] -= 1
    return -log_p[rows, labels].mean(), dlogits / len(labels)


def loss_and_gradients(network, x, labels):
    """The loss of a training batch; the gradients are left in the layers."""
    loss, dlogits = cross_entropy(network.forward(x, training=True), labels)
    network.backward(dlogits)
    return loss


def accuracy(network, x, labels):
    """The part of the samples that the network, at inference, gets right."""
    return np.mean(network.forward(x).argmax(axis=1) == labels)


def norms_and_inputs(network, x):
    """Each batch normalization with what reaches it at inference; its statistics may be changed on the way."""
    for layer in network.layers:
        if isinstance(layer, BatchNorm):
            yield layer, x
        x = layer.forward(x)


def take_statistics_again(network, x):
    """Running statistics from all of x at once, at inference, from the first normalization to the last."""
    for norm, reached in norms_and_inputs(network, x):
        axes = tuple(axis for axis in range(reached.ndim) if axis != 1)
        norm.running_mean[...], norm.running_var[...] = reached.mean(axis=axes), reached.var(axis=axes)


def batches(n_samples, size, rng):
    """Indices of batches without end: every epoch in a new order, what does not fill a batch is left out."""
    while True:
        order = rng.permutation(n_samples)
        for start in range(0, n_samples - size + 1, size):
            yield order[start : start + size]


def train(network, data, rate, *, batch=64, steps=1000, every=10, until=1.1, seed=0, watch=None, optimizer=SGD):
    """Train in place, and test after every so many steps, and after the last.

    Ends early at a test accuracy of `until`, or if it diverges. `watch` is called before each step with the number of
    steps made, the samples and the labels of the batch; the gradients are in the network.
    """
    optimizer, drawn = optimizer(network, rate), batches(len(data.x_train), batch, np.random.default_rng(seed))
    tests = [*range(every, steps, every), steps]
    rows, diverged = np.full((len(tests), 2), np.nan), None
    with np.errstate(all="ignore"):  # a network that diverges does so in silence
        for step in range(1, steps + 1):
            chosen = next(drawn)
            x, labels = data.x_train[chosen], data.y_train[chosen]
            loss = loss_and_gradients(network, x, labels)
            if not np.isfinite(loss):
                diverged = step
                rows[np.searchsorted(tests, step) :, 1] = CHANCE
                break
            if watch:
                watch(step - 1, x, labels)
            optimizer.step()
            if step in tests:
                right = accuracy(network, data.x_test, data.y_test)
                rows[tests.index(step)] = loss, right
                if right >= until:
                    break
    return History(np.array(tests), *rows.T, diverged)


def outcome(histories):
    """How many trainings diverged, and when, in words for a page."""
    when = [history.diverged for history in histories if history.diverged is not None]
    said = f"{len(when)} of {len(histories)} trainings diverged"
    if not when:
        return said
    first, last = min(when), max(when)
    return f"{said}, at step {first}" if first == last else f"{said}, at steps {first} to {last}"


HERE = Path(__file__).parent


def stored(name):
    """What was measured in a longer run, from NAME.json beside this file."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def store(name, rows):
    """Keep it there, a line a row."""
    lines = ",\n".join(map(json.dumps, rows))
    (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def save(figure, name):
    """Save the picture as NAME.png in the current folder; a gallery takes it from pyplot instead."""
    if "sphinx_gallery" not in sys.modules:
        figure.savefig(f"{name}.png", dpi=120)
