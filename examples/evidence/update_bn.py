"""
Statistics taken again: an average of variances, or all rows
============================================================

Averaged weights need running statistics of their own: Izmailov et al. ("Averaging Weights Leads to Wider Optima and
Better Generalization", UAI 2018) run one more pass over the data for them, and PyTorch has
``torch.optim.swa_utils.update_bn`` for it. It averages the variances of the batches, and so leaves out how far their
means lie apart, which is nearly all there is where rows come sorted. ``bncpu.torch.update_bn`` merges the batches: the
statistics of all rows, whatever the batches.

What does that cost a network? Measured here with PyTorch's layers and optimizer: digits, with a dense network and with
convolutions, and a table that the network normalizes itself. Each is trained by SGD on shuffled batches, and the
weights at the ends of the second half of its epochs are averaged. Then statistics are taken in three ways, of the
training rows in several orders, cut into batches of several sizes. What is right is known: one batch of all rows has no
others to be averaged with, and PyTorch's function is given that.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from networks import BLACK, BLUE, GREEN, ORANGE, digits, save
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim import swa_utils

import bncpu.torch

torch.set_num_threads(int(os.environ.get("BNCPU_EVIDENCE_THREADS", "1")))

SEEDS, SIZES = range(10), [4, 16, 64, 256]


def layer_by_layer(loader, model):
    """A pass over the data for each normalization, behind those that have their statistics already."""
    bncpu.torch.update_bn(loader, model, layer_by_layer=True)


WAYS = {"PyTorch": swa_utils.update_bn, "one pass": bncpu.torch.update_bn, "layer by layer": layer_by_layer}
COLORS = {"PyTorch": ORANGE, "one pass": BLUE, "layer by layer": GREEN}
last_losses = []


def averaged(make, x, y, loss, seed, *, epochs, batch=64, **options):
    """A network trained with shuffled batches, and its weights averaged."""
    torch.manual_seed(seed)
    model = make()
    optimizer, average = torch.optim.SGD(model.parameters(), **options), swa_utils.AveragedModel(model)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            value = loss(model(x[rows]), y[rows])
            value.backward()
            optimizer.step()
        if epoch >= epochs // 2:
            average.update_parameters(model)
    last_losses.append(value.item())
    return average


def variances(model):
    """Running variances, an array for each normalization."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [layer.running_var.numpy().copy() for layer in model.modules() if isinstance(layer, norms)]


def measured(model, x, order, score):
    """Scores, and medians of variance found / true, of shape (ways, sizes, ...), and the score of what is right."""
    swa_utils.update_bn([x], model)
    true, right = variances(model), score(model)
    scores, ratios = [], []
    for way in WAYS.values():
        for size in SIZES:
            way(x[order].split(size), model)
            scores.append(score(model))
            ratios.append([np.median(found / var) for found, var in zip(variances(model), true, strict=True)])
    return *(np.reshape(values, (len(WAYS), len(SIZES), -1)) for values in (scores, ratios)), right


def table(title, values):
    """Mean and spread over seeds, of values of shape (seeds, ways, columns)."""
    print(title)
    for name, found in zip(WAYS, np.moveaxis(values, 1, 0), strict=True):
        print(f"  {name:14}", *(f"{v.mean():.2f}±{v.std():.2f}" for v in found.T))


# %%
# Digits
# ------
# Training rows come shuffled, sorted by brightness, and sorted by class, as a folder of files often is.


def dense():
    """Three hidden layers of 64."""
    hidden = [(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(nn.Flatten(), *(layer for part in hidden for layer in part), nn.Linear(64, 10))


def convolutions():
    """Normalized over 64 and over 16 places of each picture."""
    first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, stride=2)
    body = first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(256, 10))


