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
from ._arguments import Address, Affine, Belonging, Kind, Pair, Statistics, Walk, Workspace
from ._arrays import Form
from ._kernels import Kernels, kernels
from ._plan import STORAGE, THREADS, Plan, plan, rows_together


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
    of_moments: Kernels  # those for statistics, whatever follows them


class Piece(NamedTuple):
    """A whole array, or some of its rows, of which several may be taken as one."""

    start: int  # the number of bytes before it
    before: int  # how many columns of a channel lie in the pieces before
    prepared: Prepared


class Pieces(NamedTuple):
    """The pieces of an array, and how many columns a channel has in all of them."""

    pieces: tuple[Piece, ...]
    n_parts: int


def moved(group: Any, n_bytes: int) -> Any:
    """A group of addresses, each so many bytes further."""
    return type(group)(*(_compat.further(at, n_bytes) for at in group)) if n_bytes else group


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


AS_X = ("x", "dy", "residual", "out")  # arrays of the shape, type and memory order of x; the others are parameters


def _is_written(name: str) -> bool:
    return name == "out" or name.startswith("running")


class Checked:
    """What the arrays of a call are, found to fit each other. Calls of such arrays share it, and it is its own key."""

    def __init__(self, forms: dict[str, Form], parameters: str, relu: bool):
        """Keep the forms by name, and the type of parameters."""
        self.forms, self.parameters, self.relu = forms, parameters, relu
        self.library, self.last = forms["x"].library, forms["x"].last
        self.as_x = tuple(name for name in forms if name in AS_X)
        self.written = tuple(filter(_is_written, forms))
        # Which arrays must not share memory; `out` may be the very memory of x, dy or residual.
        self.apart = [
            (name, other, name == "out" and other in AS_X) for name in self.written for other in forms if other != name
        ]


@lru_cache(maxsize=1024)
def _checked(
    told: tuple[Any, ...], per: tuple[int, ...], what: str, axis: int | None, relu: bool, device: int
) -> Checked:
    """Check what arrays told of themselves. `told` has a name and a `Seen` for each, x first."""
    forms: dict[str, Form] = {}
    kinds: dict[str, str] = {}
    for name, seen in told:
        as_x = name in AS_X
        own = _arrays.form(name, seen, device, written=_is_written(name), axis=axis if as_x else None)
        if as_x:
            _check_as_x(name, own, forms.get("x", own))
        elif own.shape != per:
            raise ValueError(f"{name} must have shape {per}{what}; got {own.shape}")
        else:
            kinds[name] = own.storage
        forms[name] = own
    if len(set(kinds.values())) > 1:
        raise TypeError(f"parameters must have one dtype, got {', '.join(f'{k} {v}' for k, v in kinds.items())}")
    return Checked(forms, next(iter(kinds.values()), "float64"), relu)


def _check_as_x(name: str, own: Form, x: Form) -> None:
    if (own.shape, own.storage) != (x.shape, x.storage):
        raise ValueError(f"{name} must have shape and dtype of x, {x.shape} {x.storage}; got {own.shape} {own.storage}")
    if own.last != x.last:
        orders = ["C-contiguous", "with its channels adjacent in memory"]
        expected, got = orders[x.last is not None], orders[own.last is not None]
        raise ValueError(f"{name} must be {expected}, as x is; got one {got}")


@lru_cache(maxsize=1024)
def _checked_saved(told: tuple[Any, ...], shape: tuple[int, ...], device: int) -> list[Form]:
    """Check what saved statistics told of themselves."""
    found = [_arrays.form(name, seen, device) for name, seen in told]
    for own in found:
        if own.shape != shape or own.storage != "float64":
            raise ValueError(f"saved must hold float64 arrays of shape {shape}, got {own.shape} {own.storage}")
    return found


