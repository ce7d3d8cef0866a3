"""
Fewer steps, larger rates
=========================

Ioffe and Szegedy ("Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", ICML
2015) report that Inception with batch normalization needs 14 times fewer steps for the accuracy of Inception without,
72.2 % on ImageNet: 2.1 against 31 million. It learned at 5 times the rate, and without dropout, among other changes; at
30 times the rate it needed a little longer and became better. With nothing else changed it needed less than half the
steps. Their first experiment is smaller: three layers of 100 sigmoids on MNIST.

Here both networks learn the digits of scikit-learn, by plain SGD in batches of 64: a deep one of ReLU, and the one of
sigmoids. A rate that suits one network may suit another badly, so each is given its own best one, of rates a factor 2
apart. What comes out is 3 to 5 times fewer steps, not 14; the largest rate that still trains is about 6 times as large
with sigmoids and 12 times with ReLU, where the paper took 5 and 30 times. At the same rate the sigmoids gain as much,
ReLU anything from nothing to a factor of 2, as one or another rate happens to be its best without batch norm. Those are
figures over 30 seeds: any five, as below, differ from them, and so do the same five on another processor. The networks
are shallow beside Inception, and the digits are easy: there is less to save.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
from networks import BLUE, ORANGE, BatchNorm, Linear, Network, ReLU, Sigmoid, digits, outcome, save, train

# %%
# The networks. Batch normalization stands between the linear function and the activation, as in the paper. Weights are
# drawn by the rule of He et al. (2015), which suits ReLU: the network without batch normalization gets a good start,
# too.


def network(activation, depth, width, normalized, seed):
    """`depth` hidden layers and a linear one to the 10 digits."""
    rng, layers, n_in = np.random.default_rng(seed), [], 64
    for _ in range(depth):
        layers += [Linear(n_in, width, rng), *([BatchNorm(width)] if normalized else []), activation()]
        n_in = width
    return Network(*layers, Linear(n_in, 10, rng))


# %%
# Every rate and every seed: the number of steps until 95 % of the test digits are right, infinite if that takes more
# than 400. A seed decides the weights, the order of the batches, and which digits are there to learn from.

SEEDS = range(5)
TARGET, MOST, EVERY = 0.95, 400, 4
DATA = [digits(seed) for seed in SEEDS]
CASES = {
    "ReLU, 10 layers of 64": ((ReLU, 10, 64), 2.0 ** np.arange(-5, 3)),
    "sigmoid, 3 layers of 100": ((Sigmoid, 3, 100), 2.0 ** np.arange(-1, 7)),
}


def learned(shape, normalized, rate, seed):
    """The course up to the target."""
    made = network(*shape, normalized, seed)
    return train(made, DATA[seed], rate, steps=MOST, every=EVERY, until=TARGET, seed=seed)


def steps_needed(history):
    """Steps to the target."""
    return min(history.steps[history.accuracy >= TARGET], default=np.inf)


HISTORIES = {
    (case, normalized): [[learned(shape, normalized, rate, seed) for seed in SEEDS] for rate in rates]
    for case, (shape, rates) in CASES.items()
    for normalized in (False, True)
}
STEPS = {key: np.array([list(map(steps_needed, of_rate)) for of_rate in rows]) for key, rows in HISTORIES.items()}

# %%
# The best rate is the one with the fewest steps in the median over the seeds, and the largest one that trains is the
# largest with which the seed still reaches the target. A seed that misses it, as one may even at the best rate, counts
# as if it had reached it at the last step: without batch norm that makes the ratios smaller than they are.


def said(ratios):
    """The geometric mean and the range over the seeds."""
    return (
        f"{np.exp(np.log(ratios).mean()):.1f} times ({ratios.min():.1f} to {ratios.max():.1f} over {len(ratios)} seeds)"
    )


for case, (_, rates) in CASES.items():
    plain, normalized = STEPS[case, False], STEPS[case, True]
    best_plain, best = (np.median(steps, axis=1).argmin() for steps in (plain, normalized))
    largest_plain, largest = (
        np.where(np.isfinite(steps), rates[:, None], 0).max(axis=0) for steps in (plain, normalized)
    )
    print(f"{case}:")
    print(f"  best rate without BN {rates[best_plain]:g}, with BN {rates[best]:g}")
    medians = [np.median(steps[at]) for steps, at in ((plain, best_plain), (normalized, best))]
    print(f"  steps to 95 % test accuracy, without BN {medians[0]:g}, with BN {medians[1]:g}")
    at_best = np.minimum(plain[best_plain], MOST)
    print(f"  fewer steps with BN, each at its best rate: {said(at_best / normalized[best])}")
    print(f"  fewer steps with BN, both at the best rate without: {said(at_best / normalized[best_plain])}")
    print(f"  larger rates that still train with BN: {said(largest / largest_plain)}")
    for key, says in ((False, "without BN"), (True, "with BN")):
        print(f"  {says}, all rates: {outcome(list(itertools.chain(*HISTORIES[case, key])))}")
print("Ioffe and Szegedy, Inception on ImageNet: 14 times fewer steps, at 5 times the rate")

# %%
# A point is one seed, the line the median. Above the dotted line: not within 400 steps.

figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
for panel, (case, (_, rates)) in zip(panels, CASES.items(), strict=True):
    for normalized, colour, marker, aside in ((False, ORANGE, "s", 0.94), (True, BLUE, "o", 1.06)):
        drawn = np.where(np.isfinite(STEPS[case, normalized]), STEPS[case, normalized], 1.6 * MOST)
        panel.plot(rates, np.median(drawn, axis=1), color=colour, label=f"with{'' if normalized else 'out'} batch norm")
        panel.plot(np.repeat(rates * aside, len(SEEDS)), drawn.ravel(), marker, color=colour, alpha=0.5, markersize=5)
    panel.axhline(1.2 * MOST, color="black", linestyle=":")
    panel.set(
        title=case, xlabel="learning rate", xscale="log", yscale="log", yticks=[20, 50, 100, 200, 400, 1.6 * MOST]
    )
    panel.set_yticklabels(["20", "50", "100", "200", "400", "never"])
    panel.set_xticks(rates[::2], [f"{rate:g}" for rate in rates[::2]])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
panels[0].set_ylabel("steps to 95 % test accuracy")
panels[0].legend(loc="lower left")
save(figure, "fewer_steps")
