"""The algebra of batch normalization on float64 arrays of O(channels): statistics, merge, folds.

Everything the library knows about data is a `Moments`: count, mean and sum of squared deviations of each
channel. There is one `merge`; batches, workers, blocks and the running statistics of a stream differ only
in what they merge and how the older side was scaled first:

==============  ========================================  ===================
statistics      older side                                merge
==============  ========================================  ===================
cumulative      as it is                                  full
halflife        times ``0.5**(rows / halflife)``          full
momentum        times ``momentum``; batch to 1-momentum   without the between-batch term
==============  ========================================  ===================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Floats = NDArray[Any]  # float64, or float32 where the data is


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each channel.

    Attributes
    ----------
    count : ndarray of shape (..., C), float64
        Number of values, or their total weight. 0 where nothing was seen; mean and m2 are 0 there.
    mean, mean_lo : ndarray of shape (..., C), float64
        The mean is the exact sum of the two: a plain float64 mean loses digits in a long stream.
    m2 : ndarray of shape (..., C), float64
        Weighted sum of squared deviations from the mean.
    """

    count: Float64  # type: ignore[assignment]  # hides tuple.count, which nothing here needs
    mean: Float64
    mean_lo: Float64
    m2: Float64

    @classmethod
    def empty(cls, n_channels: int) -> Moments:
        """Moments of no data."""
        return cls(*np.zeros((4, n_channels)))


