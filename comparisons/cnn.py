"""A small network on scikit-learn's digits, trained with a framework's batch norm and with bncpu's.

    pip install -r comparisons/requirements.txt && pip install . && python comparisons/cnn.py

Convolution, batch norm, relu, linear, batch norm, relu, linear; as PyTorch has it (NCHW, eps 1e-5, momentum 0.1,
running variance unbiased) and as Keras has it (NHWC, eps 1e-3, momentum 0.99, running variance biased). Both start
from the same weights. Afterwards the framework's state is evaluated by `batch_norm`, and folded into the layers
before. Prints a table; exit status 1 if something differs by more than its tolerance.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from keras.src.backend.common import dtypes
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import bncpu

# Keras takes batch norm's float64 down to float32 unless TensorFlow computes: here it may keep it.
dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"

STEPS, BATCH, RATE = 30, 64, 0.1

# Training amplifies: once a rounding has switched one relu in one of two runs alone, they drift apart. In float32 that
# happened after 6 steps of Keras's form, to 2e-4 of the losses after 30; in float64 no relu is so near 0. One pass of
# evaluation only rounds: sums of 4096 products.
TRAINING_TOLERANCE = {"float64": 1e-9, "float32": 1e-2}
EVALUATION_TOLERANCE = {"float64": 1e-13, "float32": 1e-5}


class BatchNormReLU(torch.autograd.Function):
    """`batch_norm_forward` and `batch_norm_backward`, relu included, on tensors that share their memory."""

    @staticmethod
    def forward(ctx, x, gamma, beta, running_mean, running_var, settings):
        """Y; the running statistics move."""
        x, gamma, beta, running_mean, running_var = (
            a.detach().numpy() for a in (x, gamma, beta, running_mean, running_var)
        )
        y, saved = bncpu.batch_norm_forward(
            x, gamma, beta, running_mean=running_mean, running_var=running_var, activation="relu", **settings
        )
        ctx.kept = x, saved, gamma, beta, settings["channel_axis"]
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx, dy):
        """Gradients of x, gamma and beta."""
        x, saved, gamma, beta, channel_axis = ctx.kept
        dx, dgamma, dbeta = bncpu.batch_norm_backward(
            dy.numpy(), x, saved, gamma, beta=beta, channel_axis=channel_axis, activation="relu"
        )
        dtype = torch.from_numpy(gamma).dtype
        return torch.from_numpy(dx), *(torch.from_numpy(a).to(dtype) for a in (dgamma, dbeta)), None, None, None


def evaluate(x, mean, var, gamma, beta, eps, channel_axis):
    """`batch_norm` with relu, tensors in and out."""
    mean, var, gamma, beta = (a.detach().numpy() for a in (mean, var, gamma, beta))
    x = x.detach().numpy()
    y = bncpu.batch_norm(x, mean, var, gamma, beta, eps=eps, channel_axis=channel_axis, activation="relu")
    return torch.from_numpy(y)


class TorchBatchNormReLU(nn.modules.batchnorm._BatchNorm):
    """PyTorch's layer with its state and defaults, computed by bncpu."""

    def forward(self, x):
        """Batch norm and relu, with the batch's statistics in training."""
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return evaluate(x, mean, var, self.weight, self.bias, self.eps, 1)
        settings = {"momentum": 1 - self.momentum, "ddof": 1, "eps": self.eps, "channel_axis": 1}
        return BatchNormReLU.apply(x, self.weight, self.bias, mean, var, settings)


class KerasBatchNormReLU(keras.layers.BatchNormalization):
    """Keras's layer with its state and defaults, computed by bncpu."""

    def call(self, inputs, training=None, mask=None):
        """Batch norm and relu, with the batch's statistics in training."""
        gamma, beta, mean, var = (a.value for a in (self.gamma, self.beta, self.moving_mean, self.moving_variance))
        if not training:
            return evaluate(inputs, mean, var, gamma, beta, self.epsilon, -1)
        settings = {"momentum": self.momentum, "ddof": 0, "eps": self.epsilon, "channel_axis": -1}
        return BatchNormReLU.apply(inputs, gamma, beta, mean, var, settings)


class TorchForm:
    """The network as PyTorch users write it."""

    name, channel_axis = "PyTorch", 1

    def __init__(self, ours, dtype):
        norms = (TorchBatchNormReLU, TorchBatchNormReLU) if ours else (nn.BatchNorm2d, nn.BatchNorm1d)
        relu = nn.Identity if ours else nn.ReLU
        self.model = nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1), norms[0](64), relu(), nn.Flatten(),
            nn.Linear(64 * 8 * 8, 256), norms[1](256), relu(), nn.Linear(256, 10),
        ).to(dtype)  # fmt: skip

    def __call__(self, x, training):
        """Logits."""
        return self.model.train(training)(x)

    def copy_from(self, other):
        """Take over another network's parameters and running statistics."""
        self.model.load_state_dict(other.model.state_dict())

    def state(self):
        """Parameters and running statistics; not the count of batches."""
        return [a.detach().numpy() for a in self.model.state_dict().values() if a.is_floating_point()]

    def folded(self, x):
        """The network without batch norm: its statistics and parameters are in the layers before."""
        conv, norm, _, _, linear, norm1, _, last = self.model
        x = functional.conv2d(x, *fold(bncpu.fold_conv, conv, norm), padding=1).relu().flatten(1)
        return last(functional.linear(x, *fold(bncpu.fold_linear, linear, norm1)).relu())