def learned_digits(make, seed, orders):
    """Test accuracy in percent and test loss, and variance found / true, of each order."""
    x, y, x_test, y_test = map(torch.from_numpy, digits(seed, images=True))
    model = averaged(make, x, y, nn.functional.cross_entropy, seed, epochs=10, lr=0.1, momentum=0.9)

    def score(model):
        model.eval()
        with torch.no_grad():
            out = model(x_test)
            hits = (out.argmax(dim=1) == y_test).double().mean()
            return 100 * hits.item(), nn.functional.cross_entropy(out, y_test).item()

    keys = {"shuffled": torch.rand(len(x)), "by brightness": x.sum(dim=(1, 2, 3)), "by class": y}
    return [measured(model, x, torch.argsort(keys[name], stable=True), score) for name in orders]


scores, ratios, right = {}, {}, {}
for make, orders in ((dense, ["shuffled", "by brightness", "by class"]), (convolutions, ["by class"])):
    found = [learned_digits(make, seed, orders) for seed in SEEDS]
    name = make.__name__
    right[name] = np.array([of_seed[0][2] for of_seed in found])
    for i, order in enumerate(orders):
        scores[name, order], ratios[name, order] = (np.array([of_seed[i][k] for of_seed in found]) for k in (0, 1))

for name, values in right.items():
    accuracy, loss = values.T
    print(f"{name}, one batch of all rows: accuracy {accuracy.mean():.1f}±{accuracy.std():.1f} %,", end=" ")
    print(f"loss {loss.mean():.3f}±{loss.std():.3f}")
lost, times = {}, {}
for (name, order), values in scores.items():
    of_all = right[name][:, np.newaxis, np.newaxis]
    lost[name, order], times[name, order] = of_all[..., 0] - values[..., 0], values[..., 1] / of_all[..., 1]
    table(f"{name}, {order}, points of accuracy lost at batches of {SIZES}:", lost[name, order])
    table(f"{name}, {order}, times the loss:", times[name, order])

# %%
# Where it comes from
# -------------------
# Variance found / true of one normalization after the other, at batches of 4: the median over channels.

for (name, order), values in ratios.items():
    table(f"{name}, {order}, variance found / true, from the first layer on:", values[:, :, 0])
every = np.concatenate([np.abs(values[:, 2] - 1).ravel() for values in ratios.values()])
print(f"layer by layer, all orders and sizes: off by {every.max():.1e} at most")

# %%
# A table
# -------
# Diabetes patients: ten columns, in the units that they were measured in, of which a network with a normalization
# before its first layer is to predict how the disease progresses. Its error is the mean square, as a share of the
# target's variance: 1 is that of guessing the mean.

patients, progress = load_diabetes(return_X_y=True, scaled=False)

print(f"column of the body mass index, sorted, variance found / true at batches of {SIZES}:")
for name, way in WAYS.items():
    column, norm = torch.from_numpy(np.sort(patients[:, 2])[:, np.newaxis]), nn.BatchNorm1d(1, dtype=torch.float64)
    share = []
    for size in SIZES:
        way(column.split(size), norm)
        share.append(f"{norm.running_var.item() / column.var().item():.4f}")
    print(f"  {name:14}", *share)


def regression():
    """Normalized as it comes, and once more in between."""
    hidden = nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU()
    return nn.Sequential(nn.BatchNorm1d(10), *hidden, nn.Linear(32, 1), nn.Flatten(0))


def learned_patients(seed):
    """The test error by order."""
    parts = train_test_split(
        patients, (progress - progress.mean()) / progress.std(), test_size=1 / 3, random_state=seed
    )
    x, x_test, y, y_test = (torch.from_numpy(part.astype(np.float32)) for part in parts)
    rates = {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3}
    model = averaged(regression, x, y, nn.functional.mse_loss, seed, epochs=10, batch=32, **rates)

    def score(model):
        model.eval()
        with torch.no_grad():
            return (nn.functional.mse_loss(model(x_test), y_test) / y_test.var(correction=0)).item()

    keys = {"shuffled": torch.rand(len(x)), "by target": y, "by age": x[:, 0], "by body mass index": x[:, 2]}
    return {name: measured(model, x, torch.argsort(key, stable=True), score) for name, key in keys.items()}


