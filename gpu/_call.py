"""A call of device arrays: what all functions check, and how they launch kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from bncpu import _scalars
from bncpu.saved import SavedStatistics

from . import _arrays, _compat, why_unavailable
from ._arguments import Address, Affine, Belonging, Kind, Statistics, Walk, Workspace
from ._arrays import Given
from ._kernels import Kernels, kernels
from ._plan import STORAGE, THREADS, Plan, plan


class View(NamedTuple):
    """How kernels see the data of an array."""

    shape: tuple[int, ...]
    axis: int  # of the columns
    rows: bool | None = None  # the form; by default that which `_plan.plan` takes
    groups: int = 1  # of a sample
    share: int = 1  # channels in a group


class Prepared(NamedTuple):
    """What a call needs that depends on shapes and types alone."""

    plan: Plan
    walk: Walk
    kernels: Kernels
    moments: Any  # the kernel for statistics, whatever follows it


def data(x: Any, least: int = 2) -> tuple[int, ...]:
    """The shape of an array of data. RuntimeError, TypeError or ValueError if it cannot be one."""
    if reason := _unavailable():
        raise RuntimeError(reason)
    _arrays.library("x", x)
    shape = tuple(x.shape)
    if len(shape) < least or 0 in shape:
        dimensions = "2 dimensions" if least == 2 else "1 dimension"
        raise ValueError(f"x must have at least {dimensions} and no axis of length 0; got shape {shape}")
    return shape


class Call:
    """The checked arrays of one call, and the stream."""

    def __init__(
        self, x: Any, activation: Any, parameters: dict[str, Any], per: tuple[int, ...], what: str = "", *,
        axis: int | None = None, **like: Any,
    ):  # fmt: skip
        """Check all arrays.

        Parameters
        ----------
        x : device array
            Which `data` has taken.
        activation : object
        parameters : dict
            Device arrays or None, by name.
        per : tuple of int
            The shape of parameters.
        what : str
            Said of it in errors.
        axis : int, optional
            That of the channels, if these may be adjacent in memory on an axis that is not the last.
        **like : device arrays or None
            Which lie as x does.
        """
        relu = _scalars.activation(activation)
        self.device = _compat.current_device()
        self.x = _arrays.given("x", x, self.device, axis=axis)
        self.like = {name: self._like(name, a, axis) for name, a in like.items() if a is not None}
        self.parameters = {name: self._parameter(name, a, per, what) for name, a in parameters.items() if a is not None}
        kinds = {name: p.storage for name, p in self.parameters.items()}
        if len(set(kinds.values())) > 1:
            raise TypeError(f"parameters must have one dtype, got {', '.join(f'{k} {v}' for k, v in kinds.items())}")
        self.written = self._written()
        parameters_of = next(iter(kinds.values()), "float64")
        self.about = self.x.storage, parameters_of, relu, "residual" in self.like, "mean" in kinds
        self.stream = _stream(self.device, _arrays.stream(self.x))

    def _like(self, name: str, a: Any, axis: int | None) -> Given:
        g = _arrays.given(name, a, self.device, written=name == "out", axis=axis)
        if (g.shape, g.storage) != (self.x.shape, self.x.storage):
            raise ValueError(
                f"{name} must have shape and dtype of x, {self.x.shape} {self.x.storage}; got {g.shape} {g.storage}"
            )
        if g.axis != self.x.axis:
            orders = ["C-contiguous", "with its channels adjacent in memory"]
            expected, got = orders[self.x.axis is not None], orders[g.axis is not None]
            raise ValueError(f"{name} must be {expected}, as x is; got one {got}")
        return g

    def _parameter(self, name: str, a: Any, per: tuple[int, ...], what: str) -> Given:
        g = _arrays.given(name, a, self.device, written=name.startswith("running"))
        if g.shape != per:
            raise ValueError(f"{name} must have shape {per}{what}; got {g.shape}")
        return g

    def _written(self) -> dict[str, Given]:
        """The arrays that are written. No other may share their memory, but `out` may be one like x."""
        if "out" not in self.like and "running_mean" not in self.parameters and "running_var" not in self.parameters:
            return {}
        arrays = {"x": self.x, **self.like, **self.parameters}
        written = {name: g for name, g in arrays.items() if name == "out" or name.startswith("running")}
        for name, g in written.items():
            for other, a in arrays.items():
                in_place = name == "out" and other not in self.parameters
                if other != name and not (in_place and a.memory == g.memory):
                    self._apart(name, g, other, a, in_place=in_place)
        return written

    @staticmethod
    def _apart(name: str, g: Given, other: str, a: Given, *, in_place: bool = False) -> None:
        if _arrays.share_memory(g, a):
            unless = f", unless out is all of {other}" if in_place else ""
            raise ValueError(f"{name} and {other} must not share memory{unless}")

    def saved(self, saved: SavedStatistics, shape: tuple[int, ...], *, centred: bool = True) -> Statistics:
        """Saved statistics for kernels."""
        if not isinstance(saved, SavedStatistics):
            raise TypeError(f"saved must be the SavedStatistics of a forward pass, got {type(saved).__name__}")
        if (saved.mean is None) == centred:
            expected = "the mean of the forward pass" if centred else "None, as rms_norm_forward leaves it"
            raise ValueError(f"saved.mean must be {expected}; got {type(saved.mean).__name__}")
        names = ("mean", "mean_lo", "invstd") if centred else ("invstd",)
        if centred and isinstance(saved.mean_lo, float):  # made by hand
            self.mean_lo = _arrays.sent(self.x, np.full(shape, saved.mean_lo))
            saved = saved._replace(mean_lo=self.mean_lo.array)
        found = [_arrays.given(f"saved.{name}", getattr(saved, name), self.device) for name in names]
        for g in found:
            if g.shape != shape or g.storage != "float64":
                raise ValueError(f"saved must hold float64 arrays of shape {shape}, got {g.shape} {g.storage}")
        for name, written in self.written.items():
            for g, other in zip(found, names, strict=True):
                self._apart(name, written, f"saved.{other}", g)
        return Statistics(*(g.address for g in (found if centred else found * 3)))

    def address(self, name: str) -> Address:
        """The address of an array like x. If it is not given, that of x, which the kernel does not read then."""
        return self.like.get(name, self.x).address

    def parameter(self, name: str) -> tuple[Address, int]:
        """Address and step of a parameter."""
        p = self.parameters.get(name)
        return (self.x.address, 0) if p is None else (p.address, 1)

    def affine(self) -> Affine:
        """Gamma and beta for kernels."""
        return Affine(*self.parameter("gamma"), *self.parameter("beta"))

    def prepared(
        self, view: View, belonging: Belonging = "columns", *,
        frozen: bool = False, centred: bool = True, skipping: bool = False,
    ) -> Prepared:  # fmt: skip
        """Plan and kernels for data in a view; the last three are those of `Kind`."""
        aligned = self.x.aligned
        if aligned and self.like:
            aligned = all(a.aligned for a in self.like.values())
        if aligned and belonging == "along":
            aligned = all(a.aligned for a in self.parameters.values())
        kind = _kind(*self.about, belonging, frozen, centred, skipping)
        return _prepared(view, kind, aligned, *_device(self.device))

    def prepared_sums(self, view: View) -> Prepared:
        """The same for sums of float64."""
        return _prepared(view, _SUMS, True, *_device(self.device))

    def launch(self, kernel: Any, p: Plan, *arguments: Any) -> None:
        """Start a kernel."""
        for g in self.written.values():
            _arrays.mark_written(g)
        _launcher(kernel, p, self.stream)(*arguments)

    def workspace(self, p: Plan) -> Workspace:
        """Memory for the parts of slices, and for counting slices that are done; held until the call ends."""
        if p.slices == 1:
            return Workspace(self.x.address, self.x.address)  # not used
        *below, _ = p.levels  # the last one of a column leaves nothing
        n_counts = sum(p.levels[1:]) * p.blocks
        self.kept = _arrays.scratch(self.x, self.device, 4 * sum(below) * p.width, n_counts)
        return Workspace(self.kept.floats, self.kept.counts)


_SUMS = Kind("float64", "float64", False, 1, 1, 1)


@lru_cache(maxsize=1024)
def _kind(
    storage: str, parameters: str, relu: bool, residual: bool, given: bool,
    belonging: Belonging, frozen: bool, centred: bool, skipping: bool,
) -> Kind:  # fmt: skip
    """The kind of a call whose plan is not known yet."""
    return Kind(
        storage, parameters, False, 1, 1, 1, relu=relu, residual=residual, given=given, frozen=frozen,
        belonging=belonging, centred=centred, skipping=skipping,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _prepared(view: View, kind: Kind, aligned: bool, multiprocessors: int, threads: int) -> Prepared:
    share = view.share if kind.belonging == "rows" else 0
    about: dict[str, Any] = {"rows": view.rows, "share": share, "multiprocessors": multiprocessors, "threads": threads}
    p = plan(view.shape, view.axis, STORAGE[kind.storage], aligned=aligned, **about)
    if kind.skipping and not p.rows:  # one weight for all values of a vector
        p = plan(view.shape, view.axis, STORAGE[kind.storage], aligned=False, **about)
    kind = kind._replace(rows=p.rows, n=p.n, columns=p.columns, members=p.members)
    moments = kernels(kind._replace(relu=False, residual=False, belonging="columns")).moments
    walk = Walk(p.outer, p.channels, p.inner, *p.step, view.groups, view.share)
    return Prepared(p, walk, kernels(kind), moments)


@lru_cache(maxsize=256)
def _stream(device: int, handle: int | None) -> Any:
    if handle is None:
        return cuda.default_stream()  # by NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM the thread's own
    return cuda.external_stream(handle) if handle else cuda.legacy_default_stream()


@lru_cache(maxsize=1024)
def _launcher(kernel: Any, p: Plan, stream: Any) -> Callable[..., None]:
    return _compat.launcher(kernel, p.grid, p.block, stream)


@cache
def _unavailable() -> str | None:
    return None if _compat.SIMULATED else why_unavailable()


@cache
def _device(device: int) -> tuple[int, int]:
    """Multiprocessors of a device, and threads of a block: few in the simulator, where they are threads of Python."""
    return (1, 16) if _compat.SIMULATED else (cuda.gpus[device].MULTIPROCESSOR_COUNT, THREADS)
