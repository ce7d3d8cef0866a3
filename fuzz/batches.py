"""Fuzz target: a transformer learns batches, and transforms, with memory, dtypes and shapes as the bytes say.

Good batches give the statistics and results of float64 arithmetic on all of them at once. A bad one is one TypeError or
ValueError, and leaves every byte of the state.
"""

import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from calls import DTYPES, LENGTHS, Memory, Subclass, close, eps_of, of_sums, parameter, values
from source import Source, fuzz

KINDS = (*DTYPES, "i1", "u2", ">i4", "i8", "u8", "?", "O", "list", "g")
LARGEST = 5_000
AXES = (None, None, 1, -1, 0, 2)


def rounded(x: Any, kind: str) -> Any:
    """The values in a type, where all of them are numbers of it."""
    if kind in ("O", "list", "g"):
        return x
    dtype = np.dtype(kind)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        largest = float(min(limits.max, 2**53))
        return np.rint(np.clip(np.nan_to_num(x), max(float(limits.min), -largest), largest)).astype(dtype)
    with np.errstate(all="ignore"):
        return np.nan_to_num(x).astype(dtype) if dtype.kind == "b" else x.astype(dtype)


class Stream:
    """A transformer, its batches in memory, and what it must learn."""

    def __init__(self, source: Source) -> None:
        import bncpu

        bncpu._kernels.use_isa(source.choice(bncpu._kernels.isa_variants()))
        self.memory, axis = Memory(), source.choice(AXES)
        n_axes = 2 if axis is None else 2 + source.byte() % 3
        axis = axis if axis is None or axis < n_axes else 1
        self.axis = (1 if axis is None else axis) % n_axes
        self.apart = int(self.axis == 0)  # where samples lie
        self.shape = []
        for _ in range(n_axes):
            n = source.choice(LENGTHS[:-1])
            self.shape.append(n if np.prod([*self.shape, n]) <= LARGEST else 1)
        n_channels = self.shape[self.axis]
        gamma, beta = parameter(source, self.memory, (n_channels,)), parameter(source, self.memory, (n_channels,))
        self.parameters = {
            "gamma": gamma, "beta": beta, "channel_axis": axis, "n_threads": source.choice((None, 1, 3)),
            "eps": source.choice((1e-5, 0.25, np.float32(1))), "with_mean": not source.flag(),
            "with_std": not source.flag(), "copy": not source.flag(), "clip": source.choice((None, None, 0.5, 3)),
        }  # fmt: skip
        self.bn = bncpu.BatchNormTransformer(**self.parameters)
        self.learned: list[tuple[Any, Any]] = []  # values and their weights, float64, copies

    def batch(self, source: Source) -> tuple[Any, Any]:
        """A batch somehow, and its values."""
        kind, shape = source.choice(KINDS), list(self.shape)
        shape[self.apart] = source.choice(LENGTHS[:-1]) if np.prod(shape) <= LARGEST else shape[self.apart]
        numbers = values(source, shape, "f8")
        for _ in range(source.byte() % 4):  # some channel has gaps, perhaps nothing else
            np.moveaxis(numbers, self.axis, 0)[source.byte() % shape[self.axis]][:: source.byte() % 3 + 1] = np.nan
        numbers = rounded(numbers, kind)
        if kind == "list":
            return numbers.tolist(), numbers
        if kind in ("O", "g"):
            return numbers.astype(kind), numbers
        X = self.memory.array(source, numbers, kind)
        read_only, subclass = source.flag(), source.flag()
        X = X.view(Subclass) if subclass else X
        X.flags.writeable = not read_only
        return X, np.array(X, subok=False, order="C")

    def weights(self, source: Source, shape: Sequence[int]) -> Any:
        """None, or a weight for every sample or position of a batch, the first not 0."""
        kind, positions = source.byte() % 4, [n for k, n in enumerate(shape) if k != self.axis]
        if kind < 2 or not np.prod(shape):
            return None
        samples = shape[self.apart]
        rng = np.random.default_rng(source.byte())
        weights = rng.choice([0.0, 0.5, 1.0, 3.0], [samples] if kind == 2 else positions)
        weights.flat[0] = 2
        return weights

    def bad(self, source: Source) -> Any:
        """What no transformer learns."""
        good, shape = np.ones(self.shape), self.shape
        wrong = [np.array(1.0), np.ones(3), 3.0, None, "abc", [], [[]], np.empty((0, 0)), good.astype("c16")]
        wrong += [np.full(shape, "x", "O"), np.full(shape, np.inf), {"a": good}]
        wrong += [np.delete(good, np.s_[:], self.apart), np.delete(good, np.s_[:], self.axis)]
        if self.learned:
            wrong.append(np.concatenate([good, good], self.axis))
        return source.choice(wrong)

    def run(self, source: Source) -> bool:
        """Whether every batch was accepted; AssertionError if a promise broke."""
        accepted = True
        for _ in range(1 + source.byte() % 3):
            if source.flag():
                self.refuse(self.bn.partial_fit, self.bad(source))
                accepted = False
            X, numbers = self.batch(source)
            with np.errstate(all="ignore"):
                wide = numbers.astype("f8")
            self.memory.remember()
            if np.isinf(wide).any():
                self.refuse(self.bn.partial_fit, X)
                accepted = False
                continue
            weights = self.weights(source, wide.shape)
            assert self.bn.partial_fit(X, sample_weight=weights) is self.bn
            self.memory.check()
            weights = np.float64(1) if weights is None else weights
            if np.ndim(weights) == 1:
                weights = weights.reshape([-1 if k == self.apart else 1 for k in range(wide.ndim)])
            elif np.ndim(weights):
                weights = np.expand_dims(weights, self.axis)
            self.learned.append((wide, np.broadcast_to(weights, wide.shape)))
        if self.learned:
            self.check_statistics()
            for _ in range(1 + source.byte() % 2):
                if source.flag():
                    self.refuse(self.bn.transform, self.bad(source))
                self.check_transform(*self.batch(source))
        return accepted

    def refuse(self, call: Any, X: Any, written: Any = ()) -> None:
        """One error, and nothing else."""
        state = pickle.dumps(self.bn)
        self.memory.remember()
        try:
            call(X)
        except (TypeError, ValueError) as error:
            assert str(error), repr(error)
        else:
            raise AssertionError(f"{X!r} was accepted")
        self.memory.check(*written)
        assert pickle.dumps(self.bn) == state

    def rows(self, a: Any) -> Any:
        """Every channel's values."""
        return np.moveaxis(a, self.axis, 0).reshape(self.shape[self.axis], -1)

    def check_statistics(self) -> None:
        """Mean and variance are those of all batches at once."""
        rows, weights = (np.concatenate([self.rows(pair[k]) for pair in self.learned], axis=1) for k in (0, 1))
        weights = np.where(np.isnan(rows), 0, weights)
        rows = np.where(weights > 0, rows, np.nan)
        n, largest = rows.shape[1], np.nanmax(np.abs(rows), axis=1, initial=0)

        def average(a: Any) -> Any:
            return np.nansum(a * weights, axis=1) / weights.sum(axis=1)

        with np.errstate(all="ignore"):  # channels without values
            first = average(rows)
            rest = average(rows - first[:, None])
            mean, var = first + rest, average((rows - first[:, None] - rest[:, None]) ** 2)
        assert np.array_equal(np.isnan(self.bn.running_mean_), np.isnan(mean))
        deviations = np.nanmax(np.abs(rows - mean[:, None]), axis=1, initial=0)
        more = eps_of(mean) * largest
        close("mean", self.bn.running_mean_, mean, 2 * of_sums(n) * deviations + 2 * more)
        close("var", self.bn.running_var_, var, 2 * of_sums(n) * deviations**2 + (8 * more) ** 2)

    def check_transform(self, X: Any, numbers: Any) -> None:
        """The affine transform with what was learned, in the type of the values."""
        p, per = self.parameters, [1] * np.ndim(numbers)
        per[self.axis] = -1
        if np.isinf(numbers.astype("f8")).any():
            overwritten = not p["copy"] and isinstance(X, np.ndarray) and X.flags.writeable
            self.refuse(self.bn.transform, X, written=[X] if overwritten else [])
            return
        self.memory.remember()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "results overflow", RuntimeWarning)
            y = self.bn.transform(X)
        given = getattr(X, "dtype", np.dtype("f8"))
        expected = np.dtype(given.newbyteorder("=") if given.kind == "f" and given.itemsize <= 8 else "f8")
        assert isinstance(y, np.ndarray)
        assert y.shape == numbers.shape
        assert y.dtype.newbyteorder("=") == expected
        written = [y] if p["copy"] is False and isinstance(X, np.ndarray) and np.shares_memory(y, X) else []
        self.memory.check(*written)
        mean = self.bn.running_mean_ if p["with_mean"] else np.zeros(self.shape[self.axis])
        var = self.bn.running_var_ if p["with_std"] else np.ones(self.shape[self.axis]) - float(p["eps"])
        gamma, beta = (
            default if p[name] is None else np.array(p[name], "f8") for name, default in (("gamma", 1.0), ("beta", 0.0))
        )
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(var + float(p["eps"]))
            x = numbers.astype("f8")
            wanted = (x - mean.reshape(per)) * scale.reshape(per) + np.reshape(beta * np.ones_like(mean), per)
            sizes = (np.abs(x) + np.abs(mean).reshape(per)) * np.abs(scale).reshape(per) + np.reshape(
                np.abs(beta) * np.ones_like(mean), per
            )
            if p["clip"] is not None:
                wanted = np.clip(wanted, -p["clip"], p["clip"])
            close("y", y, wanted, 4 * eps_of(y) * sizes)
        np.testing.assert_array_equal(np.isnan(y) | np.isinf(y), np.isnan(wanted) | np.isinf(y))


def check(data: bytes) -> bool:
    """Whether all batches were accepted; AssertionError, or what else was raised, if a promise broke."""
    source = Source(data)
    return Stream(source).run(source)


if __name__ == "__main__":
    fuzz("batches", check)
