"""
Depth makes samples orthogonal with batch norm, and one without
===============================================================

Daneshmand, Joudaki and Bach ("Batch Normalization Orthogonalizes Representations in Deep Random Networks", NeurIPS
2021) send a batch of n samples through a random network of linear layers of one width, each with batch norm in front.
They prove that the orthogonality gap falls with depth, exponentially, down to a term of the order 1/sqrt(width). This
gap is that of the matrix of inner products of the n samples, divided by its trace, from the identity divided by n, as a
Frobenius norm. Without batch norm the rank collapses: all samples become one direction, up to the sign (Daneshmand et
al., "Batch Normalization Provably Avoids Rank Collapse for Randomly Initialised Deep Networks", NeurIPS 2020).

Their batch norm does not subtract the mean: it is a root mean square over the batch, which is ``bncpu.rms_norm`` of the
transposed batch. It is compared here with ``bncpu.batch_norm_forward``, which does subtract. Five random networks of
each width. With a norm the samples start as nearly one, at 6 degrees to each other; without, as they fall in a space of
that width, nearly orthogonal. So either way the start is far from where depth leads.
"""

import matplotlib.pyplot as plt
import numpy as np
from networks import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, save

import bncpu

SEEDS, N, DEPTH = range(5), 8, 120
WIDTHS = np.array([16, 32, 64, 128, 256, 512])


def without_mean(h):
    """The batch norm of the theorem: every feature over its root mean square in the batch."""
    return bncpu.rms_norm(np.ascontiguousarray(h.T), h.shape[0], eps=0).T


def with_mean(h):
    """That of Ioffe and Szegedy (2015)."""
    return bncpu.batch_norm_forward(h, eps=1e-12)[0]


NORMS = {"no mean subtracted": without_mean, "batch norm": with_mean, "none": lambda h: h}
ACTIVATIONS = {"linear": lambda h: h, "ReLU": lambda h: np.maximum(h, 0)}


def gap(h):
    """Of rows that are samples, of any size."""
    gram = h @ h.T
    return np.linalg.norm(gram / np.trace(gram) - np.eye(len(h)) / len(h))


