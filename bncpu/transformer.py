"""BatchNormTransformer: running statistics from batches, applied to any data, as a scikit-learn transformer."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from bncpu import _layout, _normalize, _validation, moments
from bncpu.moments import Coefficients, Moments


class BatchNormTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    r"""Standardize features with running statistics learned batch by batch.

    ``y = gamma * (x - running_mean_) / sqrt(running_var_ + eps) + beta`` per feature: the inference step
    of batch normalization [1]_. :meth:`partial_fit` learns the running statistics from a stream of
    batches; :meth:`transform` always uses them, never the statistics of the data it is given, so there is
    no training mode to forget.

    Three kinds of running statistics:

    - cumulative (default): exact statistics of everything seen, whatever the batches and their order;
    - ``halflife``: recent rows count more; does not depend on how the stream was cut into batches;
    - ``momentum``: the textbook's exponential average over batches.

    Only :meth:`partial_fit` knows an order and forgets; :meth:`fit` is exact, whatever the kind.

    NaN is missing data: left out of the statistics, kept by :meth:`transform`. Infinities are refused.
    A refused call leaves the transformer as it was.

    Parameters
    ----------
    momentum : float in [0, 1), optional
        Average over batches, as in batch normalization: ``running = momentum * running + (1 - momentum) * batch``,
        corrected for its start so that the first batches are not drawn towards a prior. This is
        the weight of the OLD value: PyTorch's ``momentum=0.1`` is 0.9 here. A batch with a single value of
        a feature is refused.
    halflife : float, optional
        Rows after which a row counts half. Excludes `momentum`.
    eps : float, default=0.0
        Added to the variance. With 0 the result does not depend on the units of the data, and a constant
        feature, by scikit-learn's error bound [2]_, is only centered.
    ddof : float, default=0
        ``running_var_`` divides by ``n - ddof`` and is NaN where that is not positive. n is the number of
        values, or the sum of their weights; with `momentum`, of a batch. PyTorch's is 1.
    with_mean, with_std : bool, default=True
        Center; scale to unit variance.
    gamma, beta : array-like of shape (n_features,), optional
        Scale and shift of the result, 1 and 0 if not given.
    copy : bool, default=True
        With False, :meth:`transform` overwrites its input where it can.
    n_threads : int, optional
        Threads to use at most; by default what OpenMP, threadpoolctl and joblib allow. Results do not
        depend on it. Where other work keeps every processor busy, 1 is often fastest.

    Attributes
    ----------
    running_mean_, running_var_ : ndarray of shape (n_features,), float64
        Running statistics, read-only; NaN for a feature never observed. `running_var_` in the square of the
        unit of X.
    mean_, var_, scale_ : ndarray of shape (n_features,), float64, or None
        For code written for :class:`~sklearn.preprocessing.StandardScaler`; None where its are. `scale_` is
        the divisor in use.
    n_samples_seen_ : int, float or ndarray of shape (n_features,)
        Values seen per feature, or the sum of their weights; one number if equal for all features.
        Forgetting does not lower it.
    n_batches_seen_ : int
        Calls of :meth:`partial_fit` since the last :meth:`fit`, and that one.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,), str
        Names of the features, if X had names.

    See Also
    --------
    sklearn.preprocessing.StandardScaler : the same transform without batches that can be merged or forgotten.
    bncpu.batch_norm : the inference step as a function.

    Notes
    -----
    Changed parameters take effect at the next :meth:`fit` or :meth:`partial_fit`; another kind of running
    statistics needs :meth:`fit`.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 2.
    .. [2] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance".

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import BatchNormTransformer
    >>> bn = BatchNormTransformer()
    >>> for batch in np.array([[[0.0], [1.0]], [[2.0], [3.0]]]):
    ...     bn = bn.partial_fit(batch)
    >>> bn.running_mean_, bn.running_var_
    (array([1.5]), array([1.25]))
    >>> bn.transform([[1.5]])
    array([[0.]])
    """

    # Not metadata: `out` is an array of the caller's.
    __metadata_request__transform: ClassVar = {"out": UNUSED}

    n_samples_seen_: int | float | NDArray[Any]
    n_batches_seen_: int
    n_features_in_: int

    def __init__(
        self,
        *,
        momentum: float | None = None,
        halflife: float | None = None,
        eps: float = 0.0,
        ddof: float = 0,
        with_mean: bool = True,
        with_std: bool = True,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        copy: bool = True,
        n_threads: int | None = None,
    ) -> None:
        self.momentum = momentum
        self.halflife = halflife
        self.eps = eps
        self.ddof = ddof
        self.with_mean = with_mean
        self.with_std = with_std
        self.gamma = gamma
        self.beta = beta
        self.copy = copy
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BatchNormTransformer:
        """Forget everything, then learn the exact statistics of X as one batch.

        The rows of X have no order here: with `momentum` or `halflife` too, the result is their plain mean
        and variance, from which :meth:`partial_fit` goes on.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            float16, float32 and float64 are read as they are, anything else becomes float64.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative; weight 2 is the same as the row twice.

        Returns
        -------
        BatchNormTransformer
            Itself.

        Raises
        ------
        ValueError
            If X holds an infinity, its variance overflows float64, or an argument does not fit.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer().fit([[0.0], [4.0]]).scale_
        array([2.])
        """
        return self._learn(X, sample_weight, reset=True, ordered=False)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BatchNormTransformer:
        """Learn from the next batch of a stream.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            With `halflife` the rows are in the order of the stream, the last the most recent.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative. With `momentum` it weights within the batch only; with `halflife` a row ages the
            others by one row whatever its weight.

        Returns
        -------
        BatchNormTransformer
            Itself.

        Raises
        ------
        ValueError
            As :meth:`fit`; if X has another width or other names than before; or, with `momentum`, if a
            feature has only one value in X.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> recent = BatchNormTransformer(halflife=1).partial_fit([[0.0], [0.0], [3.0]])
        >>> recent.partial_fit([[7.0]]).running_mean_.round(2)
        array([4.53])
        """
        return self._learn(X, sample_weight, reset=not hasattr(self, "_moments"), ordered=True)

    def _learn(self, X: Any, sample_weight: Any, *, reset: bool, ordered: bool) -> BatchNormTransformer:
        """Compute the new state beside the old one, then put it in place in one step."""
        p = _validation.parameters(self)
        mode = _validation.mode(self)
        if not reset:
            _validation.same_mode(self._mode, mode)
        X, state = _validation.batch(self, X, reset=reset)
        n_samples, n_features = X.shape
        gamma = _validation.finite_per_channel("gamma", self.gamma, n_features)
        beta = _validation.finite_per_channel("beta", self.beta, n_features)
        weights = _validation.sample_weight(sample_weight, X)
        if reset and p.momentum is not None and 0 < p.momentum < 0.5:
            warnings.warn(
                f"BatchNormTransformer's momentum={self.momentum} is the weight of the old value; "
                f"PyTorch's {self.momentum} is {1 - p.momentum:g} here",
                stacklevel=3,
            )

        names = state.get("feature_names_in_")
        running = Moments.empty(n_features) if reset else self._moments
        age = np.zeros(n_features) if reset else self._age
        # Overflow is looked for in the result, below.
        with np.errstate(over="ignore", invalid="ignore"):
            if p.halflife is not None and ordered:
                running, age, seen = self._recent(X, weights, p.halflife, running, age, names)
            else:
                x3, _ = _layout.canonical(X, 1)
                batch, missing = self._moments_of(x3, weights)
                _validation.finite_moments(self, X, batch, names)
                seen = batch.count
                if p.momentum is None:
                    running = moments.update_cumulative(running, batch)
                else:
                    positive = None if weights is None else (weights > 0).astype(np.float64)
                    n_positive = n_samples if positive is None else int(positive.sum())
                    n_values = self._observed(x3, positive, missing)
                    _validation.two_values(self, n_values, n_positive, batch.count, p.ddof)
                    running = moments.update_momentum(running, batch, p.momentum, p.ddof)
        _validation.finite_moments(self, None, running, names)

        before = (0, 0) if reset else (self.n_samples_seen_, self.n_batches_seen_)
        state["n_samples_seen_"] = _collapsed(before[0] + seen, weights is not None or _is_weighted(before[0]))
        state["n_batches_seen_"] = before[1] + 1
        state["_moments"] = running
        state["_age"] = age
        state["_mode"] = mode
        state.update(self._derived(running, state, p, gamma, beta))
        self.__dict__ = state
        return self

    def _recent(
        self,
        X: NDArray[Any],
        weights: NDArray[np.float64] | None,
        halflife: float,
        running: Moments,
        age: NDArray[np.float64],
        names: Any,
    ) -> tuple[Moments, NDArray[np.float64], NDArray[np.float64]]:
        """Moments and ages after the rows of X in their order, and the undecayed weight of their values."""
        n_samples = len(X)
        x3, _ = _layout.canonical(X, 1)
        recency = moments.recency_weights(n_samples, halflife)
        batch, missing = self._moments_of(x3, recency if weights is None else recency * weights)
        _validation.finite_moments(self, X, batch, names)
        seen = self._observed(x3, weights, missing)
        # A feature whose last value lies hundreds of half-lives before the end has faded: look at it from nearer.
        if n_samples > 1 and np.any(batch.count < 1e-200 * seen):
            half = n_samples // 2
            first, last = (None, None) if weights is None else (weights[:half], weights[half:])
            running, age, seen_first = self._recent(X[:half], first, halflife, running, age, names)
            running, age, seen_last = self._recent(X[half:], last, halflife, running, age, names)
            return running, age, seen_first + seen_last
        running, age = moments.update_halflife(running, age, batch, n_samples, halflife)
        return running, age, seen

    def _moments_of(self, x3: Any, weights: NDArray[np.float64] | None) -> tuple[Moments, bool]:
        return _normalize.moments(x3, weights, skip_missing=True, n_threads=self.n_threads)

    def _observed(self, x3: Any, weights: NDArray[np.float64] | None, missing: bool) -> NDArray[np.float64]:
        """Total weight of the values of each feature."""
        if missing:
            return self._moments_of(x3, weights)[0].count
        return np.full(x3.shape[1], x3.shape[0] * x3.shape[2] if weights is None else np.sum(weights), np.float64)

    def _derived(
        self,
        running: Moments,
        state: dict[str, Any],
        p: _validation.Parameters,
        gamma: NDArray[np.float64] | None,
        beta: NDArray[np.float64] | None,
    ) -> dict[str, Any]:
        """What follows from the running moments and the parameters: attributes and coefficients."""
        # In momentum mode ddof has been applied to each batch, and the count is the weight seen so far.
        momentum = state["_mode"] == "momentum"
        mean = moments.observed_mean(running)
        var = moments.variance(running, 0 if momentum else p.ddof)
        n_values = state["n_samples_seen_"] / state["n_batches_seen_"] if momentum else running.count
        divisor = np.sqrt(var + p.eps)
        if p.eps == 0:
            divisor = np.where(moments.near_constant(mean, var, n_values), 1.0, divisor)
        center = mean if self.with_mean else np.zeros_like(mean)
        center_lo = running.mean_lo if self.with_mean else np.zeros_like(mean)
        invstd = 1.0 / divisor if self.with_std else np.ones_like(divisor)
        forward = moments.fold(center, invstd, gamma, beta, center_lo)
        return {
            "_running": (mean, var),
            "_aliases": (
                mean if self.with_mean or self.with_std else None,
                var if self.with_std else None,
                divisor if self.with_std else None,
            ),
            "_forward": forward,
            "_inverse": moments.fold_inverse(forward, beta),
        }

    def transform(self, X: Any, copy: bool | None = None, *, out: NDArray[Any] | None = None) -> Any:
        """Normalize X with the running statistics.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            NaN stays NaN.
        copy : bool, optional
            False overwrites X where it is a writeable float array. By default the parameter `copy`.
        out : ndarray of the shape and dtype of the result, optional
            Receives the result. Only without `set_output`.

        Returns
        -------
        ndarray or DataFrame of shape (n_samples, n_features)
            float16, float32 or float64 as X; float64 for anything else.

        Raises
        ------
        ValueError
            If X holds an infinity (the contents of `out`, or of X with ``copy=False``, are undefined then),
            or its width or names differ from those of fit.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer(beta=[10]).fit([[0.0], [4.0]]).transform([[2.0], [4.0]])
        array([[10.],
               [11.]])
        """
        check_is_fitted(self)
        X = _validation.to_transform(self, X)
        if out is not None:
            config = getattr(self, "_sklearn_output_config", {}).get("transform", get_config()["transform_output"])
            _validation.out_of_transform(self, X, out, wrapped=config != "default")
        return self._apply(X, self._forward, copy, out)

    def inverse_transform(self, X: Any, copy: bool | None = None) -> NDArray[Any]:
        """Undo :meth:`transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Normalized data.
        copy : bool, optional
            As in :meth:`transform`.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Data in the units of fit.

        Raises
        ------
        ValueError
            If gamma holds a 0, X an infinity, or the width of X differs from that of fit.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer().fit([[0.0], [4.0]]).inverse_transform([[1.0]])
        array([[4.]])
        """
        check_is_fitted(self)
        _validation.invertible(self, self._forward.scale)
        return self._apply(_validation.to_invert(self, X), self._inverse, copy, None)

    def _apply(
        self, X: NDArray[Any], coefficients: Coefficients, copy: bool | None, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        _validation.threads(self.n_threads)
        x3, layout = _layout.canonical(X, 1)
        if out is None and not (self.copy if copy is None else copy) and X.flags.writeable:
            out = X
        y, y3 = _layout.target(layout, out, X.shape, x3)
        if _normalize.apply(x3, y3, coefficients, n_threads=self.n_threads):
            _validation.infinity(self, X, getattr(self, "feature_names_in_", None))
        return _layout.delivered(y, out, X.dtype)

    def merge(self, other: BatchNormTransformer) -> BatchNormTransformer:
        """Take in, in place, what another transformer has seen, as if this one had seen both streams.

        This one need not have seen anything yet, so that workers can be reduced onto a new one.

        Parameters
        ----------
        other : BatchNormTransformer
            Fitted, with cumulative statistics, the same `ddof`, features and names. Not modified.

        Returns
        -------
        BatchNormTransformer
            Itself; `eps`, `gamma`, `beta` and the other parameters stay its own.

        Raises
        ------
        TypeError
            If `other` is not a BatchNormTransformer.
        ValueError
            If one of the two uses `momentum` or `halflife`, they do not match, or the variance of both
            together overflows float64.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> left, right = BatchNormTransformer().fit([[0.0]]), BatchNormTransformer().fit([[4.0]])
        >>> left.merge(right).running_var_
        array([4.])
        """
        p = _validation.parameters(self)
        _validation.mergeable(self, other)
        state = dict(vars(self))
        if not hasattr(self, "_moments"):
            state.update({k: v for k, v in vars(other).items() if k in ("n_features_in_", "feature_names_in_")})
        n_features = other.n_features_in_
        gamma = _validation.finite_per_channel("gamma", self.gamma, n_features)
        beta = _validation.finite_per_channel("beta", self.beta, n_features)
        mine, theirs = getattr(self, "n_samples_seen_", 0), other.n_samples_seen_
        seen = np.broadcast_to(mine, n_features) + theirs
        state["n_samples_seen_"] = _collapsed(seen, _is_weighted(mine) or _is_weighted(theirs))
        state["n_batches_seen_"] = getattr(self, "n_batches_seen_", 0) + other.n_batches_seen_
        with np.errstate(over="ignore", invalid="ignore"):
            total = moments.merge(getattr(self, "_moments", Moments.empty(n_features)), other._moments)
        _validation.finite_moments(self, None, total, state.get("feature_names_in_"))
        state["_moments"] = total
        state["_age"], state["_mode"] = other._age, other._mode
        state.update(self._derived(state["_moments"], state, p, gamma, beta))
        self.__dict__ = state
        return self

    @property
    def running_mean_(self) -> NDArray[np.float64]:
        """Running mean per feature; NaN for one never observed."""
        check_is_fitted(self)
        return _read_only(self._running[0])

    @property
    def running_var_(self) -> NDArray[np.float64]:
        """Running variance per feature; NaN for one never observed."""
        check_is_fitted(self)
        return _read_only(self._running[1])

    @property
    def mean_(self) -> NDArray[np.float64] | None:
        """`running_mean_`, or None if neither centering nor scaling."""
        check_is_fitted(self)
        return _read_only(self._aliases[0])

    @property
    def var_(self) -> NDArray[np.float64] | None:
        """`running_var_`, or None if not scaling."""
        check_is_fitted(self)
        return _read_only(self._aliases[1])

    @property
    def scale_(self) -> NDArray[np.float64] | None:
        """What :meth:`transform` divides by, or None if not scaling."""
        check_is_fitted(self)
        return _read_only(self._aliases[2])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags


def _read_only(a: Any) -> Any:
    """A view that cannot be written through: statistics and coefficients stay consistent, after pickle too."""
    if a is None:
        return None
    view = a.view()
    view.flags.writeable = False
    return view


def _is_weighted(count: int | float | NDArray[Any]) -> bool:
    return np.asarray(count).dtype.kind == "f"


def _collapsed(counts: NDArray[np.float64], weighted: bool) -> int | float | NDArray[Any]:
    """One number if all features have the same count; integers unless weights were involved."""
    counts = counts.astype(np.float64 if weighted else np.int64)
    return counts[0].item() if np.all(counts == counts[0]) else counts
