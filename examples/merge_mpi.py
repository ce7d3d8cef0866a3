"""MPI: `mpiexec -n 2 python merge_mpi.py`. Every rank learns its rows, and all end with the statistics of all.

The second part is the batch of `synchronized_batch_norm.py`, each rank with a share of it: its pipes are a line here.
Merged in the order of the ranks, the results have the same bits on each of them. Needs mpi4py and an MPI library, such
as `pip install mpi4py mpich` brings.
"""

import functools

import numpy as np
from mpi4py import MPI
from synchronized_batch_norm import train

from bncpu import BatchNormTransformer, merge


def to_others(part):
    """What all ranks together have; `part` is what this one has, a few numbers per channel."""
    return merge(*MPI.COMM_WORLD.allgather(part))


if __name__ == "__main__":
    comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    X = rng.standard_normal((10_000, 8)) + 1000  # on a cluster each rank would read its own
    mine = BatchNormTransformer(n_threads=1).fit(np.array_split(X, comm.size)[comm.rank])
    whole = functools.reduce(BatchNormTransformer.merge, comm.allgather(mine))
    same = np.allclose(whole.var_, X.var(axis=0), rtol=1e-12, atol=0)

    x, dy = rng.standard_normal((2, 100, 8, 6, 6)) + 3
    x_mine, dy_mine = (np.array_split(a, comm.size)[comm.rank] for a in (x, dy))
    y, dx, *gradients = train(x_mine, dy_mine, to_others)
    together = [np.concatenate(comm.allgather(a)) for a in (y, dx)] + gradients
    alone = train(x, dy, lambda part: part)
    same &= all(np.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(alone, together, strict=True))

    everyone = comm.gather((same, whole.var_.tobytes()))
    if comm.rank == 0:
        print("ranks:", comm.size, "rows:", whole.n_samples_seen_)
        print("equal to 12 digits:", all(same for same, _ in everyone))
        print("same bits on every rank:", len({bits for _, bits in everyone}) == 1)
