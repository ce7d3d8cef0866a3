"""The arrays every test file shares: dtypes, layouts and hostile data."""

import functools
import os
import sysconfig
from fractions import Fraction

import numpy as np
from scipy import sparse

DTYPES = (np.float32, np.float64)


def examples(few, many):
    """So many cases by default, or with BNCPU_THOROUGH=1."""
    return many if os.environ.get("BNCPU_THOROUGH") else few


def slow(*cases):
    """Cases for `parametrize` that only `pytest -m slow` and the gate run: the same again, larger or once more."""
    import pytest  # not in the processes that import this file

    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


# Everything the transformer takes, beside them, and the dtype of its results.
OTHER_DTYPES = {
    "bool": np.float64,
    "int8": np.float64,
    "uint16": np.float64,
    ">i4": np.float64,
    "int64": np.float64,
    "float16": np.float16,
    ">f4": np.float32,
    ">f8": np.float64,
}

SPARSE = {"csr": sparse.csr_array, "csc": sparse.csc_array, "csr_matrix": sparse.csr_matrix}


def uniform_bits(seed, shape, dtype=np.float64):
    """Numbers in [0, 1) that are the same on every platform: raw generator bits, no transcendental functions."""
    raw = np.random.Philox(seed).random_raw(int(np.prod(shape))) >> np.uint64(40)
    return (raw.astype(np.float64) / 2.0**24).astype(dtype).reshape(shape)


# A prime, so that no two rows, planes or blocks of an array are the same.
DRAWN = 1_048_573


def normal(seed, shape, mean=0.0, std=1.0, dtype=np.float64):
    """Normal numbers; of large arrays the first `DRAWN` again and again."""
    if np.prod(shape) > DRAWN:
        return np.resize(normal(seed, DRAWN, mean, std, dtype), shape)
    return (_drawn(seed, tuple(np.atleast_1d(shape))) * std + mean).astype(dtype, copy=False)


@functools.lru_cache(maxsize=8)
def _drawn(seed, shape):
    """Many tests in a row take the same numbers, and drawing them costs more than what is tested."""
    return np.random.default_rng(seed).standard_normal(shape)


def hostile_columns(n, dtype, seed=0):
    """Columns on which careless variance formulas fail, and what is hard about each."""
    z = normal(seed, (n, 9))
    columns = {
        "mean 1e4": z[:, 0] + 1e4,
        "mean 1e6": z[:, 1] + 1e6,
        "first value is an outlier": np.r_[1e6, z[1:, 2]],
        "last value is an outlier": np.r_[z[:-1, 3], -1e6],
        "tiny": z[:, 4] * 1e-25,
        "huge": z[:, 5] * 1e25,
        "constant": np.full(n, 1e8),
        "constant but one": np.r_[np.full(n - 1, 3.0), 4.0],
        "trend": np.arange(n) / n + 1e-3 * z[:, 8],
    }
    return tuple(columns), np.stack(list(columns.values()), axis=1).astype(dtype)


def sparse_columns(n, dtype=np.float64, seed=0):
    """Columns with zeros on which careless formulas fail: few values, all of them, none, equal, far, missing."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 8)) * (rng.random((n, 8)) < 0.2)
    X[:, 1] = 1e6 + rng.standard_normal(n)
    X[:, 2] = 0
    X[:, 3] = 0.1
    X[n // 2, 4] = -1e6
    X[:, 5] = np.where(np.arange(n) % 3 == 0, 7.7, 0)
    X[::5, 6] = np.nan
    X[:, 7] = np.nan
    return X.astype(dtype)


def exact_moments(values, weights=None):
    """Count, mean and m2 of finite numbers as exact fractions.

    Floating-point numbers are whole multiples of a power of two, so that their sums are those of integers, which are
    much faster than fractions. Nothing is rounded, so that the textbook formula is as good as any.
    """
    values, unit = _multiples(values)
    weights, weight_unit = _multiples([1.0] * len(values) if weights is None else weights)
    count = sum(weights)
    total = sum(w * v for v, w in zip(values, weights, strict=True))
    squares = sum(w * v * v for v, w in zip(values, weights, strict=True))
    mean = Fraction(total, count)
    return count * weight_unit, mean * unit, (squares - mean * total) * weight_unit * unit**2


def _multiples(values):
    """Integers, and the fraction of which the values are these multiples."""
    ratios = [float(v).as_integer_ratio() for v in values]
    finest = max((denominator for _, denominator in ratios), default=1)
    return [numerator * (finest // denominator) for numerator, denominator in ratios], Fraction(1, finest)


# name -> an array with the values and shape of a C-ordered one (N, C, ...), and where its channels are
LAYOUTS = {
    "C order": lambda a: a,
    "F order": np.asfortranarray,
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "rows reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "channels reversed": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "columns of a wider array": lambda a: np.concatenate([a, a, a], axis=1)[:, a.shape[1] : 2 * a.shape[1]],
    "misaligned": lambda a: _misaligned(a),
    "read-only": lambda a: _read_only(a),
}


def _misaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)[1:]
    view = np.ndarray(a.shape, a.dtype, buffer=raw)
    view[...] = a
    return view


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# What tests of the transformer share.
GOOD = normal(40, (20, 3))


MODES = {"cumulative": {}, "momentum": {"momentum": 0.9}, "halflife": {"halflife": 100}, "window": {"window": 30}}
# Those that keep no rows, learn sparse and Dask data too, and take the rows of one fit as a set.
WITHOUT_ROWS = {name: MODES[name] for name in ("cumulative", "momentum", "halflife")}


def with_value(row, column, value, dtype=float):
    X = GOOD.astype(dtype)
    X[row, column] = value
    return X


def named():
    """`GOOD` with names. The wheel is tested without pandas."""
    import pandas as pd

    return pd.DataFrame(GOOD, columns=["a", "b", "c"])


def polars():
    """The package; it has no build yet for a Python without the GIL."""
    import pytest

    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("polars has no build for a Python without the GIL")
    import polars

    return polars


def moments_of(X, weights, n_threads, **options):
    """What a batch teaches, of whatever kind."""
    from bncpu import _door

    return _door.as_batch(X).moments(weights, n_threads, **options)


def applied(X, coefficients, **options):
    """Coefficients applied to a batch of whatever kind; and whether it holds an infinity."""
    from bncpu import _door

    return _door.as_batch(X).apply(coefficients, **options)
