"""
Batch normalization folded away
===============================

At inference batch normalization, with its scale and shift, is one linear function per channel (Ioffe and Szegedy,
"Batch Normalization", ICML 2015, section 3.1), so it can be multiplied into the convolution before it, as Jacob et al.
("Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2)
do before they quantize weights. Claimed are the same outputs at no cost. Measured here on photographs, with three
blocks of convolution, batch normalization and ReLU in NumPy: how far the outputs of a folded network lie from those of
the network it was made of, and what each way of normalizing costs.
"""

import itertools
import time

import matplotlib.pyplot as plt
import numpy as np
from networks import BLACK, BLUE, GREEN, ORANGE, SKY, save
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_sample_images

from bncpu import BatchNormTransformer, batch_norm, fold_conv

SEEDS, CHANNELS, TILE = range(5), [3, 32, 32, 32], 64
EPS = 1e-5

# %%
# The network, as a list of passes
# --------------------------------
# A 3 x 3 convolution, channels last, is one product of matrices: windows by weights. A column of ones beside the
# windows brings the bias in, so that a bias costs no pass of its own; without one that row of the weights is 0. A
# network is a list of functions, products and whatever else goes over the activations.


def convolution(weight, bias):
    """The pass that convolves."""
    n_in, n_out = weight.shape[2:]
    matrix = np.vstack([weight.reshape(-1, n_out), bias])

    def product(x):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = sliding_window_view(padded, (3, 3), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
        columns = np.empty((*x.shape[:3], 9 * n_in + 1), x.dtype)
        columns[..., -1] = 1
        columns[..., :-1].reshape(windows.shape, copy=False)[...] = windows
        return (columns.reshape(-1, 9 * n_in + 1) @ matrix).reshape(*x.shape[:3], n_out)

    return product


def relu(x):
    """The pass that is nothing else."""
    return np.maximum(x, 0, out=x)


def fused(norm, activation):
    """One call of `batch_norm` in place, with or without ReLU."""
    return lambda x: batch_norm(x, *norm, eps=EPS, channel_axis=-1, activation=activation, out=x)


def textbook(norm):
    """What the formula looks like in NumPy: four passes."""
    mean, var, gamma, beta = (values.astype(np.float32) for values in norm)
    std = np.sqrt(var + np.float32(EPS))
    return [lambda x: x - mean, lambda x: x / std, lambda x: x * gamma, lambda x: x + beta]


def run(passes, x):
    """The result of all passes."""
    for one in passes:
        x = one(x)
    return x


# %%
# Five ways
# ---------
# Weights are drawn; running statistics are those of the photographs at each layer; gamma and beta are drawn, too.

photographs = np.stack(load_sample_images().images).astype(np.float32) / 128 - 1
WAYS = {
    "NumPy formula, ReLU": ORANGE,
    "batch_norm, ReLU": SKY,
    'batch_norm(activation="relu")': BLUE,
    "folded, ReLU": GREEN,
    "never had one, ReLU": BLACK,
}


def tiles(rng, n):
    """Pieces of the photographs."""
    corners = zip(rng.integers(0, 2, n), rng.integers(0, 427 - TILE, n), rng.integers(0, 640 - TILE, n), strict=True)
    return np.stack([photographs[image, row : row + TILE, column : column + TILE] for image, row, column in corners])


def networks(rng):
    """The passes of each way."""
    ways, seen = {name: [] for name in WAYS}, tiles(rng, 8)
    for n_in, n_out in itertools.pairwise(CHANNELS):
        weight = rng.normal(0, np.sqrt(2 / 9 / n_in), (3, 3, n_in, n_out)).astype(np.float32)
        conv = convolution(weight, np.zeros(n_out, np.float32))
        learned = BatchNormTransformer(channel_axis=-1).fit(conv(seen))
        norm = (learned.running_mean_, learned.running_var_, rng.uniform(0.5, 1.5, n_out), rng.normal(0, 0.5, n_out))
        passes = [
            [conv, *textbook(norm), relu],
            [conv, fused(norm, None), relu],
            [conv, fused(norm, "relu")],
            [convolution(*fold_conv(weight, None, *norm, eps=EPS, channel_axis=-1)), relu],
            [conv, relu],
        ]
        for way, more in zip(ways.values(), passes, strict=True):
            way += more
        seen = run(passes[2], seen)
    return ways


# %%
# The same outputs
# ----------------
# The largest difference of any output, in units of float32's eps times the largest output. The truth is the network as
# it was, of the same weights, computed in float64.

apart, own_error, folded_error = np.empty((3, len(SEEDS)))
for seed in SEEDS:
    rng = np.random.default_rng(seed)
    ways, x = networks(rng), tiles(rng, 4)
    plain, folded = (run(ways[name], x).astype(np.float64) for name in ("batch_norm, ReLU", "folded, ReLU"))
    truth = run(ways["batch_norm, ReLU"], x.astype(np.float64))
    unit = np.finfo(np.float32).eps * truth.max()
    apart[seed] = np.abs(folded - plain).max() / unit
    own_error[seed], folded_error[seed] = (np.abs(y - truth).max() / unit for y in (plain, folded))

print("passes over the data:", ", ".join(f"{name}: {len(passes)}" for name, passes in ways.items()))
print(f"folded against not folded: {apart.mean():.2f}±{apart.std():.2f} eps")
print(f"error of not folded: {own_error.mean():.2f}±{own_error.std():.2f} eps")
print(f"error of folded: {folded_error.mean():.2f}±{folded_error.std():.2f} eps")

# %%
# What it costs
# -------------
# All ways take turns in random order, on one thread. Each time is divided by that of the folded network in the same
# round; printed are medians and quartiles. It is the thread's processor time, to which work of others adds little.

ROUNDS = 20
ratios = {name: [] for name in WAYS}
for seed in SEEDS:
    rng = np.random.default_rng(seed)
    ways, x = networks(rng), tiles(rng, 2)
    for _ in range(ROUNDS + 1):
        took = {}
        for name in rng.permutation(list(WAYS)):
            start = time.thread_time()
            run(ways[name], x)
            took[name] = time.thread_time() - start
        for name, seconds in took.items():
            ratios[name].append(seconds / took["folded, ReLU"])
    for name in WAYS:
        del ratios[name][-ROUNDS - 1]  # the first round warms up

print("time / that of the folded network, median and quartiles:")
for name, values in ratios.items():
    low, middle, high = np.percentile(values, [25, 50, 75])
    print(f"  {name:30} {middle:.2f} ({low:.2f} to {high:.2f})")

# %%
# What came out
# -------------
# * Folding changes the outputs as much as float32's rounding does anyway: both networks lie equally far from the truth.
# * A folded network costs what one costs that never had batch normalization: its passes are the same.
# * The saving is small where convolutions are as slow as these in NumPy. When this was written, the formula written
#   out took 1.3 times as long as the folded network, ``batch_norm`` 1.15 times, and with ReLU in the same pass 1.12.

figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=[1, 1.3])
errors = {
    "folded against\nnot folded": apart,
    "not folded\nagainst float64": own_error,
    "folded\nagainst float64": folded_error,
}
for (name, values), color in zip(errors.items(), (BLACK, SKY, GREEN), strict=True):
    axes[0].plot([name] * len(values), values, "o", color=color)
axes[0].plot([], [], "o", color="gray", label="a point a seed")
axes[0].set(ylabel="largest difference, eps of float32", ylim=(0, None), title="Outputs of three blocks")
axes[0].margins(x=0.2)
for name, color in WAYS.items():
    low, middle, high = np.percentile(ratios[name], [25, 50, 75])
    axes[1].barh(name, middle, color=color, alpha=0.6)
    axes[1].errorbar(middle, name, xerr=[[middle - low], [high - middle]], color="black", capsize=4)
axes[1].errorbar([], [], xerr=[], color="black", capsize=4, label="quartiles")
axes[1].invert_yaxis()
axes[1].set(xlabel="time / that of the folded network, median", title="Inference, one thread", xlim=(0, None))
for axis in axes:
    axis.legend(fontsize=8, loc="lower right")
save(figure, "folding")