def two_sum(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """Sum and its rounding error: ``hi + lo == a + b`` exactly.

    References
    ----------
    .. [1] Knuth, "The Art of Computer Programming", volume 2, 4.2.2, theorem B.
    """
    hi = a + b
    back = hi - a
    return hi, (a - (hi - back)) + (b - back)


def merge(a: Moments, b: Moments, *, between: bool = True) -> Moments:
    """Moments of the union of two data sets.

    Parameters
    ----------
    a, b : Moments
        Of the same shape.
    between : bool, default=True
        Count the spread between the two means in m2. Without it the variance of the result is the
        weighted mean of the two variances, as in the running variance of batch normalization.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1,
       The American Statistician 37(3), 242-247.
    """
    count = a.count + b.count
    heavy = b.count > a.count
    # The lighter side moves the heavier one's mean, so that a weight of 0 leaves it exactly as it is.
    light_count = np.where(heavy, a.count, b.count)
    share = np.divide(light_count, count, out=np.zeros_like(count), where=count > 0)
    delta = (b.mean - a.mean) + (b.mean_lo - a.mean_lo)
    step, step_lo = np.where(heavy, -delta, delta) * share, np.where(heavy, b.mean_lo, a.mean_lo)
    mean, mean_lo = two_sum(np.where(heavy, b.mean, a.mean), step)
    mean, mean_lo = two_sum(mean, mean_lo + step_lo)
    m2 = a.m2 + b.m2
    if between:
        m2 = m2 + delta * (np.where(heavy, b.count, a.count) * share) * delta
    return Moments(count, mean, mean_lo, m2)


def merge_blocks(blocks: Moments) -> Moments:
    """Merge along the first axis, pairwise and in an order that depends on its length only."""
    while (n := len(blocks.count)) > 1:
        half = n // 2
        merged = merge(Moments(*(m[:half] for m in blocks)), Moments(*(m[half : 2 * half] for m in blocks)))
        odd = Moments(*(m[2 * half :] for m in blocks))
        blocks = Moments(*map(np.concatenate, zip(merged, odd, strict=True))) if n % 2 else merged
    return Moments(*(m[0] for m in blocks))


def scaled(m: Moments, factor: Float64 | float) -> Moments:
    """The same mean and variance with another weight."""
    return Moments(m.count * factor, m.mean, m.mean_lo, m.m2 * factor)


def variance(m: Moments, ddof: float = 0) -> Float64:
    """``m2 / (count - ddof)``; NaN where count is not above ddof."""
    degrees = m.count - ddof
    return np.divide(m.m2, degrees, out=np.full_like(degrees, np.nan), where=degrees > 0)


def observed_mean(m: Moments) -> Float64:
    """The mean, NaN for channels of which nothing was seen."""
    return np.where(m.count > 0, m.mean, np.nan)


def update_cumulative(running: Moments, batch: Moments) -> Moments:
    """Statistics of everything seen so far."""
    return merge(running, batch)


def update_halflife(
    running: Moments, age: Float64, batch: Moments, n_rows: int, halflife: float
) -> tuple[Moments, Float64]:
    """Statistics in which a row's weight halves every `halflife` rows.

    `batch` must have been taken with `recency_weights`; then the result does not depend on how the
    stream was cut into batches.

    A channel's weight is that at its last value, `age` rows ago: decaying it through a long gap would
    underflow, and its statistics would be lost. Returned are the new moments and ages.
    """
    seen, age = batch.count > 0, age + n_rows
    with np.errstate(over="ignore"):
        factor = np.where(seen, 0.5 ** (age / halflife), 1.0)
    return merge(scaled(running, factor), batch), np.where(seen, 0.0, age)


def recency_weights(n_rows: int, halflife: float) -> Float64:
    """Weight of each row of a batch at its end: 1 for the last, halving every `halflife` rows back."""
    with np.errstate(over="ignore"):
        return 0.5 ** (np.arange(n_rows - 1, -1, -1) / halflife)


def update_momentum(running: Moments, batch: Moments, momentum: float, ddof: float = 0) -> Moments:
    """Exponential average over batches, with its bias from starting at nothing divided out.

    ``running = momentum * running + (1 - momentum) * batch`` for mean and variance, [1]_ with momentum
    the weight of the old value, corrected as in [2]_: after k batches ``count`` is ``1 - momentum**k``, what
    the average must be divided by. A channel without values in `batch` keeps its statistics.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization", section 3.1.
    .. [2] Kingma & Ba (2015), "Adam", section 3.
    """
    seen = batch.count > 0
    share = np.where(seen, 1 - momentum, 0.0)
    new = Moments(share, batch.mean, batch.mean_lo, np.where(seen, share * variance(batch, ddof), 0.0))
    return merge(scaled(running, np.where(seen, momentum, 1.0)), new, between=False)


def moved(old: Floats, new: Float64, momentum: float) -> Float64:
    """``momentum * old + (1 - momentum) * new``; a side of weight 0 does not count, even if it is NaN."""
    old = old.astype(np.float64)
    if momentum in (0.0, 1.0):
        return old if momentum else new
    return momentum * old + (1 - momentum) * new


def inverse_std(var: Float64, eps: float) -> Float64:
    """``1 / sqrt(var + eps)``, and 0 where that would divide by 0."""
    std = np.sqrt(var + eps)
    return np.divide(1.0, std, out=np.zeros_like(std), where=std != 0)


def near_constant(mean: Float64, var: Float64, count: Float64 | float) -> NDArray[np.bool_]:
    """Channels whose variance may be rounding alone, by scikit-learn's error bound.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), the bound of the two-pass algorithm, as used by
       :class:`sklearn.preprocessing.StandardScaler`.
    """
    u = np.finfo(np.float64).eps
    with np.errstate(over="ignore"):
        return var <= count * u * var + (count * mean * u) ** 2


class Coefficients(NamedTuple):
    """What the kernels apply: ``y = (x - mean) * scale + shift``, one of each per channel."""

    mean: Floats
    scale: Floats
    shift: Floats


def fold(
    mean: Float64, invstd: Float64, gamma: Float64 | None, beta: Float64 | None, mean_lo: Float64 | float = 0.0
) -> Coefficients:
    """Coefficients of ``y = gamma * (x - mean) * invstd + beta``."""
    scale = invstd if gamma is None else invstd * gamma
    shift = np.zeros_like(scale) if beta is None else beta
    return Coefficients(mean, scale, shift - mean_lo * scale)


def fold_inverse(forward: Coefficients, beta: Float64 | None) -> Coefficients:
    """Coefficients of ``x = (y - beta) / scale + mean``, which undo `forward`.

    Written about beta, not about `forward.shift`, so that a constant channel comes back exactly.
    NaN where scale is 0.
    """
    beta = np.zeros_like(forward.scale) if beta is None else beta
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.divide(1.0, forward.scale, out=np.full_like(forward.scale, np.nan), where=forward.scale != 0)
        return Coefficients(beta, scale, forward.mean + (beta - forward.shift) * scale)


def rounded(c: Coefficients, dtype: np.dtype[Any]) -> Coefficients | None:
    """The coefficients in `dtype`, or None if float32 arithmetic would overflow or lose them.

    The kernels subtract the mean rounded to the data's type; what rounding took from it goes into shift.
    """
    if dtype == np.float64:
        return c
    # Any float32 minus a mean of 1e30 stays finite; a scale outside the normal range has lost digits.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = c.mean.astype(dtype)
        shift = c.shift - (c.mean - mean.astype(np.float64)) * c.scale
        size = np.abs(c.scale)
        fits = (np.abs(c.mean) <= 1e30) & (((size >= 1e-37) & (size <= 1e37)) | (size == 0)) & (np.abs(shift) <= 1e37)
        if not np.all(fits | np.isnan(c.mean + c.scale + c.shift)):
            return None
        return Coefficients(mean, c.scale.astype(dtype), shift.astype(dtype))