found = [learned_patients(seed) for seed in SEEDS]
errors = {order: np.array([of_seed[order][0][..., 0] for of_seed in found]) for order in found[0]}
best = np.array([of_seed["shuffled"][2] for of_seed in found])
print(f"table, one batch of all rows: error {best.mean():.2f}±{best.std():.2f}")
for order, values in errors.items():
    table(f"table, {order}, error at batches of {SIZES}:", values)
print(f"{np.sum(~np.isfinite(last_losses))} of {len(last_losses)} trainings diverged")

# %%
# What came out
# -------------
# Figures are means over 30 seeds.
#
# * Of shuffled rows there is nothing to gain: whoever gives PyTorch's function the loader of training gets the same
#   accuracy, and the same error in the table, at every size of batch. Rows sorted by brightness do no harm either.
# * Sorted by class, the dense network loses 1.5±0.9, 1.8±0.9 and 1.2±0.7 points of its 98.3 % by PyTorch's average, at
#   batches of 4, 16 and 64: about twice the mistakes. Its probabilities suffer more: the loss is 2.8±0.7, 3.2±0.8 and
#   2.4±0.5 times as large, and 1.4±0.2 times at 256, where the labels hardly differ.
# * Convolutions lose nothing. A channel takes its variance from every place of every picture, and there is as much of
#   it in one class as in all.
# * The table is lost. Where rows are sorted by a column, a batch has next to none of its variance: of 4 rows 0.08 %.
#   The network then sees that column many times too large, and its error is 55±35 times the variance of the target,
#   and 8±4 times at 16, where guessing the mean makes 1, and right statistics 0.54±0.05. By age: 9±8 and 1.9±1.2.
# * A short batch counts as much as a full one in PyTorch's average. Batches of 256 are two here, the second of 38 rows,
#   and the error is 0.80 sorted by body mass index, and 0.74 sorted by the target, which does little harm elsewhere.
# * One pass is exact for the first normalization only. The ones behind it see what batch statistics made of a batch:
#   sorted by class, a batch has lost what its class has in common, and they find 0.6 of the variance. That costs 0.2
#   points at most, and a loss that is 1.1 to 1.3 times as large, so little of what PyTorch's average costs.
# * In shuffled batches of 4 one pass is not better than PyTorch's average, and its loss is 1.15 times as large as it
#   should be. Of four rows that are normalized by themselves none lies far out, and one pass finds 0.79 and 0.72 of the
#   variance behind the first layer. PyTorch divides by n - 1 in every batch: 4/3 of that, by accident nearly right.
# * Layer by layer is right in every order and at every size: the layers in front have their statistics already, and
#   treat each row alone, so that it does not matter which rows come with it. The 0.0008 that it is off are 1/1198, of
#   1,198 rows: PyTorch normalizes a batch by its variance with n, and keeps the one with n - 1. It takes a pass over
#   the data for each normalization, through the layers up to it.

figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
shown = (
    (lost["dense", "by class"], "points of accuracy lost", "Digits, dense, sorted by class"),
    (times["dense", "by class"], "times the loss of right statistics", "Digits, dense, sorted by class"),
    (errors["by body mass index"], "error / variance of the target", "Table, sorted by body mass index"),
)
for axis, (values, label, title) in zip(axes, shown, strict=True):
    for (name, color), found in zip(COLORS.items(), np.moveaxis(values, 1, 0), strict=True):
        axis.plot(SIZES, found.mean(axis=0), "o-", color=color, markersize=4, label=name)
        axis.fill_between(SIZES, found.min(axis=0), found.max(axis=0), color=color, alpha=0.25, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(SIZES, SIZES)
    axis.set(xlabel="rows a batch", ylabel=label, title=title)
axes[2].set_yscale("log")
axes[2].axhline(1, color=BLACK, linestyle=":", label="guessing the mean")
for axis in axes:
    axis.legend(fontsize=8)
save(figure, "update_bn")
