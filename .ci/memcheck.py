"""What valgrind watches: every loop over data once, with ends that fill no register, and a state file."""

import itertools
import os
import tempfile

import numpy as np
from scipy import sparse

import bncpu
from bncpu import BatchNormTransformer, _kernels

FORWARD = {"batch": (), "instance": (), "layer": (3,), "group": (2,)}


def seen(*results):
    """Branch on every value, so that one which nobody wrote is reported."""
    for result in results:
        for a in result if isinstance(result, tuple) else (result,):
            if a is not None:
                assert np.count_nonzero(np.isnan(a)) < a.size or not a.size


def functions(dtype):
    """All norms of rows and of planes, forward and backward, plain and with everything."""
    for shape in ((37, 4, 3), (3, 4, 3), (5, 33, 4, 3)):
        x, dy, z = np.random.default_rng(0).standard_normal((3, *shape)).astype(dtype)
        for order in ("C", "F"):
            arrays = [np.asarray(a, order=order) for a in (x, dy, z)]
            for (norm, arguments), relu in itertools.product(FORWARD.items(), (None, "relu")):
                if norm == "group" and shape[1] % 2:
                    arguments = (3,)
                some = dict(activation=relu, residual=arrays[2] if relu else None)
                y, saved = getattr(bncpu, f"{norm}_norm_forward")(arrays[0], *arguments, **some)
                seen(y, *getattr(bncpu, f"{norm}_norm_backward")(arrays[1], arrays[0], saved, **some))
            seen(bncpu.batch_norm(arrays[0], np.zeros(shape[1]), np.ones(shape[1])))


def transformer(dtype):
    """Learn from dense data with values missing, and from sparse data; transform, save and load."""
    X = np.random.default_rng(1).standard_normal((150, 13)).astype(dtype)
    some = np.where(np.arange(13) % 3, X, np.nan)
    for parameters in ({}, {"momentum": 0.9}, {"halflife": 30}):
        bn = BatchNormTransformer(**parameters).partial_fit(X).partial_fit(some, sample_weight=np.arange(1.0, 151))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "state")
            bn.save(path)
            bn = BatchNormTransformer.load(path)
        bn.partial_fit(X)
        seen(bn.transform(X), bn.transform(some[:3]), bn.inverse_transform(X), bn.running_var_)
    rows = sparse.random_array((50, 13), density=0.3, rng=np.random.default_rng(2), format="csr", dtype=dtype)
    seen(BatchNormTransformer(with_mean=False).fit(rows).transform(rows).data)


if __name__ == "__main__":
    large = np.ones((1 << 13, 512))  # in memory of our own, stored past the cache
    for _ in range(2):
        seen(BatchNormTransformer(n_threads=2).fit(large[:64]).transform(large))
    for dtype in ("float32", "float64"):
        functions(dtype)
        transformer(dtype)
    print(_kernels.isa(), "watched")
