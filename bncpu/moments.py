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

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bncpu import _kernels
from bncpu.saved import SavedStatistics

Float64 = NDArray[np.float64]
Floats = NDArray[Any]  # float64, or float32 where the data is


def _have_equal_arrays(a: tuple[Any, ...], b: object) -> bool:
    """Whether two named tuples of arrays are of one kind and hold the same; as tuples they could not be compared."""
    return isinstance(b, type(a)) and all(map(np.array_equal, list(a), list(b)))


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

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_moments
    >>> m = batch_norm_moments(np.array([[1.0], [2.0], [6.0]]))
    >>> m.count, m.mean, m.m2
    (array([3.]), array([3.]), array([14.]))
    """

    count: Float64  # type: ignore[assignment]  # hides tuple.count, which nothing here needs
    mean: Float64
    mean_lo: Float64
    m2: Float64

    def __eq__(self, other: object) -> bool:
        return _have_equal_arrays(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    @classmethod
    def empty(cls, n_channels: int) -> Moments:
        """Moments of no data."""
        return cls(*np.zeros((4, n_channels)))


class BackwardSums(NamedTuple):
    """What a backward pass needs to know of a whole batch.

    Attributes
    ----------
    count : ndarray of shape (C,), float64
        Number of values.
    dgamma, dbeta : ndarray of shape (C,), float64
        Sums of ``dy * x_hat`` and of dy: the gradients of gamma and beta.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_backward_sums, batch_norm_forward
    >>> x = np.array([[0.0], [4.0]])
    >>> y, saved = batch_norm_forward(x, eps=0)
    >>> batch_norm_backward_sums(np.array([[1.0], [2.0]]), x, saved)
    BackwardSums(count=array([2.]), dgamma=array([1.]), dbeta=array([3.]))
    """

    count: Float64  # type: ignore[assignment]  # as above
    dgamma: Float64
    dbeta: Float64

    def __eq__(self, other: object) -> bool:
        return _have_equal_arrays(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def changed(saved: SavedStatistics, change: Callable[[Float64], Float64]) -> SavedStatistics:
    """Each array of `saved` changed; a mean of None, and a low part of 0.0, stay, as does what is no statistic."""
    mean, invstd, mean_lo = [
        change(a) if isinstance(a, np.ndarray) else a for a in (saved.mean, saved.invstd, saved.mean_lo)
    ]
    return SavedStatistics(mean, invstd, mean_lo, saved.count, saved.kind, saved.call)


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
    return Moments(*_kernels.merge(*a, *b, between))


def merge_blocks(blocks: Float64) -> Moments:
    """Merge along the second axis, pairwise and in an order that depends on its length only.

    Parameters
    ----------
    blocks : ndarray of shape (4, n_blocks, ...), float64
        Count, mean, mean_lo and m2 of each. Overwritten.
    """
    blocks = np.ascontiguousarray(blocks)
    _kernels.merge_blocks(blocks.reshape(*blocks.shape[:2], -1))
    return Moments(*np.ascontiguousarray(blocks[:, 0]))


def sum_blocks(blocks: Float64) -> Float64:
    """Sums along the second axis of an array, which is overwritten, in the order of `merge_blocks`.

    NumPy's order depends on the other axes.
    """
    blocks = np.ascontiguousarray(blocks)
    _kernels.sum_blocks(blocks.reshape(*blocks.shape[:2], -1))
    return np.ascontiguousarray(blocks[:, 0])


def scaled(m: Moments, factor: Float64 | float) -> Moments:
    """The same mean and variance with another weight."""
    return Moments(m.count * factor, m.mean, m.mean_lo, m.m2 * factor)


def variance(m: Moments, ddof: float = 0) -> Float64:
    """``m2 / (count - ddof)``; NaN where count is not above ddof."""
    return np.asarray(_kernels.variance(m.count, m.m2, ddof))


def too_small(count: Float64, ddof: float) -> NDArray[np.bool_]:
    """Where a number of values, or a sum of weights of float32 perhaps, is not above `ddof`, rounding aside."""
    return np.asarray(count - ddof <= 1e-6 * ddof)


def update_cumulative(running: Moments, batch: Moments) -> Moments:
    """Statistics of everything seen so far."""
    return merge(running, batch)


def update_halflife(
    running: Moments, age: Float64, batch: Moments, span: float, halflife: float, batch_age: Float64 | float = 0.0
) -> tuple[Moments, Float64]:
    """Statistics in which a row's weight halves every `halflife`: a number of rows, or any unit of time.

    `batch`, which makes older by `span` what came before, must have been taken with weights that halve likewise,
    1 at its end. Then the result does not depend on how the stream was cut into batches.

    A channel's weight is that at its last value, `age` ago: decaying it through a long gap would
    underflow, and its statistics would be lost. So may be that of `batch`, `batch_age` before its end.
    Returned are the new moments and ages.
    """
    seen, age = batch.count > 0, age + span
    with np.errstate(over="ignore", under="ignore"):
        factor = np.where(seen, _kernels.decay(age - batch_age, halflife), 1.0)
    return merge(scaled(running, factor), batch), np.where(seen, batch_age, age)


def recency_weights(n_rows: int, halflife: float) -> Float64:
    """Weight of each row of a batch at its end: 1 for the last, halving every `halflife` rows back."""
    return faded(np.arange(n_rows - 1.0, -1, -1), halflife)


def faded(age: Float64, halflife: float) -> Float64:
    """``0.5**(age / halflife)``: the weight that is left."""
    with np.errstate(over="ignore", under="ignore"):
        return _kernels.decay(age, halflife)


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
    return Moments(*_kernels.update_momentum(*running, *batch, momentum, ddof))


def moved(old: Floats, new: Float64, momentum: float) -> Float64:
    """``momentum * old + (1 - momentum) * new``; a side of weight 0 does not count, even if it is NaN."""
    old = old.astype(np.float64)
    if momentum in (0.0, 1.0):
        return old if momentum else new
    return momentum * old + (1 - momentum) * new


def move(running_mean: Floats, running_var: Floats, mean: Float64, var: Float64, momentum: float) -> None:
    """Move running statistics towards those of a batch, in place."""
    with np.errstate(all="ignore"):
        running_mean[...] = moved(running_mean, mean, momentum)
        running_var[...] = moved(running_var, var, momentum)


def inverse_std(var: Float64, eps: float) -> Float64:
    """``1 / sqrt(var + eps)``, and 0 where that would divide by 0."""
    return np.asarray(_kernels.inverse_std(var, eps))


def saved_statistics(m: Moments, eps: float) -> SavedStatistics:
    """The statistics of what `m` are the moments of. Of nothing ``invstd`` is 0, so that the result is beta."""
    return SavedStatistics(m.mean, np.where(m.count > 0, inverse_std(variance(m), eps), 0.0), m.mean_lo)


def rms_statistics(m: Moments, eps: float) -> SavedStatistics:
    """As `saved_statistics`, about 0 instead of the mean: the mean square is the variance plus the mean squared."""
    with np.errstate(all="ignore"):
        return SavedStatistics(None, np.where(m.count > 0, inverse_std(variance(m) + m.mean**2, eps), 0.0))


class Coefficients(NamedTuple):
    """What the kernels apply: ``y = (x - mean) * scale + shift``, one of each per channel."""

    mean: Floats
    scale: Floats
    shift: Floats


def fold(
    mean: Float64, invstd: Float64, gamma: Float64 | None, beta: Float64 | None, mean_lo: Float64 | float = 0.0
) -> Coefficients:
    """Coefficients of ``y = gamma * (x - mean) * invstd + beta``."""
    scale, shift = 1.0 if gamma is None else gamma, 0.0 if beta is None else beta
    with np.errstate(all="ignore"):
        return Coefficients(mean, *_kernels.fold(invstd, scale, shift, mean_lo))


def fold_running(
    learned: Float64,
    n_values: Float64 | float | None,
    ddof: float,
    eps: float,
    with_mean: bool,
    with_std: bool,
    gamma: Float64 | None,
    beta: Float64 | None,
) -> tuple[Float64, NDArray[np.float32] | None]:
    """What a transformer tells of its running statistics, and the coefficients it applies.

    With an `eps` of 0 the divisor is 1 where the spread may be rounding of the values: where the standard deviation is
    not above ``min(n_values, 2**14) * 2**-52 * abs(mean)``, up to `2**14` values the bound that [1]_ has for sums and
    :class:`sklearn.preprocessing.StandardScaler` uses.

    Parameters
    ----------
    learned : C-contiguous ndarray of shape (4 or more, n_features)
        The fields of `Moments` first.
    n_values : float, ndarray of shape (n_features,), or None
        Values behind them, if not the count.
    ddof, eps : float
    with_mean, with_std : bool
    gamma, beta : ndarray of shape (n_features,), or None

    Returns
    -------
    values : ndarray of shape (6, n_features)
        Mean and variance, NaN where nothing, or not enough, was seen; the divisor; and the three `Coefficients`.
    single : ndarray of shape (3, n_features), float32, or None
        The coefficients as `rounded` gives them; None unless float32 suffices for all features.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance".
    """
    if isinstance(n_values, np.ndarray):
        n_values = np.ascontiguousarray(n_values, np.float64)
    return _kernels.fold_running(learned, n_values, ddof, eps, with_mean, with_std, gamma, beta)


def fold_saved(saved: SavedStatistics, gamma: Float64 | None = None, beta: Float64 | None = None) -> Coefficients:
    """As `fold`, with the statistics of a forward pass; those of `rms_norm` are about 0."""
    mean = np.zeros(()) if saved.mean is None else saved.mean
    return fold(mean, saved.invstd, gamma, beta, saved.mean_lo)


def fold_inverse(forward: Coefficients, beta: Float64 | None) -> Coefficients:
    """Coefficients of ``x = (y - beta) / scale + mean``, which undo `forward`.

    Written about beta, not about `forward.shift`, so that a constant channel comes back exactly.
    NaN where scale is 0.
    """
    beta = np.zeros_like(forward.scale) if beta is None else beta
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.divide(1.0, forward.scale, out=np.full_like(forward.scale, np.nan), where=forward.scale != 0)
        return Coefficients(beta, scale, forward.mean + (beta - forward.shift) * scale)


class Gradient(NamedTuple):
    """What the kernels apply backward: ``dx = dy_scale * dy + x_scale * (x - mean) + offset``, per channel."""

    mean: Floats
    dy_scale: Floats
    x_scale: Floats
    offset: Floats


def sums_with_x_hat(total: Float64, product: Float64, saved: SavedStatistics) -> Float64:
    """Sums of ``g * x_hat`` from those of g and of ``g * (x - mean)``, the mean less its low part."""
    with np.errstate(all="ignore"):
        return (product - saved.mean_lo * total) * saved.invstd


def fold_backward(
    mean: Float64,
    invstd: Float64,
    gamma: Float64 | None,
    sums: tuple[Float64, Float64],
    count: Float64 | float,
    mean_lo: Float64 | float = 0.0,
) -> Gradient:
    """Coefficients of the gradient through normalization.

    With ``g = gamma * dy`` and ``x_hat = (x - mean) * invstd``, both with `count` values that share mean and invstd,

    ``dx = invstd * (g - sum(g) / count - x_hat * sum(g * x_hat) / count)``, the last formula of [1]_, section 3, with
    the derivatives of mean and variance put in.

    Parameters
    ----------
    mean, invstd : ndarray of shape (C,)
        What the values were normalized with; the mean less `mean_lo`.
    gamma : ndarray of shape (C,), or None
    sums : tuple of two ndarray of shape (C,)
        ``sum(g)`` and ``sum(g * x_hat)``.
    count : float or ndarray of shape (C,)
        Infinity for statistics that do not depend on x.
    mean_lo : float or ndarray of shape (C,)

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift".
    """
    with np.errstate(all="ignore"):
        return Gradient(mean, *_kernels.fold_backward(invstd, 1.0 if gamma is None else gamma, *sums, count, mean_lo))


def fold_saved_backward(
    saved: SavedStatistics, gamma: Float64 | None, total: Float64, along: Float64, count: Float64 | float
) -> Gradient:
    """As `fold_backward`, from the sums of dy and of ``dy * x_hat`` before they are multiplied by gamma."""
    with np.errstate(all="ignore"):
        g = (total, along) if gamma is None else (gamma * total, gamma * along)
    return fold_backward(saved.mean, saved.invstd, gamma, g, count, saved.mean_lo)


def rounded(c: Coefficients, dtype: np.dtype[Any]) -> tuple[Coefficients, NDArray[np.bool_] | None]:
    """The coefficients in `dtype`, and for which channels float32 arithmetic neither overflows nor loses them.

    None says that they are for all. The kernels subtract the mean rounded to the data's type; what rounding took from
    it goes into shift.
    """
    if dtype == np.float64:
        return c, None
    with np.errstate(all="ignore"):
        *values, fits = _kernels.rounded(*c)
    return Coefficients(*values), _unless_all(fits)


def rounded_gradient(k: Gradient, dtype: np.dtype[Any]) -> tuple[Gradient, NDArray[np.bool_] | None]:
    """As `rounded`."""
    if dtype == np.float64:
        return k, None
    with np.errstate(all="ignore"):
        *values, fits = _kernels.rounded_gradient(*k)
    return Gradient(*values), _unless_all(fits)


def _unless_all(fits: NDArray[Any]) -> NDArray[np.bool_] | None:
    return None if fits.all() else fits.astype(np.bool_)
