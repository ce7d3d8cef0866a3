"""Files that joblib's workers read: each job learns from one, and the transformers that come back are merged.

What comes back is a few numbers per column, whatever the size of the file. Merged in the order of the files, the result
has the same bits for any number of workers.
"""

import functools
import pathlib
import tempfile

import numpy as np
from joblib import Parallel, delayed

from bncpu import BatchNormTransformer


def learn(path):
    """The statistics of one file, which is mapped, not loaded."""
    return BatchNormTransformer(n_threads=1).fit(np.load(path, mmap_mode="r"))


if __name__ == "__main__":
    X = np.random.default_rng(0).standard_normal((10_000, 8)) + 1000
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, f"{i}.npy") for i in range(5)]
        for path, rows in zip(paths, np.array_split(X, 5), strict=True):
            np.save(path, rows)
        parts = Parallel(n_jobs=2)(delayed(learn)(path) for path in paths)
    whole = functools.reduce(BatchNormTransformer.merge, parts)
    print("rows:", whole.n_samples_seen_)
    print("equal to 12 digits:", np.allclose(whole.var_, X.var(axis=0), rtol=1e-12, atol=0))
