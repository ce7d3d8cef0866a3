"""The two forms: any array as a 4-D view (groups, outer, channels, inner), or one copy where no view exists.

This is the only place that reshapes or copies, and large results get their memory from here. Some axes are *kept*:
every position along them has statistics of its own. For batch normalization that is the channel axis. Axes are sorted
by their strides, and adjacent axes that are all kept, or all not, are joined to one. From the innermost outwards these
are `inner` (not kept), `channels` (kept), `outer` (not kept) and `groups` (kept). So NCHW, channels-last and Fortran
order all become a view.

=======  =========================================  ============================
form     view                                       arrays, channels kept
=======  =========================================  ============================
rows     ``inner == 1``, channels adjacent          (N, C), NHWC, channels-last
planes   contiguous along `inner`                   NCHW, NCL, F-ordered (N, C)
=======  =========================================  ============================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bncpu import _buffers

Array = NDArray[np.floating[Any]]
Scalar = TypeVar("Scalar", bound=np.generic)


class Layout(NamedTuple):
    """How an array becomes a 4-D view; other arrays of as many axes may become views in the same way.

    Attributes
    ----------
    order : tuple of int
        The axes, from outermost to innermost in memory.
    starts : tuple of three int
        Index in `order` of the first axis of outer, of channels and of inner.
    kept : tuple of int
        The axes whose positions have statistics of their own, ascending.
    in_order : tuple of int
        Where in `kept` its axes are, from outermost to innermost in memory.
    fits : bool
        Whether all axes before outer are kept. If kept and other axes alternate more often, there is no view.
    """

    order: tuple[int, ...]
    starts: tuple[int, int, int]
    kept: tuple[int, ...]
    in_order: tuple[int, ...]
    fits: bool

    def view(self, a: NDArray[Scalar], *, repeated: bool = False) -> NDArray[Scalar] | None:
        """`a` as (groups, outer, channels, inner) in one of the two forms, or None where that needs a copy.

        `repeated` is for what the channels of a row share: then their stride is 0.
        """
        if not self.fits:
            return None
        ordered = a.transpose(self.order)
        shape = ordered.shape
        outer, channels, inner = self.starts
        ends = (prod(shape[:outer]), prod(shape[outer:channels]), prod(shape[channels:inner]), prod(shape[inner:]))
        try:
            form = ordered.reshape(ends, copy=False)
        except ValueError:
            return None
        innermost = 3 if form.shape[3] > 1 else 2
        stride = form.strides[innermost]
        fits = form.size == 0 or form.shape[innermost] == 1
        fits = fits or stride == (0 if repeated and innermost == 2 else form.itemsize)
        return form if fits and form.flags.aligned else None

    def samples_apart(self) -> Layout:
        """The same, but each sample is a group, if samples are the outermost of the channels; else itself."""
        outer, channels, inner = self.starts
        if outer < channels or channels == inner or self.order[channels] != 0:
            return self
        return self._replace(starts=(channels + 1, channels + 1, inner))

    def all_apart(self) -> Layout:
        """The same, but each channel is a group, if nothing else is outside; else itself."""
        outer, channels, inner = self.starts
        return self if outer < channels else self._replace(starts=(inner, inner, inner))

    def form(self, a: Array) -> Array:
        """`view` of an array that is known to need no copy."""
        view = self.view(a)
        assert view is not None
        return view

    def flat(self, values: Iterable[Any], shape: tuple[int, ...]) -> list[NDArray[Any]]:
        """Values for the kept axes of an array of `shape`, or what broadcasts to them, in the order of its view."""
        sizes, order = tuple(map(shape.__getitem__, self.kept)), self.in_order
        full = [v if np.shape(v) == sizes else np.broadcast_to(v, sizes) for v in values]
        return [np.ascontiguousarray(v if len(sizes) == 1 else v.transpose(order)).reshape(-1) for v in full]

    def unflat(self, values: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> list[NDArray[Any]]:
        """Undo `flat`."""
        if len(self.kept) == 1:
            return list(values)
        sizes, back = [shape[self.kept[i]] for i in self.in_order], np.argsort(self.in_order)
        return [v.reshape(sizes).transpose(back) for v in values]

    def positions(self, weights: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Weights as an array (outer, inner), for a view of an array of `shape` with channels on axis 1.

        They are those of samples, or those of positions: of `shape` without its channels.
        """
        apart = weights.reshape(weights.shape[:1] + (1,) + (weights.shape[1:] or (1,) * (len(shape) - 2)))
        per_value = np.broadcast_to(apart, shape).transpose(self.order)
        inner = prod(per_value.shape[self.starts[2] :])
        return np.ascontiguousarray(per_value.take(0, self.order.index(1))).reshape(-1, inner)


