"""The two forms: any array as a 3-D view (outer, channels, inner), or one copy where no view exists.

This is the only place that reshapes or copies. Axes are taken in the order of their strides, so NCHW,
channels-last and Fortran order all become a view: what lies outside the channels in memory is `outer`,
what lies inside is `inner`.

=======  =========================================  ============================
form     view                                       arrays
=======  =========================================  ============================
rows     ``inner == 1``, channels adjacent          (N, C), NHWC, channels-last
planes   contiguous along `inner`                   NCHW, NCL, F-ordered (N, C)
=======  =========================================  ============================
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


class Layout(NamedTuple):
    """How an array becomes a 3-D view: its axes from outermost to innermost in memory, and the channels."""

    order: tuple[int, ...]
    channel_position: int

    def view(self, a: Array) -> Array | None:
        """`a` as (outer, channels, inner) in one of the two forms, or None where that needs a copy."""
        ordered = a.transpose(self.order)
        shape = ordered.shape
        at = self.channel_position
        try:
            form = ordered.reshape((prod(shape[:at]), shape[at], prod(shape[at + 1 :])), copy=False)
        except ValueError:
            return None
        innermost = 2 if form.shape[2] > 1 else 1
        fits = form.size == 0 or form.shape[innermost] == 1 or form.strides[innermost] == form.itemsize
        return form if fits and form.flags.aligned else None

    def positions(self, weights: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """One weight per sample as one per (outer, inner) position of a view of an array of `shape`."""
        per_value = np.broadcast_to(weights.reshape((-1,) + (1,) * (len(shape) - 1)), shape).transpose(self.order)
        inner = prod(per_value.shape[self.channel_position + 1 :])
        return np.ascontiguousarray(per_value.take(0, self.channel_position)).reshape(-1, inner)


def layout_of(x: Array, channel_axis: int) -> Layout:
    """The layout in which `x`, or a copy that keeps its memory order, has one of the two forms."""
    channel_axis %= x.ndim
    # Axes of length 1 have arbitrary strides; outermost they never separate two that belong together.
    order = sorted(range(x.ndim), key=lambda axis: (x.shape[axis] > 1, -abs(x.strides[axis])))
    if x.shape[channel_axis] <= 1:
        # One channel: everything else is its plane, or its rows if that is not contiguous.
        order.remove(channel_axis)
        planes = Layout((channel_axis, *order), 0)
        return planes if planes.view(x) is not None else Layout((*order, channel_axis), x.ndim - 1)
    return Layout(tuple(order), order.index(channel_axis))


def canonical(x: Array, channel_axis: int) -> tuple[Array, Layout]:
    """`x` as a view (outer, channels, inner), copied first if there is none, and the layout used.

    float16 becomes float32, integers and booleans float64: the kernels compute in those two.
    """
    view, layout = in_form(x, channel_axis)
    if view is None:
        x = x.astype(kernel_dtype(x.dtype), order="K", copy=True)
        layout = layout_of(x, channel_axis)
        view = layout.view(x)
    assert view is not None
    return view, layout


def channels_second(x: Array, channel_axis: int) -> Array:
    """`x` with its channels on axis 1; the first other axis, the samples, is axis 0 then."""
    return np.moveaxis(x, channel_axis, 1)


def channels_back(y: Array, channel_axis: int) -> Array:
    """Undo `channels_second`."""
    return np.moveaxis(y, 1, channel_axis)


def in_form(x: Array, channel_axis: int) -> tuple[Array | None, Layout]:
    """As `canonical`, with None for the view where that needs a copy."""
    layout = layout_of(x, channel_axis)
    return layout.view(x) if x.dtype == kernel_dtype(x.dtype) else None, layout


def kernel_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The native float32 or float64 in which data of this dtype is computed."""
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of normalized data: the same float in native byte order, float64 for integers and booleans."""
    return dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype(np.float64)


def empty_in(layout: Layout, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """A fresh array of `shape` in the memory order of `layout`, and its view."""
    ordered = np.empty([shape[axis] for axis in layout.order], dtype=dtype)
    fresh = ordered.transpose(np.argsort(layout.order))
    view = layout.view(fresh)
    assert view is not None
    return fresh, view


def target(layout: Layout, out: Array | None, shape: tuple[int, ...], *inputs: Array) -> tuple[Array, Array]:
    """`out` and its view, where they can be written while the 3-D `inputs` are read; else a fresh array."""
    if out is not None and out.dtype == inputs[0].dtype:
        view = layout.view(out)
        if view is not None and not any(overlap(a, view) for a in inputs):
            return out, view
    return empty_in(layout, shape, inputs[0].dtype)


def delivered(y: Array, out: Array | None, dtype: np.dtype[Any]) -> Array:
    """The result in `out` if given, else in `dtype`; float16 overflows to infinity, as float32 does."""
    with np.errstate(over="ignore"):
        if out is None:
            return y if y.dtype == dtype else y.astype(dtype)
        if y is not out:
            out[...] = y
        return out


def overlap(a: Array, b: Array) -> bool:
    """Whether writing one could change the other, exactly the same memory apart."""
    same = a.__array_interface__["data"] == b.__array_interface__["data"] and a.strides == b.strides
    return not same and np.may_share_memory(a, b)
