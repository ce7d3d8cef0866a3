"""What a forward pass leaves for its backward pass, the same on the CPU and on the GPU; nothing of ours is imported."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Call(NamedTuple):
    """How a forward pass was called, as far as its backward pass must be called so, too."""

    channel_axis: int | None
    activation: str | None
    gamma: bool | None  # None where it has no effect on a backward pass
    beta: bool | None
    residual: bool | None
    normalized: tuple[int, ...] | None = None  # of layer and RMS normalization
    where: int | None = None  # a checksum


def call_of(
    channel_axis: int | None,
    activation: Any,
    gamma: Any,
    beta: Any,
    residual: Any,
    normalized: tuple[int, ...] | None = None,
    where: Any = None,
) -> Call:
    """What a pass was called with; the channel axis counted from 0."""
    if activation is not None and type(activation) is not str:  # what is none is refused later; arrays do not compare
        activation = str.__str__(activation) if isinstance(activation, str) else type(activation).__name__
    about = channel_axis, activation, gamma is not None, beta is not None, residual is not None, normalized
    return _call(*about) if where is None else Call(*about, checksum(where))


def checksum(where: NDArray[Any]) -> int:
    """A number that tells one `where` from another."""
    return zlib.crc32(np.packbits(where).data)


_call = lru_cache(256)(Call)  # one object for calls of a kind: it is asked for in each


@dataclass(frozen=True, slots=True, eq=False, init=False)
class SavedStatistics:
    """What a forward pass leaves for its backward pass; to who unpacks it the pair of mean and invstd.

    Parameters
    ----------
    mean : ndarray, float64, or None
        Mean of the values normalized together. Of shape (C,) for batch normalization, (N, C) for instance,
        (N, n_groups) for group normalization; for layer normalization that of x with 1 for the axes normalized over.
        None for `rms_norm`. Of device arrays this and the next two are device arrays.
    invstd : ndarray of the same shape, float64
        ``1 / sqrt(var + eps)`` with the biased variance; 0 where that would divide by 0.
    mean_lo : ndarray of the same shape, float64, or float, default=0.0
        What rounding took from the mean.
    count : int, ndarray, or None
        Number of values behind each mean: m per channel for batch normalization; an array, with a number for each mean,
        where the forward pass was given `moments` or, except in batch normalization, `where`. A backward pass over
        another number is refused. None in statistics not made by a forward pass: nothing is checked then.
    kind : {"training", "frozen"} or None
        Whether the statistics are those of the values that were normalized, or constants, such as running ones, that
        `from_variance` was given: `batch_norm_backward_frozen` takes these, every other backward pass those. None if
        they were made by hand, which all take.
    call : Call or None
        Which arguments the forward pass had, so that a backward pass that forgets one, or has one more, is refused.
        None in statistics not made by a forward pass: nothing is checked then.

    Notes
    -----
    ``SavedStatistics(mean=..., invstd=...)`` makes them by hand. Iterating gives the pair that other libraries save,
    ``mean, invstd = saved``; so does ``saved[:2]``. Statistics with equal pairs are equal. Copies, pickles and
    ``saved._replace(mean=...)`` keep all else; ``SavedStatistics(*saved)`` is made by hand, of the pair alone.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import SavedStatistics, batch_norm_forward
    >>> _, saved = batch_norm_forward(np.array([[0.0], [4.0]]), eps=0)
    >>> saved.mean, saved.invstd, saved.count, saved.kind
    (array([2.]), array([0.5]), 2, 'training')
    >>> mean, invstd = saved
    >>> SavedStatistics(mean=np.array([2.0]), invstd=np.array([0.5])) == saved
    True
    """

    mean: Any
    invstd: Any
    mean_lo: Any = 0.0
    count: Any = None
    kind: Literal["training", "frozen"] | None = None
    call: Call | None = None

    def __init__(
        self,
        mean: Any,
        invstd: Any,
        mean_lo: Any = 0.0,
        count: Any = None,
        kind: Literal["training", "frozen"] | None = None,
        call: Call | None = None,
    ) -> None:
        # The __init__ of a frozen dataclass does the same in twice the time, a tenth of that of a small call.
        _set_mean(self, mean)
        _set_invstd(self, invstd)
        _set_mean_lo(self, mean_lo)
        _set_count(self, count)
        _set_kind(self, kind)
        _set_call(self, call)

    @classmethod
    def from_variance(cls, mean: ArrayLike, var: ArrayLike, *, eps: float = 1e-5) -> SavedStatistics:
        """Make statistics that were not saved by a forward pass: running ones, for example.

        Parameters
        ----------
        mean, var : array-like
            Of the shape of `mean` above.
        eps : float, default=1e-5
            Added to `var`.

        Returns
        -------
        SavedStatistics
            Of kind "frozen", with ``invstd = 1 / sqrt(var + eps)``.

        Raises
        ------
        TypeError
            If an argument does not hold real numbers.
        ValueError
            If shapes do not fit, or a variance or eps is negative.

        Examples
        --------
        >>> from bncpu import SavedStatistics
        >>> frozen = SavedStatistics.from_variance([1.0], [4.0], eps=0)
        >>> frozen.invstd, frozen.kind
        (array([0.5]), 'frozen')
        """
        center, spread = _numbers("mean", mean), _numbers("var", var)
        if center.ndim and center.shape != spread.shape:
            raise ValueError(f"mean and var must have the same shape, got {center.shape} and {spread.shape}")
        if np.any(spread < 0):
            raise ValueError(f"var must not be negative, got {spread[spread < 0].flat[0]}")
        number: Any = eps
        if isinstance(number, (bool, np.bool_)) or not isinstance(number, Real) or not 0 <= float(number) < np.inf:
            raise ValueError(f"eps must be a finite number that is not negative, got {type(eps).__name__} {eps!s:.40}")
        with np.errstate(all="ignore"):
            std = np.sqrt(spread + float(number))
            invstd = np.divide(1.0, std, out=np.zeros_like(std), where=std != 0)
        return cls(center, invstd, kind="frozen")

    def __iter__(self) -> Iterator[Any]:
        return iter((self.mean, self.invstd))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        return (self.mean, self.invstd)[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SavedStatistics):
            return NotImplemented
        return all(a is b or np.array_equal(a, b) for a, b in zip(self, other, strict=True))

    def _replace(self, **changes: Any) -> SavedStatistics:
        """A copy with some fields changed, as of a named tuple."""
        return replace(self, **changes)


_set_mean, _set_invstd, _set_mean_lo, _set_count, _set_kind, _set_call = (
    vars(SavedStatistics)[field.name].__set__ for field in fields(SavedStatistics)
)


def _numbers(name: str, a: Any) -> Any:
    """Real numbers, as a new array of float64."""
    a = a.detach() if hasattr(a, "detach") else a
    a = a.float() if str(getattr(a, "dtype", "")) == "torch.bfloat16" else a
    try:
        values = np.asarray(a)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold real numbers in CPU memory, got {type(a).__name__}: {error}") from None
    if isinstance(a, np.ma.MaskedArray) or (values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16"):
        raise TypeError(f"{name} must hold real numbers, got {type(a).__name__} of {values.dtype}")
    return np.array(values, np.float64)


def as_in_forward(saved: Any, now: Call, n_values: Any, *, of_part: bool = False) -> None:
    """Refuse a backward pass that is not that of the forward pass which saved this: its gradients would be wrong.

    Parameters
    ----------
    saved : object
        Of no other type is anything known. Without `kind`, `call` or `count` that is not compared.
    now : Call
        How the backward pass is called.
    n_values : int, ndarray or None
        Values of x that count for each statistic; None if it does not matter, for statistics that are constants.
    of_part : bool, default=False
        Whether x may be a part of the batch, which has more values.
    """
    if not isinstance(saved, SavedStatistics):
        return
    kind = "frozen" if n_values is None else "training"
    was: Any = saved.kind
    if was is not None and not (isinstance(was, str) and was == kind):
        raise ValueError(f"saved must be of kind {kind!r}, {_KINDS[kind]}; got one of kind {str(was)[:20]!r}")
    if not isinstance(saved.call, (Call, type(None))):
        raise TypeError(f"saved.call must be that of a forward pass, or None; got a {type(saved.call).__name__}")
    if saved.call is not None and saved.call != now:
        _compare(saved.call, now._replace(where=saved.call.where) if of_part else now)
    count = saved.count
    if count is None or n_values is None or (type(count) is int and type(n_values) is int and count == n_values):
        return
    counts = np.asarray(count)
    if counts.dtype.kind not in "iuf" or counts.shape not in ((), np.shape(saved.invstd)):
        got = f"{counts.dtype} of shape {counts.shape}"
        raise TypeError(f"saved.count must be a number of values, or one for each channel; got {got}")
    if counts.ndim and np.ndim(n_values) and counts.shape != np.shape(n_values):
        return  # as mean and invstd, whose shape is looked at later
    counts, n = np.broadcast_arrays(counts, n_values)
    wrong = counts < n if of_part else counts != n
    if wrong.any():
        whole = "the whole batch, of which x has" if of_part else "x, of"
        raise ValueError(
            f"saved must be of the forward pass over {whole} {n[wrong][0]} values for each statistic, with the same "
            f"where; got one over {counts[wrong][0]:g}"
        )


_KINDS = {
    "training": "as a forward pass leaves it (for constants there is batch_norm_backward_frozen)",
    "frozen": "as SavedStatistics.from_variance makes it (for the statistics of a batch there is batch_norm_backward)",
}


def _compare(then: Call, now: Call) -> None:
    for name in ("channel_axis", "activation"):
        if getattr(then, name) != getattr(now, name):
            expected, got = getattr(then, name), getattr(now, name)
            raise ValueError(f"{name} must be that of the forward pass that made saved, {expected!r}; got {got!r:.50}")
    if then.where != now.where:
        raise ValueError("where must be that of the forward pass that made saved, the same where; got another")
    for name in ("gamma", "beta", "residual"):
        had, has = getattr(then, name), getattr(now, name)
        if has and not had:
            raise ValueError(f"{name} must be None, as in the forward pass that made saved; got one")
        if had and has is False and (name == "gamma" or then.activation):
            raise ValueError(f"{name} must be given, as in the forward pass that made saved; got None")
