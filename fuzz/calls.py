"""Fuzz target: forward and backward functions, with memory, dtypes, shapes and arguments as the bytes say.

A good call gives what `bncpu._reference` gives, within the rounding that the tests allow, and writes nothing but its
result. A bad one is one TypeError or ValueError, and writes nothing.
"""

import warnings
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from source import Source, fuzz

KINDS = ("batch", "inference", "frozen", "layer", "rms", "instance", "group")
DTYPES = ("f4", "f8", "f2", ">f4", ">f8", ">f2")
LENGTHS = (3, 2, 1, 4, 5, 7, 8, 9, 15, 16, 17, 33, 65, 130, 0)
LARGEST = 20_000
GAP = 0xA5


class View:
    """Where an array of a shape lies in a buffer: its strides, and the bytes before and behind its first value."""

    def __init__(self, source: Source, shape: Sequence[int], itemsize: int, *, written: bool = False) -> None:
        self.shape, self.itemsize = tuple(shape), itemsize
        order = list(range(len(shape)))
        plain = not source.flag()
        if not plain:
            order.sort(key=lambda _: source.byte())
        strides, size = [0] * len(shape), itemsize
        for axis in reversed(order):
            step = 1 if plain or size > 8 * LARGEST else source.choice((1, 1, 1, -1, 2, -2, 3, 0))
            step = 1 if written and step == 0 else step
            strides[axis] = step * size
            size *= max(1, shape[axis]) * abs(step) or 1
            size += 0 if plain else source.choice((0, 0, 0, itemsize, 1))
        self.strides = tuple(strides)
        ends = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)] if prod(shape) else []
        self.before = -sum(end for end in ends if end < 0)
        self.behind = sum(end for end in ends if end > 0) + itemsize * (prod(shape) > 0)
        self.start = source.choice((0, 0, 0, itemsize, 64, 1)) + self.before

    def end(self) -> int:
        """The bytes that a buffer must have."""
        return self.start + self.behind

    def of(self, buffer: Any, dtype: str) -> Any:
        """The array."""
        return np.ndarray(self.shape, dtype, buffer, self.start, self.strides)


class Memory:
    """Buffers for arrays, gaps between their values included, and what the buffers held when a call was made."""

    def __init__(self) -> None:
        self._buffers: list[Any] = []
        self._before: list[Any] = []

    def buffer(self, n_bytes: int) -> Any:
        """A new buffer, no byte longer than it must be."""
        self._buffers.append(np.full(n_bytes, GAP, np.uint8))
        return self._buffers[-1]

    def array(self, source: Source, values: Any, dtype: Any, *, written: bool = False) -> Any:
        """Values in memory of their own, somehow."""
        view = View(source, values.shape, np.dtype(dtype).itemsize, written=written)
        a = view.of(self.buffer(view.end()), dtype)
        with np.errstate(all="ignore"):
            a[...] = values
        return a

    def remember(self) -> None:
        """From here on nothing may change."""
        self._before = [buffer.copy() for buffer in self._buffers]

    def check(self, *written: Any) -> None:
        """Nothing has changed but these arrays."""
        now = [buffer.copy() for buffer in self._buffers]
        results = [a.copy() for a in written]
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer[...] = before
        for a, result in zip(written, results, strict=True):
            a[...] = result
        assert all(map(np.array_equal, self._buffers, now)), "a call wrote where it must not"


