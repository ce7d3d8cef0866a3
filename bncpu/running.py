"""Kinds of running statistics: how what a batch teaches joins what was known, and what is forgotten.

One class for each kind. The transformer, the report and the files ask the kind, not its parameters. A new kind is a
class here, a line in `kind_of`, and a parameter, whose places CONTRIBUTING.md lists.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bncpu import _kernels, moments
from bncpu._batches import Batch, Dense, Summary
from bncpu._infinities import some
from bncpu.moments import Moments

Float64 = NDArray[np.float64]

# A window is cut into about so many pieces, of so many rows at least.
PIECES, PIECE_ROWS = 256, 64


class Running(NamedTuple):
    """Running statistics of each feature: what one kind of them carries from batch to batch. Never changed in place.

    Attributes
    ----------
    values : ndarray of shape (5, n_features), float64
        Count, mean, mean_lo and m2 (`bncpu.moments.Moments`); rows, or nanoseconds, since a feature's last value,
        counted with a half-life only.
    recent : Recent or None
        The rows of a window.
    last : int or None
        When the last row came, in nanoseconds since 1970, if its half-life is a time.
    """

    values: Float64
    recent: Recent | None = None
    last: int | None = None

    @classmethod
    def of(cls, found: Moments, age: Float64 | None = None, recent: Recent | None = None) -> Running:
        """Moments, and what belongs to them, as one."""
        return cls(np.stack([*found, np.zeros_like(found.count) if age is None else age]), recent)

    @classmethod
    def of_rows(cls, recent: Recent) -> Running:
        """Of the rows of a window."""
        return cls.of(recent.moments(), None, recent)

    @classmethod
    def empty(cls, n_features: int) -> Running:
        """Nothing learned yet."""
        return cls(np.zeros((5, n_features)))

    def of_features(self, which: NDArray[np.intp]) -> Running:
        """Of some features, in the order of their indices."""
        if self.recent is not None:
            return Running.of_rows(self.recent.of_features(which))
        return Running(np.take(self.values, which, axis=1), last=self.last)

    @classmethod
    def beside(cls, parts: Sequence[Running]) -> Running:
        """Of the features of the first, then of the second, and so on; all of one kind."""
        recent = [part.recent for part in parts if part.recent is not None]
        if recent:
            return cls.of_rows(Recent.beside(recent))
        last = max((part.last for part in parts if part.last is not None), default=None)
        values = np.concatenate([part.values for part in parts], axis=1)
        if last is not None:  # ages are from there on
            values[4] += np.repeat(
                [last - (part.last or 0) for part in parts], [part.values.shape[1] for part in parts]
            )
        return cls(values, last=last)

    @property
    def moments(self) -> Moments:
        """Count, mean, mean_lo and m2."""
        return Moments(*self.values[:4])

    @property
    def age(self) -> Float64:
        """Rows, or nanoseconds, since the last value of each feature."""
        return self.values[4]


@dataclass(frozen=True)
class Kind:
    """Base class: the answers of cumulative statistics, but for `merges` and `short`."""

    name: ClassVar[str] = ""
    # Whether two streams can be merged: the order of their batches must not matter.
    merges: ClassVar[bool] = False
    # Whether rows are kept, which X must then have in memory.
    keeps_rows: ClassVar[bool] = False
    # Whether rows have times, by which they age.
    has_times: ClassVar[bool] = False
    # Whether `ddof` has been applied to each batch before its variance was averaged.
    averages_batches: ClassVar[bool] = False
    # Momentum and half-life for `_kernels.update_plain`; None if that does not know the kind. Not a property: calls of
    # a few microseconds ask for it.
    short: ClassVar[tuple[float | None, float | None] | None] = None

    @property
    def recency(self) -> float | None:
        """Rows, or nanoseconds, after which a row of a batch counts half; None if all count alike."""
        return None

    @property
    def of_one_batch(self) -> Kind:
        """What `fit` learns one batch as, whose rows have no order."""
        return self

    def fewest_values(self, ddof: float) -> int:
        """Values of a feature that a batch needs."""
        return 0

    def check(self, t: Any, batch: Summary, single_row: bool) -> None:
        """Refuse a batch that teaches too little. `t` is the transformer, for its parameters."""

    def seen(self, batch: Summary) -> Float64:
        """Values of each feature in a batch, or their weight."""
        return batch.moments.count

    def update(self, known: Running, batch: Summary, ddof: float, X: Batch, weights: Float64 | None) -> Running:
        """What is known after a batch `X`, of which `batch` says what it teaches."""
        return Running.of(moments.merge(known.moments, batch.moments), known.age)

    def start(self, mean: Float64, var: Float64, count: Float64, ddof: float) -> Moments:
        """Statistics known from elsewhere: variances with the divisor ``count - ddof``."""
        with np.errstate(over="ignore"):
            return Moments(count, mean, np.zeros_like(mean), var * np.maximum(count - ddof, 0))

    def effective_n(self, seen: Float64, weight: Float64, n_batches: int) -> Float64:
        """How many values of equal weight have a mean as uncertain as the running mean: ``sum(w)**2 / sum(w**2)`` [1]_.

        Parameters
        ----------
        seen : ndarray of shape (n_features,)
            Values seen. All are taken to have weight 1, and all batches to be equally large.
        weight : ndarray of shape (n_features,)
            What they weigh now.
        n_batches : int

        References
        ----------
        .. [1] Kish (1965), "Survey Sampling", section 8.2.
        """
        return seen


class Cumulative(Kind):
    """Exact statistics of everything seen, whatever the batches and their order."""

    name = "cumulative"
    merges = True
    short = (None, None)


class Layer(Kind):
    """Statistics of a network's layer, which does not tell of how many samples they are: for inference only."""

    name = "inference"


