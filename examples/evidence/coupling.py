"""
Samples of a batch are coupled
==============================

With batch statistics, a sample's output and gradient depend on the other samples of its batch. Ioffe and Szegedy
("Batch Normalization", ICML 2015, section 3) say so, and take running statistics for inference, where an output should
follow from its input alone; Brock et al. ("High-Performance Large-Scale Image Recognition Without Normalization", ICML
2021) count the coupling among the drawbacks of batch normalization. Measured here: the derivative of one sample's
output by another sample, how it falls with the size of the batch, that it is exactly 0 with frozen statistics, and how
many predictions batch mates change.
"""

import matplotlib.pyplot as plt
import numpy as np
from networks import BLACK, BLUE, ORANGE, BatchNorm, Linear, Network, ReLU, digits, outcome, save, train

from bncpu import SavedStatistics, batch_norm_backward, batch_norm_backward_frozen, batch_norm_forward

SEEDS = range(5)

# %%
# The Jacobian between samples
# ----------------------------
# ``batch_norm_backward`` of a gradient that is 1 in one sample and 0 in all others is that sample's row of the
# Jacobian: how its output moves with every input of the batch. On pixels of digits, a channel each, in float64: the
# root mean square of the entries between different samples, as a share of that of a sample with itself. By the formula,
# dy_i / dx_j = -invstd * (1 + x_hat_i * x_hat_j) / m where i is not j: sqrt(2) / m can be expected.

SIZES = 2 ** np.arange(1, 9)


def jacobian(backward, x):
    """For each channel the derivatives of outputs by inputs: entry [i, j, c] is dy_i / dx_j."""
    rows = []
    for i in range(len(x)):
        dy = np.zeros_like(x)
        dy[i] = 1
        rows.append(backward(dy, x)[0])
    return np.array(rows)


def between_and_own(blocks):
    """Root mean squares of the entries of different samples, and of those of one and the same."""
    own = np.eye(len(blocks), dtype=bool)
    return np.sqrt((blocks[~own] ** 2).mean()), np.sqrt((blocks[own] ** 2).mean())


share, frozen = np.empty((len(SEEDS), len(SIZES))), 0.0
for seed in SEEDS:
    data = digits(seed)
    lively = data.x_train.astype(np.float64)[:, data.x_train.std(axis=0) > 0.5]
    running = SavedStatistics.from_variance(lively.mean(axis=0), lively.var(axis=0))
    for column, size in enumerate(SIZES):
        x = np.random.default_rng(seed).choice(lively, size, replace=False)
        saved = batch_norm_forward(x)[1]
        between, own = between_and_own(jacobian(lambda dy, x, saved=saved: batch_norm_backward(dy, x, saved), x))
        share[seed, column] = between / own
        fixed = jacobian(lambda dy, x, running=running: batch_norm_backward_frozen(dy, x, running), x)
        frozen = max(frozen, between_and_own(fixed)[0])

print("derivative by another sample / by the sample itself, batches of", *SIZES)
print("  batch statistics ", *(f"{v.mean():.4f}±{v.std():.4f}" for v in share.T))
print("  times the size   ", *(f"{v.mean():.3f}±{v.std():.3f}" for v in (share * SIZES).T))
print(f"  frozen statistics: largest {frozen}")

# %%
# Who sits beside you changes what you are
# ----------------------------------------
# A trained network, evaluated the wrong way: each test digit in 10 random batches, normalized by their statistics. The
# share of digits that do not get the same label in all 10; with running statistics it must be 0.

BATCHES, SHUFFLES = np.array([4, 8, 16, 32, 64, 128, 256]), 10
flipped, flipped_running = np.empty((2, len(SEEDS), len(BATCHES)))
histories = []


def predicted(network, x, size, rng, training):
    """The label of every sample in each of several shuffles into batches of one size; -1 for a rest too small."""
    labels = np.full((SHUFFLES, len(x)), -1)
    for row in labels:
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            mates = order[start : start + size]
            row[mates] = network.forward(x[mates], training).argmax(axis=1)
    return labels


def undecided(labels):
    """The share of samples that have more than one label."""
    largest = labels.max(axis=0)
    return np.mean(((labels != largest) & (labels >= 0)).any(axis=0))


for seed in SEEDS:
    rng, data = np.random.default_rng(seed), digits(seed)
    network = Network(
        *(Linear(64, 64, rng), BatchNorm(64), ReLU(), Linear(64, 64, rng), BatchNorm(64), ReLU(), Linear(64, 10, rng))
    )
    histories.append(train(network, data, 0.1, batch=64, steps=500, every=500, seed=seed))
    for column, size in enumerate(BATCHES):
        flipped_running[seed, column] = undecided(predicted(network, data.x_test, size, rng, training=False))
        flipped[seed, column] = undecided(predicted(network, data.x_test, size, rng, training=True))

print("share of digits whose label depends on the batch, batches of", *BATCHES)
print("  batch statistics  ", *(f"{v.mean():.3f}±{v.std():.3f}" for v in flipped.T))
print("  running statistics", *(f"{v.mean():.3f}±{v.std():.3f}" for v in flipped_running.T))
print(outcome(histories))

# %%
# What came out
# -------------
# * The derivative between samples falls as sqrt(2) / m, as the formula says: at 256 it is 0.6 % of a sample's own. But
#   there are m - 1 of them: together, as independent contributions, they fall with the square root of m only. At 2
#   samples a normalized pair is -1 and 1 whatever it was: both derivatives are as good as 0, and equally large.
#   (The seeds scatter at 8: a pixel that is constant in a batch is divided by the root of eps, and outweighs others.)
# * With frozen statistics it is 0, not small: ``batch_norm_backward_frozen`` never reads another sample.
# * By batch statistics a label is a property of the batch: even at 256 some digits have two.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
axes[0].plot(SIZES, share.T, "o", color=ORANGE, markersize=4)
axes[0].plot([], [], "o", color=ORANGE, markersize=4, label="batch statistics, a point a seed")
axes[0].plot(SIZES, np.sqrt(2) / SIZES, color=BLACK, linestyle=":", label="sqrt(2) / m")
axes[0].plot([], [], color=BLUE, label="frozen statistics: 0 at any size")
axes[0].set(xlabel="samples a batch, m", ylabel="derivative by another sample / by itself", yscale="log")
axes[0].set(title="The Jacobian between samples")
for size, values in zip(BATCHES, flipped.T, strict=True):
    axes[1].plot(np.full(len(SEEDS), size), 100 * values, "o", color=ORANGE, markersize=4)
axes[1].plot(BATCHES, 100 * flipped.mean(axis=0), color=ORANGE, label="batch statistics, mean and a point a seed")
axes[1].plot(BATCHES, 100 * flipped_running.mean(axis=0), color=BLUE, label="running statistics")
axes[1].set(xlabel="samples a batch", ylabel="test digits with more than one label, %", ylim=(-4, 100))
axes[1].set(title=f"Labels in {SHUFFLES} random batches")
for axis, sizes in zip(axes, (SIZES, BATCHES), strict=True):
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, sizes)
    axis.legend(fontsize=8)
save(figure, "coupling")
