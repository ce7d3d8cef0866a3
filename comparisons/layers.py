"""Trained batch norm layers of PyTorch and Keras in scikit-learn pipelines, and back: the same results.

    pip install -r comparisons/requirements.txt && pip install . && python comparisons/layers.py

Prints the largest difference of each way, in roundings of float32, and ends with status 1 if one is too large.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bncpu import BatchNormTransformer

EPS = np.finfo(np.float32).eps
# The layers compute inference in float32, in another order; training steps add their own roundings.
TOLERANCE = 16
X, Y = load_digits(return_X_y=True)
X = X.astype(np.float32)
BATCHES = np.array_split(X, 20)


def apart(a, b):
    """The largest difference, in roundings of float32 of the largest value."""
    a, b = (np.asarray(values, np.float64) for values in (a, b))
    return float(np.abs(a - b).max() / np.abs(b).max() / EPS)


def trained_of_torch():
    """A network, and its layer, after some batches."""
    layer = torch.nn.BatchNorm1d(64)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    network = torch.nn.Sequential(torch.nn.Identity(), layer)
    for batch in BATCHES:
        network(torch.from_numpy(batch))
    return network.eval(), layer


def of_torch():
    """Differences from PyTorch."""
    network, layer = trained_of_torch()
    frozen = BatchNormTransformer.from_torch(network.state_dict(), prefix="1.", eps=layer.eps)
    with torch.no_grad():
        yield "PyTorch, eval()", apart(frozen.transform(X), network(torch.from_numpy(X)).numpy())
    pipeline = make_pipeline(frozen, LogisticRegression(max_iter=2000))
    pipeline[-1].fit(frozen.transform(X), Y)
    print(f"accuracy of a pipeline behind the layer: {pipeline.score(X, Y):.3f}")

    learning = BatchNormTransformer.from_torch(network.state_dict(), prefix="1.", momentum=1 - layer.momentum)
    network.train()
    for batch in BATCHES[::-1]:
        learning.partial_fit(batch)
        network(torch.from_numpy(batch))
    yield "PyTorch, train() again: mean", apart(learning.running_mean_, layer.running_mean.numpy())
    yield "PyTorch, train() again: variance", apart(learning.running_var_, layer.running_var.numpy())

    mine = BatchNormTransformer(eps=1e-5, gamma=np.linspace(0.5, 2, 64), beta=np.linspace(-1, 1, 64)).fit(X)
    back = torch.nn.BatchNorm1d(64, eps=mine.eps)
    back.load_state_dict({name: torch.from_numpy(a) for name, a in mine.to_torch().items()})
    with torch.no_grad():
        yield "to PyTorch", apart(back.eval()(torch.from_numpy(X)).numpy(), mine.transform(X))
    image = BatchNormTransformer(eps=1e-5, channel_axis=1).fit(X.reshape(-1, 1, 8, 8))
    back = torch.nn.BatchNorm2d(1, eps=image.eps)
    back.load_state_dict({name: torch.from_numpy(a) for name, a in image.to_torch().items()})
    images = X.reshape(-1, 1, 8, 8)
    with torch.no_grad():
        yield "to PyTorch, images", apart(back.eval()(torch.from_numpy(images)).numpy(), image.transform(images))


def of_keras():
    """Differences from Keras."""
    layer = keras.layers.BatchNormalization(momentum=0.9)
    layer.build((None, 64))
    layer.gamma.assign(np.linspace(0.5, 2, 64))
    layer.beta.assign(np.linspace(-1, 1, 64))
    for batch in BATCHES:
        layer(batch, training=True)
    frozen = BatchNormTransformer.from_keras(layer.get_weights(), eps=layer.epsilon)
    infer = lambda layer: keras.ops.convert_to_numpy(layer(X, training=False))  # noqa: E731
    yield "Keras, training=False", apart(frozen.transform(X), infer(layer))
    learning = BatchNormTransformer.from_keras(layer.get_weights(), momentum=layer.momentum, eps=layer.epsilon)
    for batch in BATCHES[::-1]:
        learning.partial_fit(batch)
        layer(batch, training=True)
    mean, var = layer.get_weights()[2:]
    yield "Keras, training=True again: mean", apart(learning.running_mean_, mean)
    yield "Keras, training=True again: variance", apart(learning.running_var_, var)
    mine = BatchNormTransformer(eps=1e-3).fit(X)
    back = keras.layers.BatchNormalization(epsilon=mine.eps)
    back.build((None, 64))
    back.set_weights(mine.to_keras())
    yield "to Keras", apart(infer(back), mine.transform(X))


torch.manual_seed(0)
worst = 0.0
for make in (of_torch, of_keras):
    for what, difference in make():
        worst = max(worst, difference)
        print(f"{what:40} {difference:6.1f} eps")
print(f"tolerance {TOLERANCE} eps: {'pass' if worst <= TOLERANCE else 'FAIL'}")
sys.exit(worst > TOLERANCE)