class Call:
    """The checked arrays of one call, where they lie, and the stream."""

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
            Which lie as x does; with names that are in `AS_X`.
        """
        relu = _scalars.activation(activation)
        self.device = device = _compat.current_device()
        given = {"x": x, **like, **parameters}
        self.arrays = arrays = {name: a for name, a in given.items() if a is not None}
        told = tuple([(name, _arrays.seen(name, a)) for name, a in arrays.items()])
        self.checked = checked = _checked(told, per, what, axis, relu, device)
        self.library, self.x = checked.library, x
        forms = checked.forms
        self.at = {name: _arrays.address(a, forms[name].library, forms[name].last) for name, a in arrays.items()}
        for name, other, in_place in checked.apart:
            self._apart(name, other, arrays[other], self.at[other], forms[other].n_bytes, in_place=in_place)
        self.stream = _stream(device, _arrays.stream(x, self.library))

    def _apart(self, name: str, other: str, a: Any, at: Address, n_bytes: int, *, in_place: bool = False) -> None:
        """Refuse an array that shares memory with the written one called `name`. With `in_place` it may be the same."""
        own, start = _arrays.start(self.arrays[name], self.at[name]), _arrays.start(a, at)
        own_bytes = self.checked.forms[name].n_bytes
        if own < start + n_bytes and start < own + own_bytes and not (in_place and own == start):
            unless = f", unless out is all of {other}" if in_place else ""
            raise ValueError(f"{name} and {other} must not share memory{unless}")

    def saved(self, saved: SavedStatistics, shape: tuple[int, ...], *, centred: bool = True) -> Statistics:
        """Saved statistics for kernels."""
        if not isinstance(saved, SavedStatistics):
            raise TypeError(f"saved must be the SavedStatistics of a forward pass, got {type(saved).__name__}")
        mean, invstd, mean_lo = saved.mean, saved.invstd, saved.mean_lo
        if (mean is None) == centred:
            expected = "the mean of the forward pass" if centred else "None, as rms_norm_forward leaves it"
            raise ValueError(f"saved.mean must be {expected}; got {type(mean).__name__}")
        if centred and isinstance(mean_lo, float):  # made by hand
            self.mean_lo = mean_lo = _arrays.sent(self.x, self.library, np.full(shape, mean_lo))
        found = {"saved.mean": mean, "saved.mean_lo": mean_lo} if centred else {}
        found["saved.invstd"] = invstd
        told = tuple([(name, _arrays.seen(name, a)) for name, a in found.items()])
        forms = _checked_saved(told, shape, self.device)
        at = [_arrays.address(a, own.library) for a, own in zip(found.values(), forms, strict=True)]
        for written in self.checked.written:
            for (name, a), where, own in zip(found.items(), at, forms, strict=True):
                self._apart(written, name, a, where, own.n_bytes)
        return Statistics(*at) if centred else Statistics(*at * 3)

    def address(self, name: str) -> Address:
        """The address of an array. If it is not given, that of x, which the kernel does not use then."""
        return self.at.get(name, self.at["x"])

    def parameter(self, name: str) -> tuple[Address, int]:
        """Address and step of a parameter."""
        return (self.at[name], 1) if name in self.at else (self.at["x"], 0)

    def affine(self) -> Affine:
        """Gamma and beta for kernels."""
        return Affine(*self.parameter("gamma"), *self.parameter("beta"))

    def new_as_x(self) -> tuple[Any, Address]:
        """A new array like x, and its address."""
        made = _arrays.like(self.x, self.library)
        return made, _arrays.address(made, self.library, self.checked.last)

    def result(self) -> tuple[Any, Address]:
        """`out`, or a new array like x, and its address."""
        return (self.arrays["out"], self.at["out"]) if "out" in self.at else self.new_as_x()

    def float64(self, *shape: int) -> tuple[Any, Address]:
        """A new array of float64, and its address."""
        made = _arrays.float64(self.x, self.library, shape)
        return made, _arrays.address(made, self.library)

    def prepared(self, view: View, belonging: Belonging = "columns", *, centred: bool = True) -> Prepared:
        """Plan and kernels for data in a view; the others are those of `Kind`."""
        checked, at = self.checked, self.at
        in_vectors = checked.forms if belonging == "along" else checked.as_x
        aligned = _arrays.aligned([at[name] for name in in_vectors])
        return _prepared_for(checked, view, belonging, centred, aligned, *_device(self.device))

    def in_pieces(self, view: View, *, frozen: bool, skipping: bool, whole: bool) -> Pieces:
        """Plans and kernels for data whose columns are channels. As a `whole` it is one piece."""
        aligned = _arrays.aligned([self.at[name] for name in self.checked.as_x])
        return _pieces_for(self.checked, view, frozen, skipping, aligned, whole, *_device(self.device))

    def prepared_sums(self, view: View) -> Prepared:
        """The same for sums of float64."""
        return _prepared(view, _SUMS, True, *_device(self.device))

    def prepared_moments(self, view: View) -> Prepared:
        """Plan and kernels that merge moments which `collect` has written, and update running statistics."""
        return _prepared(view, _SUMS._replace(parameters=self.checked.parameters), False, *_device(self.device))

    def launch(self, kernel: Any, p: Plan, *arguments: Any) -> None:
        """Start a kernel."""
        for name in self.checked.written:
            _arrays.mark_written(self.arrays[name], self.checked.forms[name].library)
        _launcher(kernel, p, self.stream)(*arguments)

    def fold(self, view: View, pair: Pair, result: Pair) -> None:
        """Add up the sums of a view over every column."""
        of_sums = self.prepared_sums(view)
        workspace = self.workspace(of_sums.plan)
        self.launch(of_sums.kernels.fold, of_sums.plan, pair, of_sums.walk, workspace, result)

    def workspace(self, p: Plan) -> Workspace:
        """Memory for the parts of slices, and for counting slices that are done.

        It is held until the call ends, or asks for more: by then the kernel that uses it was launched.
        """
        if p.slices == 1:
            return Workspace(self.at["x"], self.at["x"])  # not used
        levels = p.levels
        n_floats, n_counts = 4 * sum(levels[:-1]) * p.width, sum(levels[1:]) * p.blocks  # the last one leaves nothing
        self.kept = _arrays.scratch(self.x, self.library, self.device, n_floats, n_counts)
        return Workspace(self.kept.floats, self.kept.counts)


_SUMS = Kind("float64", "float64", False, 1, 1, 1)


@lru_cache(maxsize=1024)
def _prepared_for(
    checked: Checked, view: View, belonging: Belonging, centred: bool, aligned: bool, multiprocessors: int, threads: int
) -> Prepared:
    return _prepared(view, _kind(checked, belonging=belonging, centred=centred), aligned, multiprocessors, threads)


def _kind(checked: Checked, **more: Any) -> Kind:
    """The kind for arrays, but for the form and the plan."""
    forms = checked.forms
    kind = Kind(forms["x"].storage, checked.parameters, False, 1, 1, 1)
    return kind._replace(relu=checked.relu, residual="residual" in forms, given="mean" in forms, **more)


@lru_cache(maxsize=1024)
def _pieces_for(
    checked: Checked, view: View, frozen: bool, skipping: bool, aligned: bool, whole: bool,
    multiprocessors: int, threads: int,
) -> Pieces:  # fmt: skip
    device = multiprocessors, threads
    kind = _kind(checked, frozen=frozen, skipping=skipping)
    narrow = _prepared(view, kind, aligned, *device)
    p = narrow.plan
    together = rows_together(p, STORAGE[kind.storage]) if aligned and not whole else 1
    if together == 1:
        return Pieces((Piece(0, 0, narrow),), 1)
    n_rows, n_left = divmod(p.outer, together)
    view = View((n_rows, together * p.width), 1, True, share=p.width)
    pieces = [Piece(0, 0, _prepared(view, kind._replace(belonging="repeated"), aligned, *device))]
    if n_left:
        # Planned for as many rows as there may be, so that kernels are not compiled for each number of them.
        left = _prepared(View((together - 1, p.width), 1, True), kind, aligned, *device)
        left = left._replace(plan=left.plan._replace(outer=n_left), walk=left.walk._replace(outer=n_left))
        pieces.append(Piece(n_rows * together * p.width * STORAGE[kind.storage], together, left))
    return Pieces(tuple(pieces), together + bool(n_left))


@lru_cache(maxsize=1024)
def _prepared(view: View, kind: Kind, aligned: bool, multiprocessors: int, threads: int) -> Prepared:
    share = view.share if kind.belonging == "rows" else 0
    about: dict[str, Any] = {"rows": view.rows, "share": share, "multiprocessors": multiprocessors, "threads": threads}
    p = plan(view.shape, view.axis, STORAGE[kind.storage], aligned=aligned, **about)
    if kind.skipping and not p.rows:  # one weight for all values of a vector
        p = plan(view.shape, view.axis, STORAGE[kind.storage], aligned=False, **about)
    kind = kind._replace(rows=p.rows, n=p.n, columns=p.columns, members=p.members)
    of_moments = kernels(kind._replace(relu=False, residual=False, belonging="columns"))
    walk = Walk(p.outer, p.channels, p.inner, *p.step, view.groups, view.share)
    return Prepared(p, walk, kernels(kind), of_moments)


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
