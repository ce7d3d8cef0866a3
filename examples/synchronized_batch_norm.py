"""One batch, three processes: the results and gradients of the whole batch, from parts that never meet.

Each process normalizes its share. What they exchange is what `batch_norm_moments` and `batch_norm_backward_sums` give:
a few numbers per channel. Micro-batches in one process are the same without the pipes.
"""

import multiprocessing

import numpy as np

from bncpu import (
    BackwardSums,
    Moments,
    batch_norm_backward,
    batch_norm_backward_sums,
    batch_norm_forward,
    batch_norm_moments,
    merge,
)

GAMMA, BETA = np.linspace(0.5, 2, 8), np.linspace(-1, 1, 8)


def train(x, dy, to_others):
    """One step on a share of the batch; `to_others` gives back what all shares together have."""
    moments = to_others(batch_norm_moments(x))
    y, saved = batch_norm_forward(x, GAMMA, BETA, moments=moments, activation="relu")
    options = dict(beta=BETA, activation="relu")
    sums = to_others(batch_norm_backward_sums(dy, x, saved, GAMMA, **options))
    dx, dgamma, dbeta = batch_norm_backward(dy, x, saved, GAMMA, sums=sums, **options)
    return y, dx, dgamma, dbeta


def worker(x, dy, pipe):
    """Train on one share; everything sent and received is arrays."""

    def to_others(part):
        pipe.send(tuple(part))
        return type(part)(*pipe.recv())

    pipe.send(train(x, dy, to_others))


def synchronized(x, dy, n_processes):
    """`train` on shares of the batch, each in its own process."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(n_processes)]
    shares = zip(np.array_split(x, n_processes), np.array_split(dy, n_processes), pipes, strict=True)
    processes = [context.Process(target=worker, args=(a, b, far)) for a, b, (_, far) in shares]
    for process in processes:
        process.start()
    for kind in (Moments, BackwardSums):
        whole = merge(*(kind(*near.recv()) for near, _ in pipes))
        for near, _ in pipes:
            near.send(tuple(whole))
    results = [near.recv() for near, _ in pipes]
    for process in processes:
        process.join()
    y, dx, dgamma, dbeta = zip(*results, strict=True)
    return np.concatenate(y), np.concatenate(dx), dgamma[0], dbeta[0]


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 100, 8, 6, 6)) + 3
    alone = train(x, dy, lambda part: part)
    together = synchronized(x, dy, 3)
    for name, a, b in zip(("y", "dx", "dgamma", "dbeta"), alone, together, strict=True):
        print(f"{name:6} largest difference {np.abs(a - b).max():.0e}, of values up to {np.abs(a).max():.1f}")
    print(
        "equal to 13 digits:",
        all(np.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(alone, together, strict=True)),
    )
