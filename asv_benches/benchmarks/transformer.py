"""The estimator's methods beside StandardScaler's, on arrays larger than cache and on single small batches."""

import time
from statistics import median

import numpy as np
from scipy import sparse
from sklearn.preprocessing import StandardScaler

try:
    from bncpu import BatchNormTransformer
except ImportError:  # a commit from before the package existed
    BatchNormTransformer = None

ESTIMATORS = {"bncpu": BatchNormTransformer, "StandardScaler": StandardScaler}


def data(shape, dtype):
    """Standard normal numbers; their values do not change what anything costs."""
    return np.random.default_rng(0).standard_normal(shape, dtype=dtype)


class _Methods:
    """What is measured of a data set; `setup` makes `X` and a fitted `scaler`."""

    def time_fit(self, *_):
        self.scaler.fit(self.X)

    def time_transform(self, *_):
        self.scaler.transform(self.X)

    def peakmem_fit(self, *_):
        self.scaler.fit(self.X)


class Large(_Methods):
    """A data set read from memory: 128 MB as float32."""

    params = (list(ESTIMATORS), ["float32", "float64"], [(1_000_000, 32), (125_000, 256)])
    param_names = ("estimator", "dtype", "shape")

    def setup(self, estimator, dtype, shape):
        self.X = data(shape, dtype)
        self.scaler = ESTIMATORS[estimator]().fit(self.X)


class Small:
    """One request of a service: what a call costs, not what the data costs."""

    params = (list(ESTIMATORS), [(1, 10), (32, 10)])
    param_names = ("estimator", "shape")

    def setup(self, estimator, shape):
        self.X = data(shape, "float64")
        self.scaler = ESTIMATORS[estimator]().fit(data((32, 10), "float64"))

    def time_partial_fit(self, *_):
        self.scaler.partial_fit(self.X)

    def time_transform(self, *_):
        self.scaler.transform(self.X)


class Inputs(_Methods):
    """Data as it often comes: sparse counts, sensor integers, halves, images."""

    params = (list(ESTIMATORS), ["csr", "csc", "int16", "float16", "images"])
    param_names = ("estimator", "kind")

    def setup(self, estimator, kind):
        parameters = {}
        if kind in ("csr", "csc"):
            self.X = sparse.random_array((200_000, 500), density=0.05, format=kind, rng=np.random.default_rng(0))
            parameters = {"with_mean": False}
        elif kind == "images":
            self.X = data((64, 32, 64, 64), "float32")
            if estimator == "StandardScaler":
                raise NotImplementedError("it takes two dimensions")
            parameters = {"channel_axis": 1}
        else:
            self.X = (100 * data((1_000_000, 32), "float32")).astype(kind)
        self.scaler = ESTIMATORS[estimator](**parameters).fit(self.X)


class Ratio:
    """Seconds of ours over seconds of a plain copy of the same array, interleaved: steady between machines and runs."""

    params = (["fit", "transform"], ["float32", "float64"])
    param_names = ("method", "dtype")
    unit = "copies"

    def setup(self, method, dtype):
        self.X = data((1_000_000, 32), dtype)
        self.out = np.empty_like(self.X)
        scaler = BatchNormTransformer().fit(self.X)
        self.ours = scaler.fit if method == "fit" else lambda X: scaler.transform(X, out=self.out)

    def track_ratio_to_copy(self, *_):
        ratios = []
        for _ in range(9):
            start = time.perf_counter()
            np.copyto(self.out, self.X)
            between = time.perf_counter()
            self.ours(self.X)
            ratios.append((time.perf_counter() - between) / (between - start))
        return median(ratios)
