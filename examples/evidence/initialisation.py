"""
Depth and initialization
========================

Ioffe and Szegedy ("Batch Normalization", ICML 2015) claim that batch normalization makes training less sensitive to the
initial weights: the scale of a layer's weights cancels, as ``BN(a * W * x) = BN(W * x)``. Deep networks without it
train in a narrow range of scales only, as activations and gradients shrink or grow by a factor in every layer (Glorot
and Bengio, AISTATS 2010; He et al., ICCV 2015). But Yang et al. ("A Mean Field Theory of Batch Normalization", ICLR
2019) show that batch normalization makes gradients explode by itself: in a network of ReLU their variance grows by pi /
(pi - 1) = 1.47 in every layer, whatever the initialization, so that very deep networks need residual connections (He et
al., CVPR 2016).

Here networks of four depths start from weights of nine scales, and take 60 steps on the digits at a rate that suits the
network without batch norm.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
from networks import BatchNorm, Linear, Network, ReLU, Residual, digits, outcome, save, train

SEEDS = range(3)
DEPTHS = (2, 5, 10, 20)
SCALES = 10.0 ** np.arange(-2, 2.1, 0.5)
WIDTH, RATE, STEPS, TRAINED = 64, 0.1, 60, 0.7
DATA = [digits(seed) for seed in SEEDS]

# %%
# The layers of one step in depth, for three kinds of network. Weights have ``scale`` times the standard deviation of He
# et al.'s rule. A residual block normalizes first, so that nothing stands in the way of the sum (He et al., ECCV 2016).

KINDS = {
    "without batch norm": lambda linear: [linear, ReLU()],
    "with batch norm": lambda linear: [linear, BatchNorm(WIDTH), ReLU()],
    "residual, without batch norm": lambda linear: [Residual(ReLU(), linear)],
    "residual, with batch norm": lambda linear: [Residual(BatchNorm(WIDTH), ReLU(), linear)],
}


def network(kind, depth, scale, seed):
    """A linear layer to 64 features, `depth` of one kind, and a linear layer to 10, of unscaled weights."""
    rng = np.random.default_rng(seed)
    layers = [layer for _ in range(depth) for layer in KINDS[kind](Linear(WIDTH, WIDTH, rng, scale))]
    last = [BatchNorm(WIDTH)] if kind == "residual, with batch norm" else []
    return Network(Linear(64, WIDTH, rng, scale), *layers, *last, Linear(WIDTH, 10, rng))


# %%
# Test accuracies of shape (depths, scales, seeds); a network that diverged guesses, and one trains if it gets 70 %
# right. The scales said below are those that train in the median over the seeds.


def learned(kind, depth, scale, seed):
    """The course of training, tested at its end."""
    return train(network(kind, depth, scale, seed), DATA[seed], RATE, steps=STEPS, every=STEPS, seed=seed)


GRID, ACCURACY = list(itertools.product(DEPTHS, SCALES, SEEDS)), {}
for kind in KINDS:
    histories = [learned(kind, *cell) for cell in GRID]
    found = np.array([history.accuracy[-1] for history in histories]).reshape(len(DEPTHS), len(SCALES), len(SEEDS))
    ACCURACY[kind] = found
    trains = 100 * (found >= TRAINED).mean(axis=(0, 1))
    least, most = trains.min(), trains.max()
    print(f"{kind}: {trains.mean():.0f} % of the grid trains ({least:.0f} to {most:.0f} over {len(SEEDS)} seeds)")
    for depth, of_depth in zip(DEPTHS, np.median(found, axis=2), strict=True):
        which = SCALES[of_depth >= TRAINED]
        says = f"{len(which)} scales, {which[0]:.3g} to {which[-1]:.3g}" if which.size else "0 scales"
        print(f"  depth {depth}: {says}")
    print(f"  {outcome(histories)}")

# %%
# Before any training: by what factor do the mean squares of activations grow from layer to layer, and those of their
# gradients on the way back? Of 20 layers, the first and the last few are left out: they still feel the ends.


def growth(kind, scale, seed):
    """The geometric means of both factors over the layers."""
    made, data = network(kind, 20, scale, seed), DATA[seed]
    x, forwards, backwards = data.x_train[:256], [], []
    for layer in made.layers:
        x = layer.forward(x, training=True)
        if isinstance(layer, ReLU):
            forwards.append(np.mean(np.square(x, dtype=np.float64)))
    dy = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    for layer in reversed(made.layers):
        if isinstance(layer, ReLU):
            backwards.append(np.mean(np.square(dy, dtype=np.float64)))
        dy = layer.backward(dy)
    return [(values[14] / values[4]) ** (1 / 10) for values in (forwards, backwards)]


for kind in ("without batch norm", "with batch norm"):
    for scale in (SCALES[3], 1.0, SCALES[5]):
        activations, gradients = np.array([growth(kind, scale, seed) for seed in SEEDS]).T
        print(
            f"{kind}, scale {scale:.2g}: a layer multiplies squared activations by {activations.mean():.2f}, squared "
            f"gradients by {gradients.mean():.2f} ({gradients.min():.2f} to {gradients.max():.2f})"
        )
print(f"Yang et al., squared gradients with batch norm: {np.pi / (np.pi - 1):.2f}")

# %%
# With batch norm the range of scales is wider by orders of magnitude, but not without end. A step at large weights
# changes little and one at small weights much, for their size; and the gradients' own growth, at the rate of Yang et
# al., leaves little of the network of 20 layers. Residual connections alone train from small weights only. The two
# together train everywhere.

figure, panels = plt.subplots(1, 4, figsize=(12, 3.4), sharey=True, layout="constrained")
for panel, (kind, found) in zip(panels, ACCURACY.items(), strict=True):
    image = panel.imshow(100 * found.mean(axis=2), cmap="viridis", vmin=0, vmax=100, origin="lower", aspect="auto")
    panel.set(title=kind, xlabel="scale of the initial weights")
    panel.set_xticks(range(0, len(SCALES), 2), ["0.01", "0.1", "1", "10", "100"])
    panel.set_yticks(range(len(DEPTHS)), DEPTHS)
panels[0].set_ylabel("depth [layers]")
figure.colorbar(image, ax=panels, label="test accuracy [%], mean of 3 seeds")
save(figure, "initialisation")