@dataclass(frozen=True)
class Halflife(Kind):
    """Recent rows count more: the weight of a row halves every `halflife` rows."""

    name: ClassVar[str] = "halflife"
    halflife: float

    @property
    def recency(self) -> float | None:
        """See `Kind`."""
        return self.halflife

    @property
    def of_one_batch(self) -> Kind:
        """`fit` weighs all rows of its one batch alike."""
        return Cumulative()

    def __post_init__(self) -> None:
        object.__setattr__(self, "short", (None, self.halflife))

    def seen(self, batch: Summary) -> Float64:
        """See `Kind`; recency is no weight of a value."""
        return batch.observed

    def update(self, known: Running, batch: Summary, ddof: float, X: Batch, weights: Float64 | None) -> Running:
        """See `moments.update_halflife`."""
        rows = batch.moments, batch.span, self.halflife, batch.age
        return Running.of(*moments.update_halflife(known.moments, known.age, *rows))

    def effective_n(self, seen: Float64, weight: Float64, n_batches: int) -> Float64:
        """See `Kind`: a geometric series over that of the squares."""
        decay = 0.5 ** (1 / self.halflife)
        # A weight above 1 / (1 - decay), the limit of the series, can only come from `fit`, where all rows weigh alike.
        return np.where(weight * (1 - decay) > 1, weight, weight * (1 + decay) / (1 + decay**seen))


@dataclass(frozen=True)
class TimedHalflife(Halflife):
    """As `Halflife`, but rows age by the time that passes: `halflife` is in nanoseconds."""

    name: ClassVar[str] = "timed halflife"
    has_times: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """No short way: that counts rows."""

    def effective_n(self, seen: Float64, weight: Float64, n_batches: int) -> Float64:
        """See `Kind`: as if the values had come at equal intervals, each of weight `left` of the next."""
        left, step = np.zeros_like(weight), 0.5
        while step > 2.0**-50:  # the geometric series grows with `left`
            more = left + step
            left, step = np.where((1 - more**seen) <= weight * (1 - more), more, left), step / 2
        return np.where(weight >= seen, seen, weight * (1 + left) / (1 + left**seen))