def layout_of(x: Array, kept: Iterable[int]) -> Layout:
    """The layout that gives `x`, or a copy in its memory order, one of the two forms."""
    kept = tuple(sorted(kept))
    # Axes of length 1 have arbitrary strides; outermost they never separate two that belong together.
    sizes = enumerate(zip(x.shape, x.strides, strict=True))
    order = tuple(map(itemgetter(2), sorted([(n != 1, -abs(stride), axis) for axis, (n, stride) in sizes])))
    first = x.shape.count(1)
    at, starts = x.ndim, []
    for is_kept in (False, True, False):
        while at > first and (order[at - 1] in kept) == is_kept:
            at -= 1
        starts.append(at)
    fits = set(order[first : starts[2]]).issubset(kept)
    in_order = tuple(map(kept.index, filter(kept.__contains__, order)))
    layout = Layout(order, (starts[2], starts[1], starts[0]), kept, in_order, fits)
    if len(kept) < 2 and starts[0] == first and layout.view(x) is None:
        # One statistic for everything, not in one contiguous plane: take it as rows of one channel. (Not where two axes
        # are kept: there it is one statistic only if there is a single sample, and its bits must not depend on that.)
        layout = layout._replace(starts=(first, x.ndim, x.ndim))
    return layout


def channels_split(x: NDArray[Scalar], channel_axis: int, n_groups: int) -> NDArray[Scalar]:
    """`x` as (N, n_groups, channels of a group, ...), without a copy."""
    x = channels_second(x, channel_axis)
    return x.reshape((len(x), n_groups, x.shape[1] // n_groups if n_groups else 1, *x.shape[2:]), copy=False)


def channels_joined(y: Array, channel_axis: int) -> Array:
    """Undo `channels_split`."""
    return channels_back(y.reshape((len(y), y.shape[1] * y.shape[2], *y.shape[3:])), channel_axis)


def in_form(x: Array, kept: Iterable[int]) -> tuple[Array | None, Layout]:
    """`x` as a view, or None where that needs a copy; and the layout."""
    layout = layout_of(x, kept)
    return layout.view(x) if is_read(x.dtype) else None, layout


def columns(x: NDArray[Any]) -> NDArray[Any]:
    """The columns of a DataFrame's numbers as planes of one sample, (1, n_columns, n_rows)."""
    return (np.ascontiguousarray(x) if len(x) == 1 else x).T[None]


def canonical(x: Array, kept: Iterable[int]) -> tuple[Array, Layout]:
    """`x` as a view, copied first if it has none, and the layout used.

    The kernels compute in float32 and float64: float16 becomes float32, integers and booleans float64.
    """
    x, layout = ready(x, kept)
    return layout.form(x), layout


def ready(x: Array, *kept: Iterable[int]) -> tuple[Any, ...]:
    """`x`, or a copy of it, of a dtype and memory order that have a view for each of `kept`; and a layout for each."""
    orders: tuple[Literal["K", "C"], ...] = ("K", "C")
    for order in orders:
        layouts = [layout_of(x, some) for some in kept]
        if x.dtype == kernel_dtype(x.dtype) and _have_views(layouts, x):
            break
        x = converted(x, kernel_dtype(x.dtype), order)
    else:
        layouts = [layout_of(x, some) for some in kept]
    return x, *layouts


def _have_views(layouts: Iterable[Layout], a: Array) -> bool:
    return all(layout.view(a) is not None for layout in layouts)


def channels_second(x: NDArray[Scalar], channel_axis: int) -> NDArray[Scalar]:
    """`x` with its channels moved to axis 1. The first of the other axes, which holds the samples, becomes axis 0."""
    return x if channel_axis == 1 else np.moveaxis(x, channel_axis, 1)


def channels_back(y: Array, channel_axis: int) -> Array:
    """Undo `channels_second`."""
    return y if channel_axis == 1 else np.moveaxis(y, 1, channel_axis)


def settled(a: Array, order: Literal["C", "F"]) -> Array:
    """`a`, or a copy in `order`, in a memory order that it keeps when it is sent to another process.

    The last bits of statistics depend on the form, and the form on the memory order. `order` is what an array that is
    neither C- nor F-contiguous would get in the other process.
    """
    return a if a.flags.forc else np.array(a, order=order)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether this is bfloat16 of ml_dtypes, which NumPy knows by name only."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is one of NumPy's own floats. A float of another library may have the same kind, but other bits."""
    return dtype.kind == "f" and dtype.num < 256


def is_read(dtype: np.dtype[Any]) -> bool:
    """Whether the kernels of `moments` and `apply` read values of this dtype as they are."""
    number = dtype.num < 256 and (dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8))
    return (number and dtype.isnative) or is_bfloat16(dtype)


def kernel_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The native float32 or float64 in which data of this dtype is computed."""
    return np.dtype(np.float32 if (is_float(dtype) and dtype.itemsize <= 4) or is_bfloat16(dtype) else np.float64)


def result_dtype(dtype: np.dtype[Any], wanted: np.dtype[Any] | None = None) -> np.dtype[Any]:
    """The dtype of normalized data: `wanted`, or the same float in native byte order, else float64."""
    if wanted is not None:
        return wanted
    return dtype.newbyteorder("=") if is_float(dtype) or is_bfloat16(dtype) else np.dtype(np.float64)


def empty_in(layout: Layout, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array of `shape` in the memory order of `layout`. Large ones reuse the memory of earlier results."""
    if layout.order == tuple(range(len(shape))):
        return _buffers.empty(shape, dtype)
    ordered = _buffers.empty([shape[axis] for axis in layout.order], dtype)
    return ordered.transpose(np.argsort(layout.order))


def converted(a: Array, dtype: np.dtype[Any], order: Literal["K", "C"] = "K") -> Array:
    """A copy of `a` in `dtype`, in its own memory order or in C order."""
    fresh = _buffers.empty_like(a, dtype, order)
    fresh[...] = a
    return fresh


def like(layouts: Sequence[Layout], a: Array, x: Array) -> Array:
    """`a`, or a copy in the dtype of `x`, that has a view in all of `layouts`, which are those of `x`."""
    if a.dtype == x.dtype and _have_views(layouts, a):
        return a
    fresh = empty_in(layouts[0], a.shape, x.dtype)
    fresh[...] = a
    return fresh


def counted(
    where: NDArray[np.bool_], layouts: Sequence[Layout], x: Array
) -> tuple[NDArray[np.bool_], Sequence[Layout]] | None:
    """Which values of `x` count, in its shape; and layouts, in the first of which it has a view.

    `where` has as many axes as `x`, of its length or 1. What axes share is not copied, as far as the layout allows.
    None if channels of rows would have to share what they do not.
    """
    kept, order = layouts[0].kept, layouts[0].order
    shape = [1 if where.shape[axis] == 1 and axis in kept else n for axis, n in enumerate(x.shape)]
    apart = [layout.samples_apart() for layout in layouts]
    for copied in (False, True):
        mask = where
        if copied:
            mask = np.empty([shape[axis] for axis in order], np.bool_).transpose(np.argsort(order))
            mask[...] = where
        mask = np.broadcast_to(mask, x.shape)
        for some in (layouts, apart):
            if some[0].view(mask, repeated=True) is not None:
                return mask, some
    full = np.empty([x.shape[axis] for axis in order], np.bool_).transpose(np.argsort(order))
    full[...] = where
    for some in (layouts, [layouts[0].all_apart(), *layouts[1:]]):
        if some[0].view(full, repeated=True) is not None:
            return full, some
    return None


def n_counted(where: NDArray[np.bool_], shape: tuple[int, ...], kept: tuple[int, ...]) -> NDArray[np.int64]:
    """How many values of an array of `shape` count along the axes that are not `kept`; `where` as for `counted`."""
    others = [axis for axis in range(len(shape)) if axis not in kept]
    each = prod(shape[axis] for axis in others if where.shape[axis] == 1)
    own = prod(where.shape[axis] for axis in kept)
    rows = where.transpose([*kept, *others]).reshape(own, where.size // max(1, own))
    # A row at a time, or all along an axis: the faster one. np.count_nonzero along an axis is slower than both.
    long = rows.shape[1] > 4096
    n = list(map(np.count_nonzero, rows)) if long else np.add.reduce(rows, axis=1, dtype=np.uint32)
    counts = np.asarray(n, np.int64).reshape([where.shape[axis] for axis in kept]) * each
    return np.broadcast_to(counts, [shape[axis] for axis in kept])


def target(
    layouts: Sequence[Layout],
    out: Array | None,
    x: Array,
    *others: Array | None,
    dtype: np.dtype[Any] | None = None,
) -> Array:
    """`out`, if it has a view in all of `layouts` and can be written while `x` and `others` are read; else a new array.

    `dtype` is that of the result; by default that of `x`.
    """
    dtype = x.dtype if dtype is None else dtype
    if (
        out is not None
        and out.dtype == dtype
        and _have_views(layouts, out)
        and not any(a is not None and overlap(a, out) for a in (x, *others))
    ):
        return out
    return empty_in(layouts[0], x.shape, dtype)


def delivered(y: Array, out: Array | None, dtype: np.dtype[Any]) -> Array:
    """The result `y` in `out` if given, else in `dtype`. Values too large for float16 become infinity in silence."""
    with np.errstate(all="ignore"):
        if out is None:
            return y if y.dtype == dtype else converted(y, dtype)
        if y is not out:
            out[...] = y
        return out


def overlap(a: Array, b: Array) -> bool:
    """Whether writing one could change the other. False if both are exactly the same memory."""
    same = a.__array_interface__["data"] == b.__array_interface__["data"] and a.strides == b.strides
    return not same and np.may_share_memory(a, b)


def apart(a: Array) -> bool:
    """Whether every value has memory of its own, as far as the strides tell. False for a broadcast array."""
    if a.flags.forc or a.size == 0:
        return True
    end = a.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < end:
            return False
        end += stride * (n - 1)
    return True