class Norm:
    """One normalization of one shape: its functions, how its parameters lie along x, what is normalized together."""

    def __init__(self, source: Source) -> None:
        self.kind = source.choice(KINDS)
        along_last = self.kind in ("layer", "rms")
        shape: list[int] = []
        for _ in range((1 if along_last else 2) + source.byte() % 4):
            n = source.choice(LENGTHS)
            shape.append(n if prod(shape) * n <= LARGEST else 2)
        if source.byte() == 255:  # more than one block, or piece
            shape[source.byte() % len(shape)] = 2000
            shape = shape if prod(shape) <= 20 * LARGEST else [2000, 3]
        self.shape, n_axes = tuple(shape), len(shape)
        self.axes: tuple[int, ...] = (source.byte() % n_axes,)  # of gamma and beta
        self.arguments: dict[str, Any] = {}  # of the forward pass
        self.options: dict[str, Any] = {}
        if along_last and not source.flag():
            self.axes = tuple(range(n_axes))[source.byte() % n_axes :]
            self.arguments["normalized_shape"] = self.per if len(self.axes) > 1 or source.flag() else self.per[0]
        else:
            axis = self.axes[0]
            if axis != 1 or along_last or source.flag():
                self.options["channel_axis"] = axis - n_axes * source.flag()
            if along_last:
                self.arguments["normalized_shape"] = self.per[0]
            if self.kind == "group":
                divisors = [n for n in range(1, self.per[0] + 1) if self.per[0] % n == 0]
                self.arguments["n_groups"] = source.choice(divisors or [1])

    @property
    def per(self) -> tuple[int, ...]:
        """Shape of gamma and beta."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def has_values(self) -> bool:
        """Whether there are as many as a forward pass needs."""
        n_statistics = {"batch": self.per[0], "frozen": self.per[0]}
        if self.kind == "instance":
            n_statistics["instance"] = self.per[0] * self.shape[self.axes[0] == 0]
        return prod(self.shape) >= 2 * n_statistics.get(self.kind, 0.5) and prod(self.shape) > 0

    def along(self, p: Any) -> Any:
        """A parameter to broadcast against x."""
        return np.reshape(p, [n if axis in self.axes else 1 for axis, n in enumerate(self.shape)])

    def together(self, a: Any) -> Any:
        """What is normalized together as rows."""
        if self.kind in ("layer", "rms"):
            return np.moveaxis(a, self.axes, range(-len(self.axes), 0)).reshape(-1, prod(self.per))
        moved = np.moveaxis(a, self.axes[0], 0)
        if self.kind in ("instance", "group"):
            groups = self.arguments.get("n_groups", self.per[0])
            return np.moveaxis(moved, 1, 0).reshape(self.shape[self.axes[0] == 0] * groups, -1)
        return moved.reshape(self.per[0], -1)

    def apart(self, rows: Any) -> Any:
        """Undo `together`."""
        index = self.together(np.arange(prod(self.shape)).reshape(self.shape))
        a = np.empty(prod(self.shape))
        a[index] = rows
        return a.reshape(self.shape)

    def function(self, module: Any, name: str) -> Callable[..., Any]:
        """The forward or backward function of a module, given shape, groups and axis."""
        kind = "batch" if self.kind in ("inference", "frozen") else self.kind
        return getattr(module, f"{kind}_norm{name}")

    def along_saved(self, p: Any) -> Any:
        """A saved statistic to broadcast against x."""
        if self.kind in ("layer", "rms"):
            return p
        return self.apart(np.broadcast_to(np.reshape(p, (-1, 1)), self.together(np.empty(self.shape)).shape))


def values(source: Source, shape: Sequence[int], dtype: str) -> Any:
    """Numbers of one of several sizes, here and there something that is hard."""
    rng = np.random.default_rng(source.byte())
    x = rng.standard_normal(shape)
    if source.flag():
        x = x * source.choice((1e3, 1e-3, 1e-20, 1e20)) + source.choice((0, 0.5, -1e4, 6e4, 1e6))
    for _ in range(source.byte() % 3 if source.flag() and x.size else 0):
        at = (source.byte() << 8 | source.byte()) % x.size
        if source.flag():
            x[np.unravel_index(at, shape)[0]] = 7.1
        else:
            x.flat[at] = source.choice((0.0, -0.0, 1e4, 6e4, 1e-40, 1e30, np.inf, -np.inf, np.nan))
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def parameter(source: Source, memory: Memory, shape: Sequence[int]) -> Any:
    """Gamma, say: None, a list, or an array of some dtype."""
    kind = source.choice(("none", "f8", "f8", "f4", "list", "i2", ">f8"))
    if kind == "none":
        return None
    p = np.random.default_rng(source.byte()).standard_normal(shape)
    p = p * source.choice((1, 1, 1, 0, 1e10, 1e-30)) if source.flag() else p
    return p.tolist() if kind == "list" else memory.array(source, p, kind)


def native(dtype: Any) -> np.dtype[Any]:
    """The dtype in the byte order of this machine."""
    return np.dtype(dtype).newbyteorder("=")


class Subclass(np.ndarray):
    """As np.memmap is one."""


def bad(name: str, value: Any, norm: Norm) -> list[Any]:
    """Values of an argument that are refused, whatever the others are; `value` is a good one."""
    n_axes, none_is_good = len(norm.shape), norm.kind in ("layer", "rms")
    if name in ("x", "dy", "residual", "out"):
        a = np.zeros(norm.shape, "f8") if value is None else value
        other = ["i4", "?", "c8", "O", "g", "S4", "M8[s]"] + ([] if name == "x" else ["f4", "f8", "f2", ">f4"])
        changed = [np.zeros(a.shape, dtype) for dtype in other if native(dtype) != native(a.dtype)]
        if name != "x":
            more_axes = np.zeros((*a.shape, *(1,) * n_axes), a.dtype)
            changed += [a[None], np.zeros((*a.shape[:-1], a.shape[-1] + 1), a.dtype), more_axes]
        if name == "out":
            changed.append(a.view())
            changed[-1].flags.writeable = False
            if a.size > 1:
                changed.append(np.ndarray(a.shape, a.dtype, np.zeros(8, np.uint8), 0, [0] * a.ndim))
        return [*changed, a.tolist(), np.ma.masked_array(a), "x", 3.0, *([None] if name in ("x", "dy") else [])]
    if name in ("gamma", "beta", "mean", "var"):
        n = norm.per[-1]
        # One more axis might fit rows of one value; more axes than x has fit nothing.
        wrong = [np.ones((*norm.per, *(1,) * n_axes)), np.ones((*norm.per[:-1], n + 1))]
        wrong += ["abc", 1.0, [[1.0], [1.0, 2.0]], 1j]
        wrong += [np.ones(norm.per, "c16"), np.ones(norm.per, "O"), np.ma.masked_array(np.ones(norm.per))]
        return wrong + ([None] if name in ("mean", "var") else []) + ([[-1.0] * n] if name == "var" and n else [])
    return {
        "eps": [-1, -1e-300, np.nan, np.inf, "1", None, 1j, True, 10**400, np.ones(1)],
        "activation": ["gelu", 1, b"relu", True, "ReLU", ["relu"]],
        "n_threads": [0, -1, 1.5, True, "1", -(2**70)],
        "channel_axis": [n_axes, -n_axes - 1, 1.5, True, "1", 2**70, [1], *([] if none_is_good else [None])],
        "momentum": [-0.1, 1.1, np.nan, "0", None, True],
        "ddof": [-1, np.nan, np.inf, "0", None, *([1e9] if norm.has_values else [])],
        "n_groups": [0, -1, *([norm.per[0] + 1] if norm.per[0] else []), 1.5, None, True, "1"],
        "normalized_shape": [(), [], -1, 1.5, None, True, "1", max(norm.shape) + 1, (2,) * 9, ((1,),), 2**70],
        "saved": [None, 1.0, (np.zeros(norm.per), np.ones(norm.per)), np.ones((2, *norm.per))],
    }[name]


class Call:
    """A call, its arguments in memory, and what it must give."""

    def __init__(self, source: Source) -> None:
        import bncpu

        self.norm, self.dtype, self.memory = Norm(source), np.dtype(source.choice(DTYPES)), Memory()
        norm, kind = self.norm, self.norm.kind
        bncpu._kernels.use_isa(source.choice(bncpu._kernels.isa_variants()))
        self.backward = norm.has_values and (kind == "frozen" or (kind != "inference" and source.byte() % 2 == 1))
        self.kind = "batch" if kind == "frozen" and not self.backward else kind
        gamma = parameter(source, self.memory, norm.per)
        beta = None if kind == "rms" else parameter(source, self.memory, norm.per)
        self.relu, self.eps = source.flag(), source.choice((1e-5, 0.0, 0.25, 1, np.float32(1e-3)))
        self._place(source, ["x", *(["dy"] if self.backward else []), *(["residual"] if source.flag() else [])])
        self.copies = {name: np.array(a, subok=False, order="C") for name, a in self.arrays.items()}
        self.written = {} if self.out is None else {"out": self.out}
        common = {"gamma": gamma, "beta": beta, "activation": "relu" if self.relu else None, **norm.options}
        self.arguments: dict[str, Any] = {
            **common, **self.arrays, "out": self.out, "n_threads": source.choice((None, 1, 2, 3, 2**31, 2**70)),
        }  # fmt: skip
        if self.backward:
            residual = self.copies.get("residual")
            given = {**common, **norm.arguments, "x": self.copies["x"], "residual": residual, "eps": self.eps}
            self.y, self.saved = norm.function(bncpu, "_forward")(**without_none(given))
            if kind == "frozen":
                self.saved = self.saved._replace(kind="frozen")
            by_hand = bncpu.SavedStatistics(*self.saved, self.saved.mean_lo)
            self.arguments["saved"] = self.saved if source.flag() else by_hand
        else:
            self.arguments |= {"eps": self.eps, **norm.arguments}
        if kind == "inference":
            self.arguments["mean"] = values(source, norm.per, "f8")
            self.arguments["var"] = np.abs(values(source, norm.per, "f8"))
        if self.kind in ("batch", "instance") and not self.backward and source.flag():
            for name in ("running_mean", "running_var"):
                old = np.abs(np.random.default_rng(source.byte()).standard_normal(norm.per))
                made = self.memory.array(source, old, source.choice(DTYPES[:5]), written=True)
                self.arguments[name] = self.written[name] = made
            self.arguments |= {"momentum": source.choice((0.9, 0.0, 1.0, 0)), "ddof": source.choice((0, 1, 0.5))}
        with np.errstate(all="ignore"):
            self.before = {name: a.astype("f8") for name, a in self.written.items()}
        self.arguments = without_none(self.arguments)
        self.spoiled = None
        if source.flag():
            self.spoiled = source.choice([name for name in self.arguments if not name.startswith("running")])
            self.arguments[self.spoiled] = source.choice(bad(self.spoiled, self.arguments[self.spoiled], norm))
        self.errors = {"all": "raise"} if source.byte() == 1 else {}
        self.where: Any = None
        # Of what is read last, so that inputs found earlier still mean what they meant.
        if source.flag() and self.kind not in ("inference", "frozen") and not self.spoiled and norm.has_values:
            self._leave_out(source)

    def _leave_out(self, source: Source) -> None:
        """Let some values not count, if enough are left that do. Those are finite, as all enter the tolerance."""
        import bncpu

        norm, rng = self.norm, np.random.default_rng(source.byte())
        per_value = norm.kind in ("layer", "rms")
        shape = [n if per_value or axis not in norm.axes else 1 for axis, n in enumerate(norm.shape)]
        where = rng.random([n if source.byte() % 4 else 1 for n in shape]) < source.choice((0.7, 0.9, 0.3))
        counts = np.broadcast_to(where, norm.shape)
        left = self.arrays["x"][~counts]
        if "running_mean" in self.written or not np.isfinite(left).all():
            return
        if not per_value and norm.together(counts).sum(axis=1).min() < 2:
            return
        self.where = self.arguments["where"] = where
        if self.backward:
            given = {
                name: a for name, a in self.arguments.items() if name not in ("x", "dy", "saved", "out", "n_threads")
            }
            given |= {"x": self.copies["x"], "eps": self.eps, **norm.arguments}
            self.y, self.saved = norm.function(bncpu, "_forward")(**given)
            self.arguments["saved"] = self.saved

    def _place(self, source: Source, names: list[str]) -> None:
        """Arrays in memory; the result in memory of its own, or in that of one of the others."""
        itemsize, shape = self.dtype.itemsize, self.norm.shape
        beside, out = source.choice(names), source.choice(("none", "none", "alone", "same", "overlapping"))
        self.arrays: dict[str, Any] = {}
        self.out = None
        for name in names:
            numbers = values(source, shape, self.dtype)
            if name != beside or out in ("none", "alone"):
                self.arrays[name] = self.memory.array(source, numbers, self.dtype)
                continue
            mine = View(source, shape, itemsize, written=True)
            result = mine if out == "same" else View(source, shape, itemsize, written=True)
            buffer = self.memory.buffer(max(mine.end(), result.end()))
            self.arrays[name], self.out = mine.of(buffer, self.dtype), result.of(buffer, self.dtype)
            self.arrays[name][...] = numbers
        if out == "alone":
            view = View(source, shape, itemsize, written=True)
            self.out = view.of(self.memory.buffer(view.end()), self.dtype)
        for name in names:
            kind = source.byte()
            if kind % 64 == 1:
                self.arrays[name] = self.arrays[name].view(Subclass)
            if kind % 8 == 2 and not (name == beside and out in ("same", "overlapping")):
                self.arrays[name].flags.writeable = False

    def run(self) -> bool:
        """Whether the call was accepted; AssertionError if it broke a promise."""
        import bncpu

        name = {"inference": "", "frozen": "_backward_frozen"}.get(
            self.kind, "_backward" if self.backward else "_forward"
        )
        function = self.norm.function(bncpu, name)
        self.memory.remember()
        try:
            with warnings.catch_warnings(), np.errstate(**self.errors):
                warnings.simplefilter("error")
                results = function(**self.arguments)
        except (TypeError, ValueError) as error:
            self.memory.check()
            assert self.spoiled or not self.norm.has_values, f"refused: {error}"
            if self.spoiled is None:
                return False
            # By hand, statistics and parameters that do not fit each other may be refused by the name of any of them.
            together = ("gamma", "beta", "saved")
            others = {"ddof": ("values per channel",), "gamma": together, "beta": together}.get(self.spoiled, ())
            named = (name in str(error) for name in (self.spoiled, *others))
            assert not self.norm.has_values or any(named), str(error)
            return False
        assert self.spoiled is None, f"{self.spoiled} was accepted"
        self.memory.check(*self.written.values())
        first = results if isinstance(results, np.ndarray) else results[0]
        assert first.dtype == (native(self.dtype) if self.out is None else self.dtype)
        assert first.shape == self.norm.shape
        assert self.out is None or first is self.out
        if first.size:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                self.check_gradients(results) if self.backward else self.check_result(first)
        return True

    def check_result(self, y: Any) -> None:
        """The result is within a few roundings of the largest term."""
        from bncpu import _reference

        norm, given = self.norm, self.given()
        x, z = given.pop("x"), self.copies.get("residual", np.zeros(()))
        if self.kind == "inference":
            plain = _reference.batch_norm(x, **given, **norm.options)
            rounded = np.spacing(np.abs(given["mean"]).astype(y.dtype.newbyteorder("="))).astype("f8")
            more = norm.along(rounded * _reference.inverse_std(given["var"], self.eps) * given.get("gamma", 1.0))
        else:
            rows = norm.together(x)
            if self.kind != "rms" and self.where is None:
                # Whose mean is not rounded here, so that equal values have no deviation.
                constant = np.isfinite(rows) & (rows == rows[:, :1])
                rows = np.where(constant.all(axis=1, keepdims=True), 0, rows)
            forward, same = norm.function(_reference, "_forward"), norm.apart(rows)
            plain, *_ = forward(same, **given, **norm.options, **self.counted())
            alone = {name: p for name, p in given.items() if name not in ("gamma", "beta")}
            x_hat = forward(same, **alone, **norm.options, **self.counted())[0]
            # Each x_hat is as far off as the largest, whatever its own gamma makes of it.
            scale = norm.together(np.abs(norm.along(given.get("gamma", np.ones(norm.per)))) + np.zeros(norm.shape))
            more = norm.apart(scale.max(axis=1, keepdims=True) * norm.together(np.abs(x_hat)))
        expected = plain + z
        terms = [np.abs(a) for a in (plain, expected, z, more, norm.along(given.get("beta", np.zeros(norm.per))))]
        largest = np.max([norm.together(np.broadcast_to(a, norm.shape)).max(axis=1) for a in terms], axis=0)
        shape = norm.together(x).shape
        tolerance = norm.apart(np.broadcast_to(((4 * eps_of(y) + of_sums(shape[1])) * largest)[:, None], shape))
        close("y", y, np.maximum(expected, 0) if self.relu else expected, tolerance)
        if "running_mean" in self.written:
            self.check_running(x)

    def check_running(self, x: Any) -> None:
        """Running statistics have moved towards those of the batch."""
        momentum, ddof = self.arguments["momentum"], self.arguments["ddof"]
        rows = self.norm.together(x)
        n = rows.shape[1]
        # About a value: of equal ones the mean may be rounded, and they have no variance.
        mean, var = rows.mean(axis=1), (rows - rows[:, :1]).var(axis=1) * n / (n - ddof)
        for name, new in (("running_mean", mean), ("running_var", var)):
            if momentum == 1:
                new = np.zeros(())
            elif self.kind == "instance":
                new = new.reshape(-1, *self.norm.per).mean(axis=0)
            got, old = self.written[name], self.before[name] if momentum else np.zeros(())
            largest = np.maximum(np.abs(old), np.abs(new)) + np.abs(rows).max()
            close(name, got, momentum * old + (1 - momentum) * new, 16 * (eps_of(got) + of_sums(n)) * largest)

    def check_gradients(self, results: Any) -> None:
        """Gradients are within a few roundings of their largest terms, and 0 exactly where ReLU gave 0."""
        from bncpu import _reference

        norm, given = self.norm, self.given()
        dx, dgamma, *others = results
        x, dy = given.pop("x"), given.pop("dy")
        if self.relu:
            passes = ~(self.y <= 0)
            if self.dtype.itemsize == 2 and np.any(self.y == 0):
                return  # rounded to 0, perhaps: the gradient looks at the result before that
            dy = np.where(passes, dy, 0)
        if "residual" in self.copies:
            np.testing.assert_array_equal(others.pop(), dy.astype(self.dtype))
        gamma = given.get("gamma", np.ones(norm.per))
        more = {"frozen": True} if self.kind == "frozen" else self.counted()
        expected = norm.function(_reference, "_backward")(dy, x, self.saved, **given, **norm.options, **more)
        mean, invstd = (0.0 if p is None else norm.along_saved(p) for p in self.saved)
        lo = self.saved.mean_lo
        x_hat = (x - mean - (lo if np.ndim(lo) == 0 else norm.along_saved(lo))) * invstd
        size, scale, hat, inv = (
            norm.together(np.broadcast_to(np.abs(a), norm.shape)) for a in (dy, norm.along(gamma), x_hat, invstd)
        )
        hat = 2 + hat.max(axis=1) * np.maximum(1, hat.mean(axis=1))
        largest = size.max(axis=1) * scale.max(axis=1) * inv.max(axis=1) * np.maximum(1, hat / 7)
        if norm.kind in (
            "layer",
            "rms",
        ):  # whose gamma differs within a row, so that gamma dy is a product in the dtype
            largest[size.max(axis=1) * scale.max(axis=1) > float(np.finfo(dx.dtype).max)] = np.inf
        tolerance = norm.apart(
            np.broadcast_to((16 * (eps_of(dx) + of_sums(size.shape[1])) * largest)[:, None], size.shape)
        )
        close("dx", dx, expected[0], tolerance)
        rest = tuple(axis for axis in range(len(norm.shape)) if axis not in norm.axes)
        n = prod(norm.shape) // prod(norm.per)
        most, farthest = (np.abs(a).max(axis=rest) for a in (dy, np.broadcast_to(x_hat, norm.shape)))
        two_steps = eps_of(dx) if dx.dtype.itemsize > 2 else eps_of(np.zeros((), "f4"))
        for name, got, wanted, eps in zip(
            ("dgamma", "dbeta"), (dgamma, *others), expected[1:], (two_steps, 0), strict=False
        ):
            assert got.dtype == np.float64
            largest = n * most * np.maximum(5, 1.5 * farthest)  # x_hat has three roundings
            if norm.kind in ("layer", "rms"):  # which hold x_hat in the dtype: the forward pass was infinite there, too
                largest[farthest > float(np.finfo(dx.dtype).max)] = np.inf
            close(name, got.reshape(norm.per), wanted.reshape(norm.per), (eps + of_sums(n)) * largest)

    def counted(self) -> dict[str, Any]:
        """What the reference is told of values that do not count."""
        return {} if self.where is None else {"where": self.where}

    def given(self) -> dict[str, Any]:
        """The arguments of the reference."""
        names = ("gamma", "beta", "mean", "var", "eps", *self.norm.arguments)
        numbers = {name: self.arguments[name] for name in names if name in self.arguments}
        for name in ("gamma", "beta"):
            if name in numbers:
                numbers[name] = np.array(numbers[name], "f8")
        return numbers | {name: a.astype("f8") for name, a in self.copies.items() if name != "residual"}


def without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that are given."""
    return {name: value for name, value in arguments.items() if value is not None}