@dataclass(frozen=True)
class Momentum(Kind):
    """The textbook's exponential average over batches: `momentum` is the weight of the old value."""

    name: ClassVar[str] = "momentum"
    averages_batches: ClassVar[bool] = True
    momentum: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "short", (self.momentum, None))

    def fewest_values(self, ddof: float) -> int:
        """See `Kind`: a batch needs a variance."""
        return max(2, int(ddof) + 1)

    def check(self, t: Any, batch: Summary, single_row: bool) -> None:
        """Refuse a batch with one value of a feature, or a weight not above ddof; a feature may be missing in it."""
        single = np.flatnonzero(batch.observed == 1)
        if single_row or len(single):
            where = "n_samples=1" if single_row else f"one value in column(s) {some(single)}"
            raise ValueError(
                f"with momentum a batch needs at least two values per feature, got {where}; halflife accepts single "
                "rows"
            )
        count = batch.moments.count
        short = np.flatnonzero((count > 0) & moments.too_small(count, t.ddof))
        if len(short):
            raise ValueError(
                f"with momentum a batch needs more than ddof={t.ddof} values, or total sample_weight, per feature; "
                f"got {count[short[0]]:g} in column(s) {some(short)}"
            )

    def update(self, known: Running, batch: Summary, ddof: float, X: Batch, weights: Float64 | None) -> Running:
        """See `moments.update_momentum`."""
        average = moments.update_momentum(known.moments, batch.moments, self.momentum, ddof)
        return Running.of(average, known.age)

    def start(self, mean: Float64, var: Float64, count: Float64, ddof: float) -> Moments:
        """m2 is weight times variance, with ddof applied already. The weight is 1, the limit of ``1 - momentum**k``."""
        weight = (count > 0).astype(np.float64)
        return Moments(weight, mean, np.zeros_like(mean), var * weight)

    def effective_n(self, seen: Float64, weight: Float64, n_batches: int) -> Float64:
        """See `Kind`: a geometric series over that of the squares."""
        left = self.momentum**n_batches
        return seen / n_batches * (1 + self.momentum) / (1 - self.momentum) * (1 - left) / (1 + left)


@dataclass(frozen=True)
class Window(Kind):
    """Exact statistics of the last `window` rows; `fit`, too, takes its rows in their order."""

    name: ClassVar[str] = "window"
    keeps_rows: ClassVar[bool] = True
    window: int

    def update(self, known: Running, batch: Summary, ddof: float, X: Batch, weights: Float64 | None) -> Running:
        """The rows of the batch come in, the oldest ones leave; nothing is subtracted."""
        recent = (known.recent or Recent()).pushed(X, weights, self.window)
        return Running.of_rows(recent)

    def start(self, mean: Float64, var: Float64, count: Float64, ddof: float) -> Moments:
        """Statistics alone have no rows, which a window needs."""
        raise ValueError("from_statistics cannot make a window, which needs the rows themselves; leave window= out")

    def effective_n(self, seen: Float64, weight: Float64, n_batches: int) -> Float64:
        """See `Kind`: all values of the window count alike."""
        return weight


class Piece(NamedTuple):
    """Some rows that follow each other, and their moments."""

    rows: NDArray[Any]
    weights: Float64 | None
    moments: Moments

    @classmethod
    def of(cls, rows: NDArray[Any], weights: Float64 | None) -> Piece:
        """With the moments of the rows. Both are copied if they are part of other arrays, which would live on."""
        rows = rows if rows.base is None else rows.copy()
        weights = weights if weights is None or weights.base is None else weights.copy()
        short = _kernels.update_plain(rows, None, weights, 1, np.zeros((5, rows.shape[1])), None, None, 0.0)
        return cls(rows, weights, Dense(rows).moments(weights, 1)[0] if short is None else Moments(*short[1]))

    def followed_by(self, rows: NDArray[Any], weights: Float64 | None) -> Piece:
        """With more rows."""
        if self.weights is None and weights is None:
            return Piece.of(np.concatenate([self.rows, rows]), None)
        each = [np.ones(len(r)) if w is None else w for r, w in ((self.rows, self.weights), (rows, weights))]
        return Piece.of(np.concatenate([self.rows, rows]), np.concatenate(each))

    def without(self, n_rows: int) -> Piece:
        """Without its first rows."""
        return Piece.of(self.rows[n_rows:], None if self.weights is None else self.weights[n_rows:])