def course(norm, activation, width, seed):
    """The gap after 0 to DEPTH layers."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(N, width))
    if norm != "none":
        h = rng.normal(size=width) + 0.075 * h
    gaps = [gap(h)]
    for _ in range(DEPTH):
        h = NORMS[norm](ACTIVATIONS[activation](h)) @ rng.normal(0, 1 / np.sqrt(width), (width, width))
        h /= np.sqrt(np.mean(h * h))  # of no effect on the gap: so that networks without a norm do not underflow
        gaps.append(gap(h))
    return gaps


GAPS = {
    (norm, activation): np.array([[course(norm, activation, width, seed) for seed in SEEDS] for width in WIDTHS])
    for norm in NORMS
    for activation in ACTIVATIONS
}

# %%
# What is left after many layers, and with which power of the width it falls: the slope of a straight line through the
# logarithms, fitted for each seed. The mean over the second half of the layers is taken, so that one seed is a mean
# over 60 matrices. The results of batch norm have the mean 0, so its n samples lie in n - 1 dimensions. The least gap
# that such samples can have is 1 / sqrt(n * (n - 1)), however wide the network.


def powers(left):
    """The slope over the widths for each seed, of (widths, seeds)."""
    return np.array([np.polyfit(np.log(WIDTHS), np.log(of_seed), 1)[0] for of_seed in left.T])


LEFT = {case: gaps[..., DEPTH // 2 :].mean(axis=-1) for case, gaps in GAPS.items()}
FLOOR = 1 / np.sqrt(N * (N - 1))
print(f"orthogonality gap of {N} samples after {DEPTH // 2} to {DEPTH} layers, widths", *WIDTHS)
for (norm, activation), left in LEFT.items():
    row = " ".join(f"{of_width.mean():.3f}±{of_width.std():.3f}" for of_width in left)
    print(f"  {norm}, {activation}: {row}")
print("power of the width")
for (norm, activation), left in LEFT.items():
    slope = powers(left)
    print(f"  {norm}, {activation}: {slope.mean():.2f}±{slope.std():.2f}")
print(f"the least gap of samples of mean 0, 1 / sqrt(n * (n - 1)): {FLOOR:.4f}")
excess = np.sqrt(LEFT["batch norm", "linear"] ** 2 - FLOOR**2)
slope = powers(excess)
print(f"  power of what batch norm leaves above it, in squares: {slope.mean():.2f}±{slope.std():.2f}")
times = LEFT["no mean subtracted", "linear"] * np.sqrt(WIDTHS)[:, None]
print("no mean subtracted, linear: gap * sqrt(width)", *(f"{t:.2f}" for t in times.mean(axis=1)))
print(f"largest gap there is, that of one direction, sqrt(1 - 1 / n): {np.sqrt(1 - 1 / N):.4f}")

# %%
# How fast does it fall? Layers until the gap is below half of what it was at the start.


def layers_to_half(gaps):
    """Of shape (widths, seeds)."""
    return (gaps < gaps[..., :1] / 2).argmax(axis=-1)


for case in (("no mean subtracted", "linear"), ("batch norm", "linear")):
    half = layers_to_half(GAPS[case])
    print(f"{case[0]}: layers to half the gap", *(f"{h.mean():.1f}±{h.std():.1f}" for h in half))

# %%
# What came out
# -------------
# ==========================================  ==================  ================================
# gap, as a power of the width                their theorem       here
# ==========================================  ==================  ================================
# no mean subtracted, linear                  -1/2, a bound       -0.51 to -0.52
# batch norm, linear                          not theirs          -0.33; above its floor -1/2
# no mean subtracted, ReLU                    no theorem          -0.13: it stays near 0.3
# batch norm, ReLU                            no theorem          -0.29: the same floor
# ==========================================  ==================  ================================
#
# * As in the theorem, without the mean and without ReLU, the gap falls to half in 3 to 6 layers and stays at 1.9 /
#   sqrt(width). How near that is to the constant of their bound was not looked at.
# * Without a norm the samples become one direction: soon with ReLU, and in a linear network the later the wider it is.
#   At 512 features 120 layers are not enough for that.
# * Batch norm as it is used subtracts the mean. That takes away in one layer what the samples had in common, but 1 /
#   sqrt(width) is not what is left: n samples of mean 0 lie in n - 1 dimensions. What is above that floor, as the root
#   of the difference of the squares, falls with the power -1/2 again.
# * With ReLU, and the mean not subtracted, orthogonality is not reached: values that are not negative have a common
#   direction, and the gap stays near 0.3, however wide the network. With the mean subtracted the gap is as small as
#   without ReLU. The paper's own figures are curves, so no number of theirs stands here beside ours.

figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
shown = {16: ORANGE, 64: GREEN, 512: BLUE}
for width, colour in shown.items():
    at = WIDTHS.tolist().index(width)
    for norm, line in (("no mean subtracted", "-"), ("none", ":")):
        gaps = GAPS[norm, "linear"][at]
        label = f"{width} features" if norm != "none" else f"{width}, no norm"
        panels[0].plot(gaps.mean(axis=0), line, color=colour, label=label)
        panels[0].fill_between(
            range(DEPTH + 1), gaps.min(axis=0), gaps.max(axis=0), color=colour, alpha=0.2, linewidth=0
        )
panels[0].set(title="Linear network, norm of the theorem", xlabel="depth [layers]", ylabel="orthogonality gap")
panels[0].set(yscale="log", ylim=(0.02, 1.1))  # room for the legend
panels[0].set_yticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
for (case, label), colour in zip(
    {
        ("no mean subtracted", "linear"): "no mean subtracted",
        ("batch norm", "linear"): "batch norm",
        ("no mean subtracted", "ReLU"): "no mean subtracted, ReLU",
        ("batch norm", "ReLU"): "batch norm, ReLU",
    }.items(),
    (BLUE, PINK, SKY, GREEN),
    strict=True,
):
    panels[1].plot(WIDTHS, LEFT[case].mean(axis=1), "o-", color=colour, label=label)
panels[1].plot(
    WIDTHS, times.mean() / np.sqrt(WIDTHS), "--", color=BLACK, linewidth=0.8, label=r"$1/\sqrt{\mathrm{width}}$"
)
panels[1].axhline(FLOOR, linestyle=":", color=BLACK, linewidth=0.8, label=r"least of mean 0, $1/\sqrt{n(n-1)}$")
panels[1].set(title="After 60 to 120 layers", xlabel="width [features]", xscale="log", yscale="log", ylim=(0.05, 1.1))
panels[1].set_xticks(WIDTHS, WIDTHS)
panels[1].set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
for panel in panels:
    panel.minorticks_off()
    panel.grid(alpha=0.3)
panels[0].legend(fontsize=8, ncols=3, loc="lower center")
panels[1].legend(fontsize=8)
save(figure, "orthogonality")