def of_sums(n: int) -> float:
    """Rounding of a sum of n float64 values, which may all be equal, and of the few steps around it."""
    return (64 + n / 2) * float(np.finfo("f8").eps)


def eps_of(a: Any) -> float:
    """The distance from 1 to the next number."""
    return float(np.finfo(a.dtype).eps)


def close(name: str, got: Any, expected: Any, tolerance: Any) -> None:
    """Equal within the tolerance where that is known: where nothing is infinite, or too large for the dtype."""
    limits = np.finfo(got.dtype)
    assert got.shape == expected.shape, name
    known = np.isfinite(expected) & (np.abs(expected) + tolerance < 0.99 * float(limits.max))
    off = np.abs(got.astype("f8") - expected) > tolerance + float(limits.smallest_subnormal)
    wrong = known & (off | ~np.isfinite(got.astype("f8")))
    assert not np.any(wrong), f"{name}: {got[wrong][:3]} instead of {expected[wrong][:3]}"
    assert not np.any(np.isnan(expected) & np.isfinite(got)), (
        f"{name}: {expected[np.isnan(expected) & np.isfinite(got)][:3]}"
    )


def check(data: bytes) -> bool:
    """Whether the call that the bytes say was accepted; AssertionError, or what else was raised, if a promise broke."""
    return Call(Source(data)).run()


if __name__ == "__main__":
    fuzz("calls", check)
