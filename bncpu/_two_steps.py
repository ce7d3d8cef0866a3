"""Normalization in two steps, where statistics belong to other axes than parameters, as in layer norm.

The first step writes normalized values, of some samples at a time so that they stay in the cache; the second applies
the parameters to them there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bncpu._passes import Pass, joined
from bncpu.moments import (
    Coefficients,
    Gradient,
    Moments,
    fold_backward,
    fold_saved,
    rounded,
    sums_with_x_hat,
)
from bncpu.saved import SavedStatistics

Float64 = NDArray[np.float64]
Statistics = Callable[[Moments, float], SavedStatistics]

_ZERO, _ONE = np.zeros(()), np.ones(())


def forward_in_two_steps(
    arrays: Pass,
    scale: Float64 | None,
    shift: Float64 | None,
    eps: float,
    statistics: Statistics,
    *,
    keep: bool = True,
) -> Moments:
    """Normalize by `statistics` of the moments along the axes of the first step, then scale and shift.

    The moments are returned, empty ones if they are not to be kept.
    """
    moments, affine = [], scale is not None or shift is not None
    short = arrays.whole.is_short()
    if short and arrays.whole.residual is None and not arrays.whole.relu:
        c, fits = rounded(_affine(scale, shift), arrays.whole.x.dtype) if affine else (None, None)
        if not affine or (fits is None and arrays.whole.has_parameters_along()):
            return arrays.whole.normalize(eps, statistics, c, keep=keep)
    for part, (x_hat,) in zip(arrays.parts(), arrays.scratch(1), strict=True):
        if short:
            moments.append(part.normalize(eps, statistics, None, keep=keep, y=x_hat))
            part.apply(_affine(scale, shift), step=1, x=x_hat)
            continue
        moments.append(part.moments())
        normalizing = fold_saved(statistics(moments[-1], eps))
        if affine:
            met = part.apply(normalizing, last=False, y=x_hat)
            if met and part.counted is not None and x_hat.dtype != np.float64:
                # Of a value that does not count x_hat may have overflown where the result does not.
                wide = part.in_float64()
                x_hat = np.empty_like(wide.x)
                wide.apply(normalizing, last=False, y=x_hat)
                wide.apply(_affine(scale, shift), step=1, x=x_hat)
                with np.errstate(over="ignore"):
                    part.result[...] = wide.result
                continue
            part.apply(_affine(scale, shift), step=1, x=x_hat)
        else:
            part.apply(normalizing)
    return joined(moments)


def backward_in_two_steps(
    arrays: Pass,
    saved: SavedStatistics,
    scale: Float64 | None,
    shift: Float64 | None,
    shape: tuple[int, ...],
    count: Float64 | int,
) -> Float64:
    """Gradients of x, which go to the result, and of scale and shift, which are returned.

    `shape` is that of scale and shift, `count` the number of values that each statistic is of.
    """
    gradients = np.zeros((2, *shape))
    for part, (x_hat, g) in zip(arrays.parts(), arrays.scratch(2), strict=True):
        some = part.share(saved)
        mean = np.zeros_like(some.invstd) if some.mean is None else some.mean
        # The forward pass's first step again; its second decides what ReLU lets through.
        part.apply(fold_saved(some), last=False, y=x_hat)
        relu = _affine(scale, shift) if part.relu else None
        total, product = part.sums(0.0, relu, step=1, x=x_hat)
        if part.cleaned(total, product):
            part.apply(fold_saved(some), last=False, y=x_hat)
            total, product = part.sums(0.0, relu, step=1, x=x_hat)
        with np.errstate(all="ignore"):
            gradients += product, total
        if part.counted is not None and not np.isfinite(product).all():
            # Of a value that does not count x_hat may have overflown, and 0 times infinity is no number.
            most = np.finfo(x_hat.dtype).max
            np.clip(x_hat, -most, most, out=x_hat)
        part.backward(Gradient(_ZERO, _ONE if scale is None else scale, _ZERO, _ZERO), relu, step=1, x=x_hat, dx=g)
        total, product = part.sums(mean, None, dy=g)
        along = sums_with_x_hat(total, product, some)
        sums = (np.zeros_like(total) if some.mean is None else total, along)
        part.backward(fold_backward(mean, some.invstd, None, sums, part.own(count), some.mean_lo), None, dy=g)
    return gradients


def _affine(scale: Float64 | None, shift: Float64 | None) -> Coefficients:
    return Coefficients(_ZERO, _ONE if scale is None else scale, _ZERO if shift is None else shift)