class Recent(NamedTuple):
    """The rows of a window: a queue of two stacks of pieces, so that sums are merged and never subtracted.

    Pieces come in at the end of `newer`. They leave at the beginning of `older`, of which the moments from each piece
    on are known. Once `older` is empty, all of `newer` becomes `older`, which merges each piece once [1]_. So a piece
    costs a constant number of merges on average, and no rounding error can grow: every sum is made of the rows that
    are there.

    The window may begin in the middle of the first piece. Then the rest of that piece is summed again. That is what the
    rows are kept for: any row may be the next to leave, so whoever promises exact statistics must have them all.

    Attributes
    ----------
    older, newer : tuple of Piece
        From the oldest to the newest; complete.
    older_moments : tuple of Moments
        Of the pieces of `older` from each on.
    newer_moments : Moments or None
        Of `newer`.
    last : Piece or None
        The newest rows, too few yet for a piece.
    gone : int
        Rows of the first of `older` that have left.

    References
    ----------
    .. [1] Tangwongsan, Hirzel & Schneider (2017), "Low-latency sliding-window aggregation in worst-case constant time",
       DEBS, section 2.
    """

    older: tuple[Piece, ...] = ()
    older_moments: tuple[Moments, ...] = ()
    newer: tuple[Piece, ...] = ()
    newer_moments: Moments | None = None
    last: Piece | None = None
    gone: int = 0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All, from the oldest to the newest."""
        return self.older + self.newer + (() if self.last is None else (self.last,))

    def pushed(self, X: Batch, weights: Float64 | None, window: int) -> Recent:
        """Add the rows of X, then drop all but the last `window`."""
        first = max(0, X.shape[0] - window)
        rows = X[first:].in_memory()
        if rows.dtype.kind not in "biuf":  # bfloat16
            rows = rows.astype(np.float32)
        weights = None if weights is None else weights[first:]
        now = Recent() if len(rows) == window else self
        newer, total, last = list(now.newer), now.newer_moments, now.last
        size, start = max(PIECE_ROWS, -(-window // PIECES)), 0
        while start < len(rows):
            stop = start + max(0, size - (0 if last is None else len(last.rows)))
            some_weights = None if weights is None else weights[start:stop]
            if last is None:
                last = Piece.of(rows[start:stop].copy(), some_weights)
            elif stop > start:
                last = last.followed_by(rows[start:stop], some_weights)
            if len(last.rows) >= size:
                newer.append(last)
                total, last = _merged(total, last.moments), None
            start = stop
        now = now._replace(newer=tuple(newer), newer_moments=total, last=last)
        return now._without(max(0, sum(len(piece.rows) for piece in now.pieces) - now.gone - window))

    def _without(self, n_rows: int) -> Recent:
        """Without the oldest rows."""
        now, gone = self, self.gone + n_rows
        while gone:
            if not now.older and not now.newer:
                assert now.last is not None
                return now._replace(last=now.last.without(gone), gone=0)
            now = now._turned()
            if gone < len(now.older[0].rows):
                break
            gone -= len(now.older[0].rows)
            now = now._replace(older=now.older[1:], older_moments=now.older_moments[1:])
        return now._replace(gone=gone)

    def _turned(self) -> Recent:
        """If `older` is empty, move all of `newer` there."""
        return self if self.older else self._replace(
            older=self.newer, older_moments=_from_each_on(self.newer), newer=(), newer_moments=None
        )  # fmt: skip

    def moments(self) -> Moments:
        """Of the rows in the window."""
        parts = [*self.older_moments[:1], self.newer_moments, self.last and self.last.moments]
        if self.gone:
            parts[:1] = [self.older[0].without(self.gone).moments, *self.older_moments[1:2]]
        return functools.reduce(moments.merge, [part for part in parts if part is not None])

    def stored(self) -> dict[str, Any]:
        """All rows of the pieces, those that have left included, and what decides in which order moments are merged."""
        pieces = self.pieces
        rows = np.concatenate([piece.rows for piece in pieces])
        weights = [np.ones(len(piece.rows)) if piece.weights is None else piece.weights for piece in pieces]
        return {
            "rows": rows,
            "weights": None if all(piece.weights is None for piece in pieces) else np.concatenate(weights),
            "lengths": [len(piece.rows) for piece in pieces],
            "n_older": len(self.older),
            "has_last": self.last is not None,
            "gone": self.gone,
        }

    @classmethod
    def restored(
        cls, rows: NDArray[Any], weights: Float64 | None, lengths: list[int], n_older: int, has_last: bool, gone: int
    ) -> Recent:
        """Undo `stored`."""
        ends = np.cumsum([0, *lengths]).tolist()
        pieces = [
            Piece.of(rows[start:stop], None if weights is None else weights[start:stop])
            for start, stop in itertools.pairwise(ends)
        ]
        older, newer = tuple(pieces[:n_older]), tuple(pieces[n_older : len(pieces) - has_last])
        total = functools.reduce(_merged, [piece.moments for piece in newer], None)
        return cls(older, _from_each_on(older), newer, total, pieces[-1] if has_last else None, gone)

    def of_features(self, which: NDArray[np.intp]) -> Recent:
        """With the values of some features, as if the rows had no others."""
        kept = self.stored()
        return Recent.restored(**{**kept, "rows": np.take(kept["rows"], which, axis=1)})

    @classmethod
    def beside(cls, parts: Sequence[Recent]) -> Recent:
        """With the features of all: the parts must be of the same rows."""
        each = [part.stored() for part in parts]
        rows = [kept.pop("rows") for kept in each]
        alike = {(r.dtype, r.shape[2:]) for r in rows}
        if len(alike) > 1 or any(not _same_rows(kept, each[0]) for kept in each):
            raise ValueError(
                "windows can be joined only if they hold the same rows, of one type, with the same weights"
            )
        return cls.restored(rows=np.concatenate(rows, axis=1), **each[0])


def _same_rows(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def _merged(a: Moments | None, b: Moments) -> Moments:
    return b if a is None else moments.merge(a, b)


def _from_each_on(pieces: tuple[Piece, ...]) -> tuple[Moments, ...]:
    """Moments of the pieces from each on."""
    sums = itertools.accumulate((p.moments for p in reversed(pieces)), lambda later, own: moments.merge(own, later))
    return tuple(sums)[::-1]


def kind_of(momentum: float | None, halflife: float | np.timedelta64 | None, window: int | None) -> Kind:
    """The kind that parameters ask for, of which at most one is given."""
    if momentum is not None:
        return Momentum(momentum)
    if isinstance(halflife, np.timedelta64):
        return TimedHalflife(float(halflife.astype(np.int64)))
    if halflife is not None:
        return Halflife(halflife)
    return Cumulative() if window is None else Window(window)


def continues(known: Kind, wanted: Kind) -> None:
    """Refuse to go on with running statistics of one kind as another."""
    if isinstance(known, Layer):
        raise ValueError(
            "partial_fit cannot continue the statistics of a layer, which does not tell how many samples they are of; "
            "give from_torch, or what else made it, a momentum, or call fit"
        )
    if known.name != wanted.name:
        raise ValueError(
            f"partial_fit cannot continue {known.name} statistics in {wanted.name} mode; "
            "call fit after changing from one kind to another"
        )


def needs_times(kind: Kind, times: Any) -> None:
    """Refuse times where rows are counted, and rows without times where a half-life is one of time."""
    if kind.has_times and times is None:
        raise TypeError("a halflife of time needs times, one for each row: partial_fit(X, times=...)")
    if times is not None and not kind.has_times:
        raise ValueError(
            "times need a halflife of time, such as datetime.timedelta(days=14); "
            f"the statistics of this transformer are {kind.name} ones"
        )
