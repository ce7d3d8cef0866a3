"""A pool of processes, each of which learns shares of the data as they come; nothing but the standard library.

`imap` hands the parts back in the order of the shares, while others are still being learned, so memory holds a few of
them and the bits of the result do not depend on which process was faster.
"""

import multiprocessing

import numpy as np

from bncpu import BatchNormTransformer


def learn(seed):
    """The statistics of one share, made or read where it is used."""
    return BatchNormTransformer(n_threads=1).fit(share(seed))


def share(seed):
    """Stands for reading a file."""
    return np.random.default_rng(seed).standard_normal((2_000, 8)) + 1000


if __name__ == "__main__":
    whole = BatchNormTransformer()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for part in pool.imap(learn, range(5)):
            whole.merge(part)
    X = np.concatenate([share(seed) for seed in range(5)])
    print("rows:", whole.n_samples_seen_)
    print("equal to 12 digits:", np.allclose(whole.var_, X.var(axis=0), rtol=1e-12, atol=0))