def fold(folding, layer, norm):
    """Weight and bias of PyTorch's layer after folding."""
    arrays = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    folded = folding(*(a.detach().numpy() for a in arrays), eps=norm.eps, channel_axis=0)
    return [torch.from_numpy(a).to(layer.weight.dtype) for a in folded]


class KerasForm:
    """The network as Keras users write it."""

    name, channel_axis = "Keras", -1

    def __init__(self, ours, dtype):
        keras.config.set_floatx(str(dtype)[6:])
        keras.config.set_dtype_policy(str(dtype)[6:])
        layers = keras.layers
        norm, relu = (KerasBatchNormReLU, layers.Identity) if ours else (layers.BatchNormalization, layers.ReLU)
        self.model = keras.Sequential([
            layers.Input((8, 8, 1)), layers.Conv2D(64, 3, padding="same"), norm(), relu(), layers.Flatten(),
            layers.Dense(256), norm(), relu(), layers.Dense(10),
        ])  # fmt: skip

    def __call__(self, x, training):
        """Logits."""
        return self.model(x, training=training)

    def copy_from(self, other):
        """Take over another network's parameters and running statistics."""
        self.model.set_weights(other.model.get_weights())

    def state(self):
        """Parameters and running statistics."""
        return self.model.get_weights()

    def folded(self, x):
        """The network without the batch norm layers: folded weights are set in a model that has none."""
        layers = keras.layers
        weights = self.model.get_weights()  # of convolution, norm, dense, norm, dense
        eps = self.model.layers[1].epsilon
        arrays = []
        for folding, group in ((bncpu.fold_conv, weights[:6]), (bncpu.fold_linear, weights[6:12])):
            kernel, bias, gamma, beta, mean, var = group
            arrays += folding(kernel, bias, mean, var, gamma, beta, eps=eps, channel_axis=-1)
        model = keras.Sequential([
            layers.Input((8, 8, 1)), layers.Conv2D(64, 3, padding="same", activation="relu"), layers.Flatten(),
            layers.Dense(256, activation="relu"), layers.Dense(10),
        ])  # fmt: skip
        model.set_weights(arrays + weights[12:])
        return model(x, training=False)


def train(form, x, target):
    """The loss at each step of plain gradient descent."""
    optimizer = torch.optim.SGD([p for p in form.model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for step in range(STEPS):
        batch = slice(step * BATCH % len(x), step * BATCH % len(x) + BATCH)
        loss = functional.cross_entropy(form(x[batch], True), target[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def difference(a, b):
    """The largest difference as a fraction of the largest value, or of 1: biases before a norm are roundings of 0."""
    return np.abs(a - b).max() / max(1, np.abs(b).max())


def compare(form, dtype):
    """Train twice, evaluate three times; print one line; true if all agree."""
    name = str(dtype)[6:]
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.from_numpy(np.expand_dims(digits.images[order] / 16, form.channel_axis)).to(dtype)
    target = torch.from_numpy(digits.target[order])
    n_train = 23 * BATCH

    theirs, ours = form(False, dtype), form(True, dtype)
    ours.copy_from(theirs)
    losses_theirs, losses_ours = (train(f, images[:n_train], target[:n_train]) for f in (theirs, ours))
    losses = difference(losses_ours, losses_theirs)
    states = [difference(a, b) for a, b in zip(ours.state(), theirs.state(), strict=True)]

    ours.copy_from(theirs)
    with torch.no_grad():
        logits = [f(images[n_train:], False).numpy() for f in (theirs, ours)]
        logits.append(theirs.folded(images[n_train:]).numpy())
    inference, folded = difference(logits[1], logits[0]), difference(logits[2], logits[0])
    accuracy = np.mean(logits[1].argmax(1) == target[n_train:].numpy())

    training, evaluation = TRAINING_TOLERANCE[name], EVALUATION_TOLERANCE[name]
    state = np.max(states)  # NaN if one is
    passed = bool(losses <= training and state <= training and inference <= evaluation and folded <= evaluation)
    print(
        f"{form.name:<8}{name:<9}{losses_theirs[0]:>7.3f} -> {losses_theirs[-1]:.3f}",
        f"{losses:>10.1e}{state:>10.1e}{training:>11.0e}",
        f"{inference:>10.1e}{folded:>10.1e}{evaluation:>11.0e}{accuracy:>10.3f}  {'pass' if passed else 'FAIL'}",
    )
    return passed


if __name__ == "__main__":
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, Keras {keras.__version__}, bncpu {bncpu.__version__}; {STEPS} steps\n")
    header = (
        "                   loss of training     losses     state  tolerance  inference    folded  tolerance  accuracy"
    )
    print(header)
    results = [compare(form, d) for form in (TorchForm, KerasForm) for d in (torch.float64, torch.float32)]
    print("\nDifferences are fractions of the largest value: bncpu against the framework, or of 1 if that is larger.")
    sys.exit(not all(results))
