"""
What n samples leave of variance and gradient: (n - 1)/n and (n - 2)/n
======================================================================

Much of what goes wrong with small batches is known without a network: for n independent normal values of a channel the
expectations have closed forms. The variance of a batch, divided by n as in Ioffe and Szegedy ("Batch Normalization",
ICML 2015, algorithm 1), is (n - 1)/n of the true one. Their algorithm 2 multiplies by n/(n - 1) for inference; the
running variance of this library's ``momentum`` does not, unless ``ddof=1`` says so. The others are derived below; each
stands beside what is measured with the library's functions, for n from 2 to 64.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
from networks import BLACK, BLUE, GREEN, ORANGE, PINK, save

import bncpu

SIZES = np.array([2, 4, 8, 16, 32, 64])
CHANNELS, BATCHES, EPS = 64, 100, 1e-12

# %%
# The closed forms
# ----------------
# Let s be the standard deviation of a batch, divided by n, of values whose true one is 1. Then n * s**2 has a
# chi-squared distribution with n - 1 degrees of freedom, so the mean of s**2 is (n - 1)/n, and that of s is
# sqrt(2/n) * Gamma(n/2) / Gamma((n - 1)/2).
#
# Between training and inference a value differs by z - (z - m)/s, for running statistics that are exact: 0 and 1. Its
# mean square over a batch is 1 + 1 - 2 s, in expectation, as the normalized values have the mean square 1 and their
# mean product with z is s. The root of 2 - 2 E(s) is the gap. It nears sqrt(1.5/n) for large n.
#
# The backward pass projects: the gradient that reaches x, times s, is the one that arrived without its parts along the
# vector of ones and along the normalized values, two orthogonal directions of n. Of a gradient that does not depend on
# them (n - 2)/n of the mean square is left, in expectation: at n = 2 nothing.


def mean_deviation(n):
    """E(s)."""
    return math.sqrt(2 / n) * math.gamma(n / 2) / math.gamma((n - 1) / 2)


FORMS = {
    "running variance": lambda n: (n - 1) / n,
    "running variance, ddof=1": lambda n: 1.0,
    "squared output at inference": lambda n: n / (n - 1),
    "squared gap": lambda n: 2 - 2 * mean_deviation(n),
    "squared gradient": lambda n: (n - 2) / n,
}

# %%
# Measured
# --------
# 6,400 batches of each size: 100 in a stream, in 64 channels. The statistic of the channels is their mean, and its
# standard error is their standard deviation over sqrt(64). ``halflife`` and the cumulative kind merge batches, and need
# no form: they have the variance of all rows (:doc:`../small_batches`).


def measured(n):
    """Of every channel: the rows of FORMS, of shape (quantities, channels)."""
    rng = np.random.default_rng(n)
    x, dy = rng.normal(size=(2, BATCHES, n, CHANNELS))
    biased, unbiased = np.empty((2, BATCHES, CHANNELS))
    squares = np.empty((2, BATCHES, CHANNELS))
    for k in range(BATCHES):
        for found, ddof in ((biased, 0), (unbiased, 1)):
            # Momentum averages what single batches give it, which is what momentum 0 shows.
            found[k] = bncpu.BatchNormTransformer(momentum=0.0, ddof=ddof).partial_fit(x[k]).running_var_
        y, saved = bncpu.batch_norm_forward(x[k], eps=EPS)
        dx, *_ = bncpu.batch_norm_backward(dy[k], x[k], saved)
        squares[0, k] = np.mean((x[k] - y) ** 2, axis=0)
        squares[1, k] = np.mean((dx / saved.invstd) ** 2, axis=0)
    variance = biased.mean(axis=0)
    inference = bncpu.batch_norm(x.reshape(-1, CHANNELS), np.zeros(CHANNELS), variance, eps=EPS)
    return np.array([variance, unbiased.mean(axis=0), np.mean(inference**2, axis=0), *squares.mean(axis=1)])


ROWS = np.array([measured(n) for n in SIZES])  # (sizes, quantities, channels)
MEANS, ERRORS = ROWS.mean(axis=2), ROWS.std(axis=2, ddof=1) / math.sqrt(CHANNELS)
for k, (name, form) in enumerate(FORMS.items()):
    print(f"{name}, batches of", *SIZES)
    print("  closed form ", *(f"{form(n):.4f}" for n in SIZES))
    print("  measured    ", *(f"{m:.4f}±{e:.4f}" for m, e in zip(MEANS[:, k], ERRORS[:, k], strict=True)))
print("behind ± stands the standard error")

# %%
# What came out
# -------------
# All that was measured is within four standard errors of its form. What follows for training:
#
# * At n = 2 nothing is left of the gradient: what is normalized is 1 and -1, whatever was there, so nothing before a
#   batch norm can learn, but through eps. That is why :doc:`dense networks with batches of 2 <small_batches>` stay at
#   errors of 30 %. At 4 half is left. Convolutions count their places, too, though places of one sample are alike.
# * With the running variance of ``momentum`` a network's outputs, squared, are n/(n - 1) times as large as in training.
#   At 16 that is 7 %, and ``ddof=1`` takes it away. The gap remains: it is that the statistics of a batch are noise.
# * Not shown: data that are not normal, or not independent. Then the forms for s**2 hold for independent values of any
#   distribution, the others do not.

figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
colours = dict(zip(FORMS, (BLUE, BLACK, ORANGE, PINK, GREEN), strict=True))
fine = np.geomspace(2, 64, 100)
for k, (name, form) in enumerate(FORMS.items()):
    panels[0].plot(fine, [form(n) for n in fine], color=colours[name])
    panels[0].plot(SIZES, MEANS[:, k], "o", color=colours[name], label=name)
    ratio = (MEANS[:, k] - [form(n) for n in SIZES]) / np.maximum(ERRORS[:, k], 1e-15)
    if name != "squared gradient":
        panels[1].plot(SIZES, ratio, "o", color=colours[name])
    else:  # at 2 there is neither gradient nor error
        panels[1].plot(SIZES[1:], ratio[1:], "o", color=colours[name])
panels[0].set(
    title="Lines: closed forms; points: measured", ylabel="of a true variance or gradient of 1", ylim=(-0.05, 2.1)
)
panels[0].legend(fontsize=8)
panels[1].axhspan(-2, 2, color=BLACK, alpha=0.1, linewidth=0)
panels[1].set(title="How far apart", ylabel="measured - closed form [standard errors]", ylim=(-4.2, 4.2))
for panel in panels:
    panel.set(xlabel="batch size n [samples]", xscale="log")
    panel.set_xticks(SIZES, SIZES)
    panel.minorticks_off()
    panel.grid(alpha=0.3)
save(figure, "closed_forms")
