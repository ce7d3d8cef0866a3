"""Infinities, and what overflows: found where they are, and refused by row and column, or warned of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _kernels
from bncpu._batches import Batch
from bncpu._scalars import shown
from bncpu.moments import Moments


def finite_moments(t: Any, X: Batch | None, moments: Moments, names: Any, first_row: int | None = 0) -> None:
    """Refuse moments that are not finite, of the batch X or of all that was seen; say where the infinity is."""
    overflown = ~(np.isfinite(moments.m2 + moments.mean) & np.isfinite(moments.count))
    if not np.any(overflown):
        return
    if X is not None:
        infinity(t, X, names, first_row, certain=False)
    columns = some(np.flatnonzero(overflown) + getattr(t, "first_column", 0), names)
    raise ValueError(
        f"the variance of X overflows float64 in column(s) {columns}; scale the data, or sample_weight, first"
    )


def infinity(t: Any, X: Batch, names: Any, first_row: int | None = 0, *, certain: bool = True) -> None:
    """Refuse X for its infinities, naming rows and columns; if `certain`, even if they have been overwritten.

    `t` is a transformer, or the `Block` that X is; a `first_row` of None says that others may lie before it.
    """
    first, infinite = np.zeros(0, np.intp), np.zeros(X.shape[1], bool)
    for rows, columns in X.infinities():
        if len(first) <= 5:
            first = np.union1d(first, rows)[:6]
        infinite[columns] = True
    where = ""
    if len(first):
        words = ("row(s)", "column(s)") if t.channel_axis is None else ("sample(s)", "channel(s)")
        found = some(np.flatnonzero(infinite) + getattr(t, "first_column", 0), names)
        of_block = " of a block" if first_row is None else ""
        where = f": {words[0]} {some(first + (first_row or 0))}{of_block}, {words[1]} {found}"
    elif not certain:
        return
    raise ValueError(
        f"Input X contains infinity or a value too large for {X.dtype!r}{where}. "
        f"{getattr(t, 'estimator', type(t).__name__)} takes NaN as missing, but not infinity."
    )


def of_results(
    t: Any, X: Batch, y: Any, seen: int, names: Any, first_row: int | None = 0, *, warns: bool = True
) -> None:
    """Refuse X for its infinities, or else warn of the results `y` that are infinite, as `seen` says by `Batch.apply`.

    Nothing is looked at but where the pass met an infinity.
    """
    if not seen:
        return
    if seen & (_kernels.IN_X | _kernels.IN_Y):
        infinity(t, X, names, first_row, certain=bool(seen & _kernels.IN_X))
    infinite = np.zeros(X.shape[1], bool)
    for _, columns in X.like(y).infinities():
        infinite[columns] = True
    if warns and np.any(infinite):
        where = some(np.flatnonzero(infinite) + getattr(t, "first_column", 0), names)
        kind = "column(s)" if t.channel_axis is None else "channel(s)"
        warnings.warn(
            f"results overflow {y.dtype} in {kind} {where}, and are infinite there; a wider type may hold them: "
            "convert X first. In transform, clip= limits them, and eps= the scale of a feature that hardly varied",
            RuntimeWarning,
            stacklevel=4,
        )


def some(indices: NDArray[Any], names: Any = None) -> str:
    """The first five of some indices, with their names, as a message shows them."""
    first = (str(i) if names is None else f"{i} ({shown(names[i])})" for i in indices[:5])
    return ", ".join(first) + (", ..." if len(indices) > 5 else "")
