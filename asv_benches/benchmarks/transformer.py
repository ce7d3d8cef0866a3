"""The estimator's methods, on arrays larger than cache and on the kinds of data that must be converted."""

import numpy as np
from scipy import sparse

from .common import DTYPES, SMALLEST, bncpu, chosen, data


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

    params = (chosen(DTYPES), ["rows", "wide rows"])
    param_names = ("dtype", "shape")

    def setup(self, dtype, shape):
        self.X = data(shape, dtype)
        self.scaler = bncpu.BatchNormTransformer().fit(self.X)


class Scaler(_Methods):
    """bncpu.sklearn.StandardScaler: a large array, an array and a DataFrame of one row, and what is left to theirs."""

    params = (["rows", "one row", "one row of a frame", "csr"],)
    param_names = ("X",)

    def setup(self, kind):
        try:
            from bncpu.sklearn import StandardScaler
        except ImportError:
            raise NotImplementedError from None
        self.X = data("rows") if kind == "rows" else data((1, 32))
        if kind == "one row of a frame":
            try:
                import pandas
            except ImportError:
                raise NotImplementedError from None  # asv then skips it
            self.X = pandas.DataFrame(self.X, columns=[f"x{i}" for i in range(self.X.shape[1])])
        if kind == "csr":
            shape = (50, 20) if SMALLEST else (200_000, 500)
            self.X = sparse.random_array(shape, density=0.05, format=kind, rng=np.random.default_rng(0))
        self.scaler = StandardScaler(with_mean=kind != "csr").fit(self.X)


class Modes:
    """A stream in batches of 16 MB, in each way of forgetting, with and without missing values and weights."""

    params = (["cumulative", "window", "momentum", "halflife"], ["plain", "missing values", "weights"])
    param_names = ("mode", "data")

    def setup(self, mode, kind):
        self.X = data((125_000, 32))
        self.weights = np.ones(len(self.X)) if kind == "weights" else None
        if kind == "missing values":
            self.X[::10, ::3] = np.nan
        kinds = {"window": {"window": 100_000}, "momentum": {"momentum": 0.9}, "halflife": {"halflife": 1e5}}
        forgetting = kinds.get(mode, {})
        self.scaler = bncpu.BatchNormTransformer(**forgetting).partial_fit(self.X)

    def time_partial_fit(self, *_):
        self.scaler.partial_fit(self.X, sample_weight=self.weights)


class Inputs(_Methods):
    """Data as it often comes: sparse counts, sensor integers, halves, images of floats and of bytes."""

    params = (["csr", "csc", "int16", "float16", "images", "images of bytes"],)
    param_names = ("kind",)

    def setup(self, kind):
        parameters = {}
        if kind in ("csr", "csc"):
            shape = (50, 20) if SMALLEST else (200_000, 500)
            self.X = sparse.random_array(shape, density=0.05, format=kind, rng=np.random.default_rng(0))
            parameters = {"with_mean": False}
        elif kind == "images":
            self.X = data((64, 32, 64, 64))
            parameters = {"channel_axis": 1}
        elif kind == "images of bytes":
            self.X = (30 * data((64, 64, 64, 32)) + 128).clip(0, 255).astype(np.uint8)
            parameters = {"channel_axis": -1, "dtype": np.float32}
        else:
            self.X = (100 * data("rows")).astype(kind)
        self.scaler = bncpu.BatchNormTransformer(**parameters).fit(self.X)


class FrameRow:
    """One request of a service: a DataFrame of one row, as an array and as a DataFrame."""

    params = (["array", "pandas"],)
    param_names = ("output",)

    def setup(self, output):
        try:
            import pandas
        except ImportError:
            raise NotImplementedError from None  # asv then skips it
        X = pandas.DataFrame(data((500, 10), "float64"), columns=[f"feature {i}" for i in range(10)])
        self.row = X.iloc[3:4]
        self.scaler = bncpu.BatchNormTransformer().fit(X)
        self.scaler.set_output(transform="default" if output == "array" else output)

    def time_transform(self, *_):
        self.scaler.transform(self.row)

    def time_partial_fit(self, *_):
        self.scaler.partial_fit(self.row)
