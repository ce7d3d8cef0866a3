"""Trained batch norm layers of PyTorch, Keras and Flax as transformers, and back; Keras's mask: the same results.

    pip install -r comparisons/requirements.txt && pip install . && python comparisons/layers.py

Prints the largest difference of each way, in roundings of float32, and ends with status 1 if one is too large.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import flax
import jax
import keras
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bncpu import BatchNormTransformer, batch_norm_backward, batch_norm_forward

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


def of_mask():
    """Differences from Keras's layer with a mask, at every position, and of the gradient."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(3, 2, (2, 16, 12, 64)).astype(np.float32)
    where = np.arange(12) < rng.integers(1, 13, 16)[:, None]
    layer = keras.layers.BatchNormalization(epsilon=1e-3)
    data = torch.from_numpy(x).requires_grad_()
    theirs = layer(data, training=True, mask=torch.from_numpy(where))
    theirs.backward(torch.from_numpy(dy))
    y, saved = batch_norm_forward(x, channel_axis=-1, eps=1e-3, where=where)
    dx, _, _ = batch_norm_backward(dy, x, saved, channel_axis=-1, where=where)
    yield "Keras, mask: result", apart(y, theirs.detach().numpy())
    yield "Keras, mask: gradient", apart(dx, data.grad.numpy())
    mean, var = np.zeros(64), np.ones(64)
    batch_norm_forward(x, channel_axis=-1, where=where, running_mean=mean, running_var=var, momentum=layer.momentum)
    yield "Keras, mask: running mean", apart(layer.get_weights()[2], mean)
    yield "Keras, mask: running variance", apart(layer.get_weights()[3], var)


def of_flax():
    """Differences from Flax."""
    layer = flax.linen.BatchNorm(momentum=0.9)
    variables = layer.init(jax.random.key(0), X, use_running_average=False)
    variables["params"]["scale"] = jax.numpy.linspace(0.5, 2, 64)
    step = lambda batch: layer.apply(variables, batch, use_running_average=False, mutable=["batch_stats"])[1]  # noqa: E731
    for batch in BATCHES:
        variables = variables | step(batch)
    given = variables["params"], variables["batch_stats"]
    frozen = BatchNormTransformer.from_flax(*given)
    yield "Flax, use_running_average", apart(frozen.transform(X), layer.apply(variables, X, use_running_average=True))
    learning = BatchNormTransformer.from_flax(*given, momentum=layer.momentum)
    for batch in BATCHES[::-1]:
        learning.partial_fit(batch)
        variables = variables | step(batch)
    yield "Flax, in training again: mean", apart(learning.running_mean_, variables["batch_stats"]["mean"])
    yield "Flax, in training again: variance", apart(learning.running_var_, variables["batch_stats"]["var"])


torch.manual_seed(0)
worst = 0.0
for make in (of_torch, of_keras, of_mask, of_flax):
    for what, difference in make():
        worst = max(worst, difference)
        print(f"{what:40} {difference:6.1f} eps")
print(f"tolerance {TOLERANCE} eps: {'pass' if worst <= TOLERANCE else 'FAIL'}")
sys.exit(worst > TOLERANCE)
