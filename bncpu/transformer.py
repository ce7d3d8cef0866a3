"""BatchNormTransformer: running statistics from batches, applied to any data, as a scikit-learn transformer."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import math
import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import gen_batches
from sklearn.utils._set_output import _wrap_data_with_container
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import _num_samples, check_is_fitted

from bncpu import (
    _batches,
    _dask,
    _door,
    _infinities,
    _kernels,
    _layout,
    _names,
    _report,
    _state_file,
    _times,
    _weights,
    moments,
)
from bncpu import state as states
from bncpu._batches import Batch, Dense
from bncpu._checks import as_values
from bncpu._compat import UNWATCHED, CallbackSupportMixin, fit_task, is_watched, with_callbacks
from bncpu._conversions import LayerMixin
from bncpu._device import as_given
from bncpu._door import Samples
from bncpu._report import Report
from bncpu._scalars import real, shown, threads
from bncpu.moments import Coefficients
from bncpu.running import Kind, Running, continues, needs_times
from bncpu.state import Parameters, State, added, collapsed

FITTED = ("n_features_in_", "feature_names_in_", "_state")


class BatchNormTransformer(LayerMixin, CallbackSupportMixin, OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    r"""Standardize features with running statistics learned batch by batch.

    ``y = gamma * (x - running_mean_) / sqrt(running_var_ + eps) + beta`` per feature: the inference step
    of batch normalization [1]_. :meth:`partial_fit` learns the running statistics from a stream of
    batches; :meth:`transform` always uses them, never the statistics of the data it is given, so there is
    no training mode to forget.

    Four kinds of running statistics:

    - cumulative (default): exact statistics of everything seen, whatever the batches and their order;
    - ``window``: exact statistics of the last so many rows, however the stream was cut into batches;
    - ``halflife``: recent rows count more, by their number or by time; does not depend on how the stream was cut into
      batches either;
    - ``momentum``: the textbook's exponential average over batches.

    Only :meth:`partial_fit`, and :meth:`fit` in batches, know an order and forget; :meth:`fit` of one batch is
    exact, whatever the kind, also in a Pipeline: there `batch_size` makes it forget. A ``window`` has an order always.

    NaN is missing data: left out of the statistics, kept by :meth:`transform`. Infinities are refused.
    A refused call leaves the transformer as it was.

    Data may be dense of any number type and memory order, memory-mapped or read-only included, and is read where it
    lies; DataFrames of pandas, polars and pyarrow; array-API arrays in CPU memory where scikit-learn's
    ``array_api_dispatch`` is on, with the result of the same library; arrays of CuPy, PyTorch and Numba on a GPU, with
    the extra ``gpu``, whose infinities :meth:`transform` does not look for; or, with ``with_mean=False``, CSR and CSC
    matrices. Statistics are NumPy arrays always.

    An array or DataFrame of Dask is one batch, whatever its blocks: learned in one pass over them and a tree of merges,
    where Dask computes; the same blocks give the same bits on any scheduler. `transform` and `inverse_transform` stay
    lazy, and `copy` is always True. With `batch_size` there is a pass for each batch. A block uses one thread unless
    `n_threads` says otherwise.

    Parameters
    ----------
    momentum : float in [0, 1), optional
        Average over batches, as in batch normalization: ``running = momentum * running + (1 - momentum) * batch``,
        corrected for its start so that the first batches are not drawn towards a prior. This is
        the weight of the OLD value: PyTorch's ``momentum=0.1`` is 0.9 here. A batch with a single value of
        a feature is refused.
    halflife : float or duration, optional
        After how many rows a row counts half; or after what time, as datetime.timedelta, numpy.timedelta64,
        pandas' Timedelta or, with pandas, a text such as "14D": then :meth:`partial_fit` needs `times`. The weights are
        those of pandas' ``ewm(halflife=..., times=...)``. Excludes `momentum` and `window`.
    window : int, optional
        Learn the statistics of the last `window` rows, or of all while there are fewer. Nothing is ever subtracted, so
        no error grows, however long the stream. These rows, and up to a 256th more, are kept in CPU memory. For
        dense X in memory. Excludes `momentum` and `halflife`.
    eps : float, default=0.0
        Added to the variance. With 0 the result does not depend on the units of the data, and a constant feature is
        only centered: one whose spread may be rounding of its values, decided as StandardScaler does [2]_, but for no
        more than 2**14 values, and for 128 if they are weighted.
    ddof : float, default=0
        ``running_var_`` divides by ``n - ddof`` and is NaN where that is not positive. n is the number of
        values, or the sum of their weights; with `momentum`, of a batch. PyTorch's is 1. Weights that are less than 1
        on average must sum to more than `ddof`; weights normalized to 1 go with 0 only.
    with_mean : bool, default=True
        Center.
    with_std : bool, default=True
        Scale to unit variance.
    gamma : array-like of shape (n_features,), optional
        Scale of the result, 1 if not given.
    beta : array-like of shape (n_features,), optional
        Shift of the result, 0 if not given.
    clip : float, optional
        Limit what :meth:`transform` returns to ``[-clip, clip]``, after `gamma` and `beta`; NaN stays NaN.
        :meth:`inverse_transform` cannot tell what was clipped: that comes back as the limit. A limit beyond the type of
        the result is the largest number of that type. Not for arrays on a GPU.
    channel_axis : int, optional
        The axis of dense X that holds the features: 1 for images (N, C, H, W), -1 for (N, H, W, C). Then a feature
        has a value per sample and position, samples lie along the first other axis, names are not looked at, and
        the result is an array. By default X is strictly (n_samples, n_features).
    batch_size : int, optional
        :meth:`fit` takes so many samples at a time, in their order, as :meth:`partial_fit` would; a rest too small
        for `momentum` joins the batch before it. scikit-learn's callbacks (1.9 and later) see a step per batch. By
        default everything is one batch.
    dtype : {numpy.float32, numpy.float64}, optional
        Of what :meth:`transform` returns, whatever X is: integers and narrow floats are widened where they are read. By
        default the float of an array X, else float64. Not for arrays on a GPU.
    copy : bool, default=True
        With False, :meth:`transform` overwrites its input where it can.
    n_threads : int, optional
        Threads to use at most; by default what OpenMP, threadpoolctl and joblib allow, and no more than
        processors are idle. Results do not depend on it.

    Attributes
    ----------
    running_mean_ : ndarray of shape (n_features,), float64
        Running mean, read-only; NaN for a feature never observed.
    running_var_ : ndarray of shape (n_features,), float64
        Running variance, read-only, in the square of the unit of X; NaN for a feature never observed.
    mean_ : ndarray of shape (n_features,), float64, or None
        `running_mean_`, for code written for :class:`~sklearn.preprocessing.StandardScaler`; None where its is.
    var_ : ndarray of shape (n_features,), float64, or None
        `running_var_`; None with ``with_std=False``.
    scale_ : ndarray of shape (n_features,), float64, or None
        The divisor in use, ``sqrt(running_var_ + eps)`` or 1; None with ``with_std=False``.
    n_samples_seen_ : int, float or ndarray of shape (n_features,)
        Values seen per feature, or the sum of their weights; one number if equal for all features.
        Forgetting does not lower it.
    n_batches_seen_ : int
        Batches of the last :meth:`fit`, and of every :meth:`partial_fit` since.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,), str
        Names of the features, if X had names.

    See Also
    --------
    sklearn.preprocessing.StandardScaler : The same transform without batches that can be merged or forgotten.
    bncpu.batch_norm : The inference step as a function.

    Notes
    -----
    Changed parameters take effect at the next :meth:`fit` or :meth:`partial_fit`; another kind of running
    statistics needs :meth:`fit`.

    Threads may share a transformer. :meth:`transform`, :meth:`inverse_transform`, :meth:`save`, copying, pickling,
    being merged into another, and reading an attribute are safe beside anything, and each uses the state between
    two batches. Two attributes read one after the other may be of two states; those of a copy are of one. Several
    :meth:`partial_fit` or :meth:`merge` on one object at once are safe, but may lose batches: each is taken in whole
    or not at all. To learn in parallel, give each thread or process an object of its own and :meth:`merge` them.
    A parameter set while another thread learns may be set back.

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

    n_features_in_: int
    _state: State

    _doc_link_module = "bncpu"

    def __init__(
        self,
        *,
        momentum: float | None = None,
        halflife: float | datetime.timedelta | np.timedelta64 | str | None = None,
        window: int | None = None,
        eps: float = 0.0,
        ddof: float = 0,
        with_mean: bool = True,
        with_std: bool = True,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        clip: float | None = None,
        channel_axis: int | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike | None = None,
        copy: bool = True,
        n_threads: int | None = None,
    ) -> None:
        self.momentum = momentum
        self.halflife = halflife
        self.window = window
        self.eps = eps
        self.ddof = ddof
        self.with_mean = with_mean
        self.with_std = with_std
        self.gamma = gamma
        self.beta = beta
        self.clip = clip
        self.channel_axis = channel_axis
        self.batch_size = batch_size
        self.dtype = dtype
        self.copy = copy
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BatchNormTransformer:
        """Forget everything, then learn the exact statistics of X as one batch.

        The rows of X have no order here: with `momentum` or `halflife` too, the result is their plain mean
        and variance, from which :meth:`partial_fit` goes on. With `batch_size`, learn from X as a stream instead, which
        a `halflife` of time cannot: it warns. With `window`, learn the last `window` rows.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Or any shape with `channel_axis`. Numbers of any type are read as they are; on a GPU, float16, bfloat16,
            float32 and float64.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative; weight 2 is the same as the row twice. With `channel_axis` also a weight for each position, of
            the shape of X without its channels: 0 for padding. For an X of Dask that does not know its number of rows,
            an array or Series of Dask, cut as X is, with one weight for each row.

        Returns
        -------
        BatchNormTransformer
            Itself.

        Raises
        ------
        ValueError
            If X holds an infinity, its variance overflows float64, weights below 1 sum to no more than `ddof`, or
            an argument does not fit.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer().fit([[0.0], [4.0]]).scale_
        array([2.])
        """
        after = self._as_it_is()
        p = states.parameters(after)
        states.warn_of_pytorchs_momentum(p)
        own = p.kind
        states.warn_of_a_fit_without_times(own)
        kind = own if after.batch_size is not None else own.of_one_batch
        if after.batch_size is None and not is_watched(self) and after._fit_plain(X, sample_weight, p, kind, own):
            self._take(after)
            return self
        return self._fit(X, y, sample_weight, p, kind, after, new=True, batch_size=after.batch_size)

    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, times: Any = None
    ) -> BatchNormTransformer:
        """Learn from the next batch of a stream.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Or any shape with `channel_axis`. With `halflife` the rows are in the order of the stream, the last
            the most recent.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative. With `momentum` it weights within the batch only; with `halflife` a row ages the
            others by one row whatever its weight. With `channel_axis` also for each position, as in :meth:`fit`.
        times : array-like of shape (n_samples,), datetimes, optional
            When each row of X came, if `halflife` is a duration: NumPy's datetime64, a column of pandas, polars or
            pyarrow, or a list of Python's datetime; in order, none missing, and none before the last batch. Those
            without a time zone are taken as UTC.

        Returns
        -------
        BatchNormTransformer
            Itself.

        Raises
        ------
        ValueError
            As :meth:`fit`; if X has another width or other names than before; with `momentum`, if a
            feature has only one value in X; or if `times` fall or there is no need of them.
        TypeError
            If `times` are no datetimes, or missing where `halflife` is a duration.

        Examples
        --------
        >>> import numpy as np
        >>> from bncpu import BatchNormTransformer
        >>> recent = BatchNormTransformer(halflife=1).partial_fit([[0.0], [0.0], [3.0]])
        >>> recent.partial_fit([[7.0]]).running_mean_.round(2)
        array([4.53])
        >>> recent = BatchNormTransformer(halflife=np.timedelta64(1, "D"))
        >>> recent.partial_fit([[0.0], [3.0]], times=np.array(["2020-01-01", "2020-01-02"], "M8[D]")).running_mean_
        array([2.])
        """
        if times is None and not is_watched(self) and self._learn_plain(X, sample_weight):
            return self
        after = self._as_it_is()
        p = states.parameters(after)
        new = "_state" not in vars(after)
        if new:
            states.warn_of_pytorchs_momentum(p)
        else:
            continues(after._state.kind, p.kind)
        return self._fit(X, y, sample_weight, p, p.kind, after, new=new, batch_size=None, times=times)

    def fit_stream(self, batches: Iterable[Any], *, key: Any = None) -> BatchNormTransformer:
        """Forget everything, then learn each batch of an iterable as :meth:`partial_fit` does.

        Parameters
        ----------
        batches : iterable
            Of what :meth:`partial_fit` takes: a generator, a pyarrow RecordBatchReader or the batches of a
            dataset, a PyTorch DataLoader. Of a tuple, ``(X, y)``, and of a list of tensors, the first is the batch;
            any other list is one. Batches without rows are skipped. Weights do not fit in here: call
            :meth:`partial_fit` in a loop.
        key : str, int or callable, optional
            Which part of what `batches` gives is the batch: ``item[key]``, or ``key(item)``. For dicts and objects,
            and where the batch is not the first.

        Returns
        -------
        BatchNormTransformer
            Itself.

        Raises
        ------
        TypeError
            If `batches` is one batch, or the name of a file, or if a batch needs a `key`.
        ValueError
            If there is no batch.
        Exception
            What `batches` raises, or :meth:`partial_fit` on one of them, with a note that says which. The ones
            before it have been learned, `n_batches_seen_` in number; if it is the first, nothing has changed.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer().fit_stream([[float(i)], [i + 4.0]] for i in range(3)).running_mean_
        array([3.])
        """
        new = self._as_it_is()
        new._take(None)
        stream, n_learned = _door.stream(self, batches), 0
        try:
            for item in stream:
                batch = _door.of_stream(item, key)
                if _door.is_empty(batch):
                    continue
                learner = self if n_learned else new
                learner.partial_fit(batch)
                if learner is new:
                    self._take(new)
                n_learned += 1
        except Exception as error:
            error.add_note(f"in batch {n_learned + 1} of the stream")
            raise
        _door.at_least_one(n_learned)
        return self

    def _as_it_is(self) -> BatchNormTransformer:
        """A shallow copy: a consistent snapshot while other threads replace the state."""
        now = object.__new__(type(self))
        now.__dict__.update(vars(self))
        return now

    def _apart(self) -> BatchNormTransformer:
        """As `_as_it_is`, with what `set_output` changes in place of its own."""
        now = self._as_it_is()
        now.__dict__.update({name: dict(value) for name, value in vars(now).items() if type(value) is dict})
        return now

    def _fit_plain(self, X: Any, sample_weight: Any, p: Parameters, kind: Kind, own: Kind) -> bool:
        """Fit a plain array as `kind` does, the short way; its state is of the kind `own`.

        False, with nothing changed, if the short way cannot take it.
        """
        x = _door.as_array(X)
        if x is None or x.ndim < 2:
            return False
        axis = 1 if p.channel_axis is None else p.channel_axis
        if not -x.ndim <= axis < x.ndim:
            return False
        p = p.for_features(self, x.shape[axis])
        state = _learned(None, kind, p, x, p.channel_axis, sample_weight, self.n_threads)
        if state is None:
            return False
        self.__dict__.pop("feature_names_in_", None)
        self.n_features_in_ = x.shape[axis]
        self._state = state._replace(kind=own)
        return True

    def _learn_plain(self, X: Any, sample_weight: Any) -> bool:
        """Learn from a plain array the short way; False, with nothing changed, if that cannot take it."""
        attributes = self.__dict__
        now: State | None = attributes.get("_state")
        if now is None or not _kernels.unchanged(attributes, now.parameters):
            return False
        # Asked here, too, and not only at the door: in a call of a few microseconds one more call shows.
        axis, x = now.parameters.channel_axis, X if type(X) is np.ndarray else _door.as_array(X)
        if x is None:
            ordered = axis is not None or now.kind.recency is not None or sample_weight is not None
            x = None if ordered else _door.plain(attributes, X)
            if x is None:
                return False
            x, axis = _layout.columns(x), 1
        elif "feature_names_in_" in attributes:
            return False
        state = _learned(now, now.kind, now.parameters, x, axis, sample_weight, self.n_threads)
        if state is None:
            return False
        self.__dict__ = {**attributes, "_state": state}
        return True

    @with_callbacks
    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        p: Parameters,
        kind: Kind,
        after: BatchNormTransformer,
        *,
        new: bool,
        batch_size: int | None,
        times: Any = None,
    ) -> BatchNormTransformer:
        """Learn X in `after`, a copy, batch by batch, as `kind` does; then replace the state in one assignment."""
        given = _door.samples(X, p.channel_axis)
        weights = (_dask.weights if given.lazy else _weights.of_samples)(sample_weight, given.X)
        batches = [slice(None)]
        sliceable = given.X if batch_size is None else _door.sliceable(given.X, p)
        cut = batch_size is not None and _num_samples(sliceable) > 0
        if cut:
            given = given._replace(X=sliceable)
            fewest = -(-kind.fewest_values(p.ddof) // math.prod(getattr(given.X, "shape", ())[2:]))
            batches = list(gen_batches(_num_samples(given.X), batch_size, min_batch_size=fewest))

        task = fit_task(self, len(batches) if cut else 0)
        watched = {"estimator": self, "X": X, "y": y, "metadata": {"sample_weight": sample_weight}}
        task.call_on_fit_task_begin(**watched)
        for part in batches:
            batch = _door.rows(given.X, part) if cut else given.X
            some = weights[part] if cut and weights is not None else weights
            step = task.subcontext("batch") if cut and task is not UNWATCHED else None
            if step is not None:
                step.call_on_fit_task_begin(estimator=self, X=as_given(batch))
            after._learn_batch(batch, some, p, kind, part.start, new=new and part is batches[0], times=times)
            so_far = functools.partial(_fitted, after)
            if step is not None and step.call_on_fit_task_end(
                estimator=self, X=as_given(batch), reconstruction_attributes=so_far
            ):
                break
        self._take(after)
        task.call_on_fit_task_end(**watched, reconstruction_attributes={})
        return self

    def _learn_batch(
        self, X: Any, weights: Any, p: Parameters, kind: Kind, first_row: int | None, *, new: bool, times: Any
    ) -> None:
        """Learn one batch of several, from row `first_row` on, or the only one: the short way, or else the long one."""
        learned = False
        if first_row is not None and p.channel_axis is None:
            learned = self._fit_plain(X, weights, p, kind, p.kind) if new else self._learn_plain(X, weights)
        if not learned:
            self._learn(X, weights, p, kind, first_row or 0, new=new, times=times)

    def _learn(
        self,
        X: Any,
        weights: NDArray[np.float64] | None,
        p: Parameters,
        kind: Kind,
        first_row: int,
        *,
        new: bool,
        times: Any,
    ) -> None:
        """Learn from one batch; a refused one may leave scikit-learn's attributes changed."""
        needs_times(kind, times)
        batch = _door.batch(self, X, p, reset=new)
        n_features = batch.shape[1]
        p = p.for_features(self, n_features)
        _door.stays_sparse(batch, p)
        _door.rows_in_memory(batch, weights, kind)
        names = getattr(self, "feature_names_in_", None)
        known = Running.empty(n_features) if new else self._state.running
        how: dict[str, Any] = {"halflife": kind.recency, "count_values": kind.averages_batches}
        when = None
        if kind.has_times:
            when = _times.nanoseconds(times, batch.shape[0])
            how["times"] = _times.since(when, known.last)
        # Overflow is looked for in the result, below.
        with np.errstate(over="ignore", invalid="ignore"):
            if batch.lazy:
                summary = _dask.summary(self, batch.X, weights, p, first_row, **how)
            else:
                summary = _batches.summary(batch, weights, self.n_threads, **how)
            _infinities.finite_moments(self, None if batch.lazy else batch, summary.moments, names, first_row)
            kind.check(self, summary, batch.ndim == 2 and summary.n_positive == 1)
            running = kind.update(known, summary, p.ddof, batch, weights)
        if when is not None:
            running = running._replace(last=int(when[-1]))
        _infinities.finite_moments(self, None, running.moments, names)
        before = (0, 0, 0) if new else (self._state.n_samples, self._state.n_batches, self._state.n_tracked)
        seen = added(before[0], kind.seen(summary), weights is not None, n_features)
        self._state = State.of(p.kind, running, seen, before[1] + 1, p, before[2])
        if weights is not None:
            states.heavy_enough(self._state, weights)

    def _take(self, other: BatchNormTransformer | None) -> None:
        """Put what another one was fitted to in the place of all that this one was, in one step; None: nothing."""
        kept = {name: value for name, value in vars(self).copy().items() if name not in FITTED}
        self.__dict__ = kept if other is None else kept | _fitted(other)

    def transform(self, X: Any, copy: bool | None = None, *, out: NDArray[Any] | None = None) -> Any:
        """Normalize X with the running statistics.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Or any shape with `channel_axis`. NaN stays NaN.
        copy : bool, optional
            False overwrites X where it is a writeable float array, and not broadcast. By default the parameter `copy`.
        out : ndarray of the shape and dtype of the result, optional
            Receives the result. Only for dense NumPy input, or a device array for device arrays, and without
            `set_output`.

        Returns
        -------
        ndarray, DataFrame, sparse matrix or array of X's library, of the shape of X
            Of the parameter `dtype`; by default the float of an array X, in native byte order, else float64.

        Raises
        ------
        ValueError
            If X holds an infinity (the contents of `out`, or of X with ``copy=False``, are undefined then),
            or its width or names differ from those of fit.

        Warns
        -----
        RuntimeWarning
            If finite X gives a result beyond its type, which is infinite then.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer(beta=[10]).fit([[0.0], [4.0]]).transform([[2.0], [4.0]])
        array([[10.],
               [11.]])
        """
        # The short way of plain arrays: whatever else there is, errors included, comes after it.
        attributes = self.__dict__
        if (
            "_state" in attributes
            and (out is not None or (self.copy if copy is None else copy) is True)
            and (self.n_threads is None or (type(self.n_threads) is int and self.n_threads > 0))
        ):
            state: State = attributes["_state"]
            y: Any = None
            axis, x = state.parameters.channel_axis, X if type(X) is np.ndarray else _door.as_array(X)
            if x is None:
                y = self._transform_frame(X) if out is None and axis is None else None
            elif "feature_names_in_" not in attributes and ((out is None and axis is None) or not _door.wrapped(self)):
                y = _kernels.apply_plain(x, axis, out, self.dtype, self.n_threads, state.derived, state.single)
                if y is None and out is None and axis is None:
                    y = self._transform_frame(x)
            if y is not None:
                return y if type(y) is np.ndarray and state.parameters.clip is None else self._completed(X, y, state)
        if "_state" not in attributes:
            check_is_fitted(self)
        now = self._as_it_is()
        p = now._state.parameters
        given = _door.to_transform(now, X, p)
        to = None if out is None else _door.out_of_transform(now, given, out)
        y = now._apply(given, now._state.forward, copy, to, states.dtype(now.dtype), p.clip)
        return y if out is None else out

    def _completed(self, X: Any, y: Any, state: State) -> NDArray[Any]:
        """The result of the short way, clipped; if X was overwritten with infinities in it, they are told of first."""
        clip = state.parameters.clip
        if type(y) is tuple:
            y, seen = y
            batch = _door.to_transform(self, X, state.parameters).X
            _infinities.of_results(self, batch, batch.X, seen, None, warns=clip is None)
        result: NDArray[Any] = _batches.clipped(y, clip)
        return result

    def _transform_frame(self, X: Any) -> NDArray[Any] | None:
        """Transform columns, of a frame with exactly the columns of fit or an array; else None."""
        now = self._as_it_is()
        x = _door.plain(vars(now), X)
        if x is None:
            return None
        state = now._state
        y = _kernels.apply_plain(_layout.columns(x), 1, None, now.dtype, now.n_threads, state.derived, state.single)
        if y is not None:
            return y[0].T
        batch = Dense(x)
        y, seen = batch.apply(state.forward, dtype=states.dtype(now.dtype), n_threads=now.n_threads)
        names, clip = getattr(now, "feature_names_in_", None), state.parameters.clip
        _infinities.of_results(now, batch, y, seen, names, warns=clip is None)
        return _batches.clipped(y, clip)

    def inverse_transform(self, X: Any, copy: bool | None = None) -> Any:
        """Undo :meth:`transform`.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Normalized data, or any shape with `channel_axis`. An array has no names; those of a DataFrame must be those
            of fit, in their order.
        copy : bool, optional
            As in :meth:`transform`.

        Returns
        -------
        ndarray, DataFrame, sparse matrix or array of X's library, of the shape of X
            Data in the units of fit; a DataFrame where `set_output` makes :meth:`transform` return one.

        Raises
        ------
        ValueError
            If gamma holds a 0, X an infinity, or the width or names of X differ from those of fit.

        Warns
        -----
        RuntimeWarning
            As :meth:`transform`.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer().fit([[0.0], [4.0]]).inverse_transform([[1.0]])
        array([[4.]])
        """
        check_is_fitted(self)
        now = self._as_it_is()
        state = now._state
        _door.invertible(now, state.forward.scale)
        given = _door.to_invert(now, X, state.parameters)
        x = now._apply(given, moments.fold_inverse(state.forward, state.parameters.beta), copy, None)
        # scikit-learn wraps the results of transform alone.
        return _wrap_data_with_container("transform", x, X, now) if _door.wrapped(now) else x

    def _apply(
        self,
        given: Samples,
        coefficients: Coefficients,
        copy: bool | None,
        out: Any,
        dtype: np.dtype[Any] | None = None,
        clip: float | None = None,
    ) -> Any:
        threads(self.n_threads)
        batch: Batch = given.X
        copy = self.copy if copy is None else copy
        if not isinstance(copy, (bool, np.bool_)):
            raise TypeError(f"copy must be True or False, got {shown(copy)}; out is given by its name")
        if batch.lazy:
            return given.back(_dask.apply(self, batch.X, coefficients, self._state.parameters, dtype, clip))
        if out is None and not copy and batch.can_be_overwritten(dtype):
            out = batch.X
        y, seen = batch.apply(coefficients, dtype=dtype, out=out, n_threads=self.n_threads)
        names = getattr(self, "feature_names_in_", None)
        _infinities.of_results(self, batch, y, seen, names, warns=clip is None)
        return given.back(_batches.clipped(y, clip))

    def merge(self, other: BatchNormTransformer) -> BatchNormTransformer:
        """Take in, in place, what another transformer has seen, as if this one had seen both streams.

        This one need not have seen anything yet, so that workers can be reduced onto a new one.

        Parameters
        ----------
        other : BatchNormTransformer
            With cumulative statistics, the same `ddof`, features and names. Not modified. One that has seen nothing
            changes nothing.

        Returns
        -------
        BatchNormTransformer
            Itself; `eps`, `gamma`, `beta` and the other parameters stay its own.

        Raises
        ------
        TypeError
            If `other` is not a BatchNormTransformer.
        ValueError
            If one of the two is not cumulative, they do not match, or the variance of both
            together overflows float64.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> left, right = BatchNormTransformer().fit([[0.0]]), BatchNormTransformer().fit([[4.0]])
        >>> left.merge(right).running_var_
        array([4.])
        """
        after = self._as_it_is()
        if isinstance(other, BatchNormTransformer):
            other = other._as_it_is()
        p = states.parameters(after)
        states.mergeable(after, other)
        if "_state" not in vars(other):
            return self
        theirs, n_features = other._state, other.n_features_in_
        if "_state" in vars(after):
            mine = after._state
        else:
            mine = State.of(p.kind, Running.empty(n_features), 0, 0, p)
            after.__dict__.update({name: value for name, value in vars(other).items() if name in FITTED[:2]})
        with np.errstate(over="ignore", invalid="ignore"):
            total = moments.merge(mine.running.moments, theirs.running.moments)
        _infinities.finite_moments(self, None, total, getattr(after, "feature_names_in_", None))
        seen = added(mine.n_samples, theirs.n_samples, states.is_weighted(theirs.n_samples), n_features)
        n_batches = mine.n_batches + theirs.n_batches
        after._state = State.of(theirs.kind, Running.of(total), seen, n_batches, p.for_features(after, n_features))
        self._take(after)
        return self

    def select(self, features: Any) -> BatchNormTransformer:
        """A transformer of some of the features: what this one does to them, and what it knows of them.

        Parameters
        ----------
        features : str, int, slice, or array-like of str, int or bool
            Names of fit, indices, or a mask of shape (n_features,). Each feature once, in the order wanted.

        Returns
        -------
        BatchNormTransformer
            A new one, which can go on learning. With `window` the moments are summed anew from the rows, so that their
            last bits may differ.

        Raises
        ------
        NotFittedError
            If nothing has been learned.
        TypeError
            If `features` is none of these.
        ValueError
            If a feature is unknown or selected twice, or none is selected.

        See Also
        --------
        bncpu.concatenate : The way back.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> bn = BatchNormTransformer().fit([[0.0, 1.0], [4.0, 3.0]])
        >>> bn.select([1, 0]).running_mean_
        array([2., 2.])
        >>> bn.select(1).transform([[3.0]])
        array([[1.]])
        """
        check_is_fitted(self)
        made = self._apart()
        names = getattr(made, "feature_names_in_", None)
        which = _names.indices_of(features, names, made.n_features_in_)
        for name in states.OF_FEATURES:
            values = getattr(made, name)
            if values is not None:
                states.finite_per_channel(name, values, made.n_features_in_)
                setattr(made, name, np.asarray(values)[which])
        made._state = made._state.of_features(which)
        made.n_features_in_ = len(which)
        if names is not None:
            made.feature_names_in_ = names[which]
        return made

    def report(self, X: Any, sample_weight: Any = None, *, min_shift: float = 0.1) -> Report:
        """Compare X with what was learned: which features have drifted, are constant, or are made smaller by eps.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            What :meth:`transform` takes; the data of training, or new data. Nothing is learned from it.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative.
        min_shift : float, default=0.1
            The least difference to remark on, if it is also more than chance explains: of means, in running standard
            deviations; of standard deviations, as a factor: with 0.1, 1.1 or more, or 1/1.1 or less. With 0 the size
            does not matter.

        Returns
        -------
        Report
            A table when printed, the largest difference first; HTML in a notebook; ``to_frame()`` is a DataFrame. A
            feature is nearly constant if its standard deviation is below 10 roundings of its mean to the type of X:
            10 * 2**-23 of the mean for float32, 10 * 2**-52 for float64 and integers. Differences have standard errors
            from effective sample sizes, ``sum(w)**2 / sum(w**2)`` [1]_. Values are taken as normal and independent,
            which the positions of an image are not; those behind the running statistics as of weight 1, with `momentum`
            in batches of one size. ``notes`` names the smallest batch of X that is normalized nearly alike by its own
            statistics, as in training, and by the running ones: root mean square difference below 0.5.

        Raises
        ------
        NotFittedError
            If nothing has been learned.
        ValueError
            If X holds an infinity, its width or names differ from those of fit, or `min_shift` is negative.

        References
        ----------
        .. [1] Kish (1965), "Survey Sampling", section 8.2.

        Examples
        --------
        >>> import numpy as np
        >>> from bncpu import BatchNormTransformer
        >>> X = np.random.default_rng(0).standard_normal((1000, 2))
        >>> report = BatchNormTransformer().fit(X).report(X[:100] + [0, 1])
        >>> report.columns["remarks"].tolist()
        ['', 'mean has moved']
        """
        check_is_fitted(self)
        now = self._as_it_is()
        state, p = now._state, now._state.parameters
        min_shift = real("min_shift", min_shift, low=0)
        given = _door.to_report(now, X, p)
        weights = _weights.of_samples(sample_weight, given if given.dense is None else given.dense)
        weights = None if weights is None else weights / np.max(weights)
        names = getattr(now, "feature_names_in_", None)
        found, _ = given.moments(weights, now.n_threads)
        _infinities.finite_moments(now, given, found, names)
        squares = found.count if weights is None else given.moments(weights**2, now.n_threads)[0].count
        return _report.made(state, names, given, found, squares, min_shift)

    @classmethod
    def from_statistics(
        cls,
        mean: ArrayLike,
        var: ArrayLike | None,
        n_samples: float | ArrayLike,
        *,
        feature_names: ArrayLike | None = None,
        **params: Any,
    ) -> BatchNormTransformer:
        """A transformer with statistics known from elsewhere, as if it had seen them in one batch.

        Parameters
        ----------
        mean : array-like of shape (n_features,)
            Mean of each feature. Copied. Beside an array, a number stands for all features, here and below. Arrays of
            other libraries must be in CPU memory. Values belong together by their position: an index of pandas does not
            count.
        var : array-like of shape (n_features,), or None
            Variance of each feature, with the divisor that `ddof` says. Copied. None, with ``with_std=False`` only, if
            it is not known: then it is taken as 0.
        n_samples : float or array-like of shape (n_features,)
            Number of values behind them, or their total weight; 0 for a feature never observed. It decides how
            much they weigh beside what comes later. Not with `momentum`: there they count as fully warmed up, so
            that the buffers of a layer continue exactly.
        feature_names : array-like of shape (n_features,), str, optional
            What becomes `feature_names_in_`: the columns of the DataFrames to come.
        **params : dict
            Parameters of the transformer.

        Returns
        -------
        BatchNormTransformer
            Fitted; `n_samples_seen_` is `n_samples`.

        Raises
        ------
        TypeError
            If an array does not hold real numbers, or a parameter is unknown.
        ValueError
            If shapes do not fit, `var` or `n_samples` is negative, a value is not finite, or a name is no string.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> layer = BatchNormTransformer.from_statistics([10.0], [4.0], 100, momentum=0.9)
        >>> layer.partial_fit([[20.0], [20.0]]).running_mean_
        array([11.])
        """
        made = cls(**params)
        p = states.parameters(made)
        ddof = 0 if p.kind.averages_batches else p.ddof
        mean, var, count = states.statistics(mean, var, n_samples, ddof, with_std=p.with_std)
        found = p.kind.start(mean, var, count, ddof)
        _infinities.finite_moments(made, None, found, None)
        made.n_features_in_ = len(mean)
        if feature_names is not None:
            made.feature_names_in_ = _names.feature_names(feature_names, len(mean))
        seen = collapsed(count, states.is_weighted(as_values("n_samples", n_samples)))
        made._state = State.of(p.kind, Running.of(found), seen, 1, p.for_features(made, len(mean)))
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the transformer to a file that :meth:`load` reads: versioned JSON with a checksum.

        Afterwards the file holds the whole new state; if anything interrupts, the whole old one. It tells nothing
        of time, host or user: the same state gives the same bytes. What is killed in the middle may leave a file
        ``.bncpu-*.tmp`` beside it, which hinders nothing and may be removed while nothing is saved in that folder.

        Parameters
        ----------
        path : str or path-like
            Exactly this file; nothing is appended to the name.

        Raises
        ------
        NotFittedError
            If nothing has been learned.
        TypeError
            If this is a subclass whose constructor does not take all parameters: :meth:`load` could not make it.
        OSError
            If the file cannot be written; FileExistsError if there is one that bncpu has not written.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> from bncpu import BatchNormTransformer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "state.json")
        ...     BatchNormTransformer().fit([[0.0], [4.0]]).save(path)
        ...     BatchNormTransformer.load(path).scale_
        array([2.])
        """
        check_is_fitted(self)
        _state_file.write(path, states.content(self._as_it_is()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BatchNormTransformer:
        """The transformer that :meth:`save` wrote to a file; nothing in the file is executed.

        Parameters
        ----------
        path : str or path-like
            A file written by :meth:`save`.

        Returns
        -------
        BatchNormTransformer
            Continues as the saved one would, to the bit. `gamma` and `beta` are float64 arrays; `set_output` and
            callbacks were not saved.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not a state file, is incomplete, was changed, or is of a later version.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> from bncpu import BatchNormTransformer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "state.json")
        ...     BatchNormTransformer(beta=[1]).fit([[0.0], [4.0]]).save(path)
        ...     BatchNormTransformer.load(path).transform([[2.0]])
        array([[1.]])
        """
        path = os.fsdecode(path)
        try:
            made: BatchNormTransformer = states.restored(cls, _state_file.read(path))
            return made
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path!r} is not a state file of BatchNormTransformer: {error}") from None

    @property
    def n_samples_seen_(self) -> int | float | NDArray[Any]:
        """Values seen per feature, or the sum of their weights; one number if equal for all features."""
        check_is_fitted(self)
        return self._state.n_samples

    @property
    def n_batches_seen_(self) -> int:
        """Batches of the last fit, and of every partial_fit since."""
        check_is_fitted(self)
        return self._state.n_batches

    @property
    def running_mean_(self) -> NDArray[np.float64]:
        """Running mean per feature; NaN for one never observed."""
        check_is_fitted(self)
        return _read_only(self._state.derived[0])

    @property
    def running_var_(self) -> NDArray[np.float64]:
        """Running variance per feature; NaN for one never observed."""
        check_is_fitted(self)
        return _read_only(self._state.derived[1])

    @property
    def mean_(self) -> NDArray[np.float64] | None:
        """`running_mean_`, or None if neither centering nor scaling."""
        check_is_fitted(self)
        state = self._state
        p = state.parameters
        return _read_only(state.derived[0]) if p.with_mean or p.with_std else None

    @property
    def var_(self) -> NDArray[np.float64] | None:
        """`running_var_`, or None if not scaling."""
        check_is_fitted(self)
        state = self._state
        return _read_only(state.derived[1]) if state.parameters.with_std else None

    @property
    def scale_(self) -> NDArray[np.float64] | None:
        """What :meth:`transform` divides by, or None if not scaling."""
        check_is_fitted(self)
        state = self._state
        return _read_only(state.derived[2]) if state.parameters.with_std else None

    def __sklearn_is_fitted__(self) -> bool:
        return "_state" in vars(self)

    @property
    def _doc_link_template(self) -> str:
        # The source page, which holds the documentation, at the address in the project's metadata.
        urls = dict(url.split(", ", 1) for url in importlib.metadata.metadata("bncpu").get_all("Project-URL", []))
        return urls.get("Source", "") + "/blob/HEAD/bncpu/transformer.py"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = not self.with_mean and self.channel_axis is None
        # Other array libraries are taken; but the tag's checks want transform to refuse another library than fit saw.
        tags.array_api_support = False
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"] if self.dtype is None else []
        return tags


def _fitted(t: BatchNormTransformer) -> dict[str, Any]:
    """The attributes that `t` was fitted to."""
    return {name: value for name, value in vars(t).items() if name in FITTED}


def _read_only(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """A view that cannot be written through: statistics and coefficients stay consistent, after pickle too."""
    view = a.view()
    view.flags.writeable = False
    return view


def _learned(
    now: State | None, kind: Kind, p: Parameters, X: Any, axis: int | None, sample_weight: Any, n_threads: int | None
) -> State | None:
    """The state after a plain array X, by one call of the kernels; None, if these cannot take it."""
    short = kind.short
    if short is None:
        return None
    values = np.zeros((5, X.shape[1 if axis is None else axis])) if now is None else now.running.values
    update = _kernels.update_plain(X, axis, sample_weight, n_threads, values, *short, p.ddof)
    if update is None:
        return None
    values, batch, missing = update
    before, n_batches, n_tracked = (0, 0, 0) if now is None else (now.n_samples, now.n_batches, now.n_tracked)
    weighted = sample_weight is not None
    # How many values of each feature X holds, or their weight, where none is missing.
    seen: Any = batch[0, 0].item() if weighted else X.size // batch.shape[1]
    if missing or type(before) not in (int, float) or before >= 2**52:
        seen = added(before, batch[0] if missing else np.full(batch.shape[1], float(seen)), weighted, batch.shape[1])
    else:
        seen = before + seen
    after = State.of(kind, Running(values), seen, n_batches + 1, p, n_tracked)
    # The long way says whether weights are too light for ddof.
    return None if weighted and p.ddof and np.isnan(after.derived[1]).all() else after
