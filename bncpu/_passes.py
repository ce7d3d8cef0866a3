"""The arrays of a forward or backward pass: brought into one of the two forms, cut into parts, given to the kernels.

Statistics, sums and coefficients have the shape of the kept axes here, or one that broadcasts to it. Samples are on
axis 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bncpu import _layout, _normalize
from bncpu.moments import Coefficients, Gradient, Moments, changed
from bncpu.saved import SavedStatistics

Array = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
Activation = Literal["relu"] | None

# Values in a part, so that a second step finds in the cache what the first has written.
PART = 1 << 20


@dataclass
class Part:
    """Samples that a pass treats together, with a layout for each of its steps: statistics first, then parameters.

    Attributes
    ----------
    at : slice
        Which samples of the batch these are.
    layouts : sequence of Layout
        One for each step.
    x, result : ndarray
        The data, and y or dx.
    dy, residual, dresidual : ndarray or None
        The gradient of the result; the array added before the activation; and its gradient.
    counted : ndarray or None
        Which values count in the statistics: bool, of the shape of `x`. None: all count.
    relu, past_cache : bool
        Whether ReLU is applied, and whether the result is stored past the cache.
    n_threads : int or None
    """

    at: slice
    layouts: Sequence[_layout.Layout]
    x: Array
    result: Array
    dy: Array | None
    residual: Array | None
    dresidual: Array | None
    counted: NDArray[np.bool_] | None
    relu: bool
    past_cache: bool
    n_threads: int | None

    def _flat(self, values: Any, step: int) -> Any:
        """An array, a tuple of them or None, along the kept axes of a step, as the kernels want it."""
        if values is None:
            return None
        if isinstance(values, tuple):
            return type(values)(*self.layouts[step].flat(values, self.x.shape))
        return self.layouts[step].flat((values,), self.x.shape)[0]

    def _unflat(self, values: Any, step: int) -> Any:
        return self.layouts[step].unflat(values, self.x.shape)

    def _forms(self, step: int, *arrays: Array | None) -> list[Any]:
        """The arrays in the form of a step; None stays None."""
        view = self.layouts[step].view
        return [None if a is None else view(a) for a in arrays]

    def _counted(self, layout: _layout.Layout) -> NDArray[np.bool_] | None:
        return None if self.counted is None else layout.view(self.counted, repeated=True)

    def share(self, saved: SavedStatistics) -> SavedStatistics:
        """The statistics of the samples of this part, of those of all samples."""
        return changed(saved, self.own)

    def own(self, values: Any) -> Any:
        """What belongs to the samples of this part, of an array with a value for each sample; a number stays."""
        return values[self.at] if np.ndim(values) else values

    def moments(self, layout: _layout.Layout | None = None) -> Moments:
        """Moments along the kept axes of the first step, or of `layout`, in which `x` must have a view."""
        layout = layout or self.layouts[0]
        x4, counted = layout.form(self.x), self._counted(layout)
        found, _ = _normalize.moments(x4, None, skip_missing=False, n_threads=self.n_threads, counted=counted)
        return Moments(*layout.unflat(found, self.x.shape))

    def forward(self, gamma: Float64 | None, beta: Float64 | None, eps: float) -> tuple[Moments, SavedStatistics]:
        """Normalize with the moments along the kept axes of the first step; they and their statistics are returned."""
        x, y, z = self._forms(0, self.x, self.result, self.residual)
        gamma, beta = self._flat(gamma, 0), self._flat(beta, 0)
        moments, saved = _normalize.forward(
            x,
            y,
            gamma,
            beta,
            eps,
            residual=z,
            relu=self.relu,
            n_threads=self.n_threads,
            counted=self._counted(self.layouts[0]),
        )
        return Moments(*self._unflat(moments, 0)), changed(saved, lambda a: self._unflat((a,), 0)[0])

    def is_short(self) -> bool:
        """Whether `normalize` takes the first step: there are few values along its kept axes, and all count."""
        return self.counted is None and _normalize.is_short(self.layouts[0].form(self.x))

    def has_parameters_along(self) -> bool:
        """Whether gamma and beta have a value for each that shares a statistic: in layer norm, not in groups."""
        statistics, parameters = [layout.form(self.x).shape for layout in self.layouts]
        return bool(parameters[2] == statistics[3])

    def normalize(
        self, eps: float, statistics: Any, affine: Coefficients | None, *, keep: bool, y: Array | None = None
    ) -> Moments:
        """Both steps of short parts, without residual and activation; their moments, if they are to be kept."""
        x4, y4 = self._forms(0, self.x, self.result if y is None else y)
        affine, past_cache = self._flat(affine, 1), self.past_cache and y is None
        found = _normalize.normalize(
            x4, y4, eps, statistics, affine, keep=keep, past_cache=past_cache, n_threads=self.n_threads
        )
        return Moments(*self._unflat(found, 0)) if keep else found

    def apply(
        self, c: Coefficients, *, step: int = 0, last: bool = True, x: Array | None = None, y: Array | None = None
    ) -> int:
        """Write ``(x - mean) * scale + shift`` to the result; in the last step with residual and activation.

        Returns what infinities were met, as `_normalize.apply` does.
        """
        x4, y4, z4 = self._forms(
            step, self.x if x is None else x, self.result if y is None else y, self.residual if last else None
        )
        relu, past_cache = self.relu and last, self.past_cache and y is None
        how: dict[str, Any] = {"relu": relu, "past_cache": past_cache, "both": False, "n_threads": self.n_threads}
        return _normalize.apply(x4, y4, self._flat(c, step), residual=z4, **how)

    def in_float64(self) -> Part:
        """The same part, its arrays copied, with a result of its own."""
        x, residual = (
            None if a is None else _layout.converted(a, np.dtype(np.float64)) for a in (self.x, self.residual)
        )
        assert x is not None
        return replace(self, x=x, residual=residual, result=np.empty_like(x), past_cache=False)

    def sums(
        self,
        center: Float64 | float,
        relu: Coefficients | None,
        *,
        step: int = 0,
        x: Array | None = None,
        dy: Array | None = None,
    ) -> tuple[Float64, Float64]:
        """Sums of g and of ``g * (x - center)`` along the kept axes; g is what ReLU, if any, lets through of dy."""
        dy4, x4, z4 = self._forms(
            step, self.dy if dy is None else dy, self.x if x is None else x, None if relu is None else self.residual
        )
        about, relu = self._flat(center, step), self._flat(relu, step)
        sums = _normalize.backward_sums(dy4, x4, about, relu=relu, residual=z4, n_threads=self.n_threads)
        return tuple(self._unflat(sums, step))

    def both_backward(
        self, saved: SavedStatistics, gamma: Float64 | None, relu: Coefficients | None, counts: Float64 | None = None
    ) -> tuple[Float64, Float64]:
        """Gradient of `forward`; sums of g and of ``g * x_hat`` along the kept axes of the first step are returned.

        `counts` is how many values share each statistic, if not all count.
        """
        z, dz = (None, None) if relu is None else (self.residual, self.dresidual)
        dy4, x4, dx4, z4, dz4 = self._forms(0, self.dy, self.x, self.result, z, dz)
        sums = _normalize.backward(
            dy4,
            x4,
            dx4,
            changed(saved, lambda a: self._flat(a, 0)),
            self._flat(gamma, 0),
            relu=self._flat(relu, 0),
            residual=z4,
            dresidual=dz4,
            n_threads=self.n_threads,
            counted=self._counted(self.layouts[0]),
            counts=self._flat(counts, 0),
        )
        return tuple(self._unflat(sums, 0))

    def backward(
        self,
        k: Gradient,
        relu: Coefficients | None,
        *,
        step: int = 0,
        x: Array | None = None,
        dy: Array | None = None,
        dx: Array | None = None,
    ) -> None:
        """Write ``dy_scale * g + x_scale * (x - mean) + offset`` to the result; with `relu`, g to `dresidual`."""
        z, dz = (None, None) if relu is None else (self.residual, self.dresidual)
        dy4, x4, dx4, z4, dz4 = self._forms(
            step, self.dy if dy is None else dy, self.x if x is None else x, self.result if dx is None else dx, z, dz
        )
        _normalize.backward_apply(
            dy4,
            x4,
            dx4,
            self._flat(k, step),
            relu=self._flat(relu, step),
            residual=z4,
            dresidual=dz4,
            past_cache=self.past_cache and dx is None,
            n_threads=self.n_threads,
            counted=None if step else self._counted(self.layouts[0]),
        )

    def overwrites(self) -> bool:
        """Whether the result lies in the memory of what is read."""
        return any(a is not None and np.may_share_memory(a, self.result) for a in (self.x, self.dy, self.residual))

    def cleaned(self, *sums: Float64) -> bool:
        """Whether sums are to be made again: x may be NaN where it does not count and has no gradient, and is now 0."""
        if self.counted is None or self.dy is None or all(np.isfinite(some).all() for some in sums):
            return False
        counts, x = self.counted | (self.dy != 0), self.x
        self.x = _layout.empty_in(self.layouts[0], x.shape, x.dtype)
        self.x[...] = np.where(counts, x, x.dtype.type(0))
        return True


class Pass:
    """The arrays of a call, all of a dtype and memory order that have a view for each of `kept`.

    Parameters
    ----------
    x : ndarray
        Checked, like everything else.
    kept : tuple of tuple of int
        The axes whose positions have statistics of their own; then, if they differ, those for gamma and beta.
    dy, residual, out : ndarray of the shape and dtype of `x`, or None
    relu : bool
    n_threads : int or None
    read_only : bool
        Sums only: there will be no result.
    where : ndarray of bool, or None
        Which values count in the statistics; of as many axes as `x`, of its length or 1.
    """

    def __init__(
        self,
        x: Array,
        kept: tuple[tuple[int, ...], ...],
        *,
        dy: Array | None = None,
        residual: Array | None = None,
        out: Array | None = None,
        relu: bool = False,
        n_threads: int | None = None,
        read_only: bool = False,
        where: NDArray[np.bool_] | None = None,
    ) -> None:
        # Without ReLU the gradient of the residual is dy itself, copied as `out` may overwrite it. The other gradients
        # do not need the residual.
        self._copy_of_dy, self._dtype = None, _layout.result_dtype(x.dtype)
        if dy is not None and residual is not None and not relu:
            self._copy_of_dy, residual = None if read_only else np.array(dy, dtype=self._dtype, order="K"), None
        self._out = out
        x, *found = _layout.ready(x, *kept)
        layouts: Sequence[_layout.Layout] = found
        dy = None if dy is None else _layout.like(layouts, dy, x)
        residual = None if residual is None else _layout.like(layouts, residual, x)
        counted = None
        self._order: _layout.Layout | None = None  # the memory order of the results, if x was copied in another
        if where is not None:
            counted, layouts, x, dy, residual = self._with_counted(where, layouts, kept, x, dy, residual)
        result = x if read_only else _layout.target(layouts, out, x, dy, residual)
        past_cache = _normalize.goes_past_cache(result, x, dy, residual)
        self.whole = Part(slice(None), layouts, x, result, dy, residual, None, counted, relu, past_cache, n_threads)
        if dy is not None and residual is not None and not read_only:
            self.whole.dresidual = _layout.empty_in(layouts[0], x.shape, x.dtype)

    def _with_counted(
        self, where: NDArray[np.bool_], layouts: Sequence[_layout.Layout], kept: Any, *arrays: Array | None
    ) -> tuple[Any, ...]:
        """What counts, layouts and arrays in which it has a view, if need be copies in C order."""
        x = arrays[0]
        assert x is not None
        if self._out is not None and np.may_share_memory(where, self._out):
            where = where.copy()
        found = _layout.counted(where, layouts, x)
        if found is None:
            self._order = layouts[0]
            x, *others = (None if a is None else np.ascontiguousarray(a) for a in arrays)
            assert x is not None
            arrays = x, *others
            found = _layout.counted(where, [_layout.layout_of(x, axes) for axes in kept], x)
            assert found is not None
        return *found, *arrays

    def parts(self, values: int | None = None) -> Iterator[Part]:
        """Parts of about so many values, at least a sample each; one part if samples are not adjacent in memory."""
        whole = self.whole
        shape, order = whole.x.shape, whole.layouts[0].order
        ones = shape.count(1)  # outermost, whatever their strides
        outermost = order[ones] if ones < len(order) else 0
        step = max(1, (values or PART) * shape[0] // max(1, whole.x.size))
        if step >= shape[0] or outermost or 0 not in whole.layouts[0].kept:
            yield whole
            return
        for start in range(0, shape[0], step):
            at = slice(start, start + step)
            x, result = whole.x[at], whole.result[at]
            dy, z, dz = (None if a is None else a[at] for a in (whole.dy, whole.residual, whole.dresidual))
            counted = None if whole.counted is None else whole.counted[at]
            yield replace(whole, at=at, x=x, result=result, dy=dy, residual=z, dresidual=dz, counted=counted)

    def scratch(self, n: int, values: int | None = None) -> Iterator[Sequence[Array]]:
        """For each of `parts`, `n` arrays like its `x`. All parts share the same memory, which stays in the cache."""
        arrays: list[Array] = []
        for part in self.parts(values):
            layout, x = part.layouts[0], part.x
            arrays = arrays or [_layout.empty_in(layout, x.shape, x.dtype) for _ in range(n)]
            yield arrays if len(x) == len(arrays[0]) else [a[: len(x)] for a in arrays]

    def result(self) -> Array:
        """The result, in `out` if given, else in the dtype and memory order of the call's `x`, in native byte order."""
        return self._delivered(self.whole.result, self._out)

    def _delivered(self, y: Array, out: Array | None) -> Array:
        if out is None and self._order is not None:
            out = _layout.empty_in(self._order, y.shape, self._dtype)
        return _layout.delivered(y, out, self._dtype)

    def dresidual(self) -> tuple[Array, ...]:
        """The gradient of the residual, if there was one."""
        if self._copy_of_dy is not None:
            return (self._copy_of_dy,)
        dz = self.whole.dresidual
        return () if dz is None else (self._delivered(dz, None),)


def joined(parts: list[Moments]) -> Moments:
    """Moments of all samples from those of the parts."""
    return parts[0] if len(parts) == 1 else Moments(*map(np.concatenate, zip(*parts, strict=True)))
