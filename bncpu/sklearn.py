"""StandardScaler and scale of scikit-learn on our kernels, for code that is to stay as it is.

Arguments, attributes and messages are those of scikit-learn, and its code decides what is constant. Ours are the passes
over the data. A call that the kernels cannot do is handed to scikit-learn's own method: :func:`calls` says which, and
why.
"""

from __future__ import annotations

import collections
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
import sklearn.preprocessing
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.preprocessing._data import _handle_zeros_in_scale, _is_constant_feature
from sklearn.utils import assert_all_finite, check_array
from sklearn.utils.validation import FLOAT_DTYPES, _check_sample_weight, validate_data

from bncpu import _door, _kernels, moments
from bncpu._batches import Dense
from bncpu._compat import frame_library, is_watched
from bncpu.moments import Coefficients, Moments

__all__ = ["StandardScaler", "calls", "scale"]

THEIRS = {
    name: vars(sklearn.preprocessing.StandardScaler)[name] for name in ("partial_fit", "transform", "inverse_transform")
}

LOGGER = logging.getLogger("bncpu.accel")
if os.environ.get("BNCPU_ACCEL_LOG", "0") not in ("", "0"):
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(logging.StreamHandler())
    LOGGER.propagate = False
    LOGGER.handlers[-1].setFormatter(logging.Formatter("%(name)s: %(message)s"))


class _NotOurs(Exception):
    """Why scikit-learn has to do a call."""


# What scalers have learned, not rounded, by the identity of their `mean_`: another attribute would be seen.
_exact: dict[int, tuple[weakref.ref[Any], Moments]] = {}

_counter: collections.Counter[tuple[str, str]] = collections.Counter()
_counting = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_counting.acquire, after_in_parent=_counting.release, after_in_child=_counting.release)


def calls() -> dict[str, int]:
    """How often a call was done by our kernels, or by scikit-learn's code, and why, in this process.

    ``fit`` is counted as ``partial_fit``, which it calls. Workers count for themselves.

    Returns
    -------
    dict of str to int
        A sentence for each kind of call, such as ``"scale: scikit-learn, because copy is False"``, and how many there
        were.

    Examples
    --------
    >>> from bncpu.sklearn import StandardScaler, calls
    >>> before = calls()
    >>> fitted = StandardScaler().fit([[0.0], [4.0]])
    >>> {call: n - before.get(call, 0) for call, n in calls().items() if n > before.get(call, 0)}
    {'StandardScaler.partial_fit: bncpu': 1}
    """
    with _counting:
        return {_sentence(*call): n for call, n in sorted(_counter.items())}


def _sentence(name: str, why: str) -> str:
    return f"{name}: {f'scikit-learn, because {why}' if why else 'bncpu'}"


def _done(name: str, why: str, X: Any) -> None:
    with _counting:
        _counter[name, why] += 1
    if LOGGER.isEnabledFor(logging.INFO):
        kind = " ".join(str(part) for part in (getattr(X, "dtype", ""), getattr(X, "shape", "")) if str(part))
        LOGGER.info("%s of %s", _sentence(name, why), f"{type(X).__name__} {kind}".rstrip())


def _instead_of(theirs: Any, name: str) -> Callable[[Any], Any]:
    """Decorate what does the same as `theirs`, a function of scikit-learn, or raises _NotOurs before it changes X."""

    def decorated(ours: Any) -> Any:
        @functools.wraps(theirs)
        def call(*args: Any, **kwargs: Any) -> Any:
            why = ""
            try:
                result = ours(*args, **kwargs)
            except _NotOurs as reason:
                why = str(reason)
            except TypeError:
                if _fit_together(theirs, args, kwargs):
                    raise
                why = "the arguments are wrong"
            _done(name, why, kwargs.get("X", args[-1 if len(args) == 1 else name != "scale"] if args else None))
            return theirs(*args, **kwargs) if why else result

        return call

    return decorated


def _fit_together(function: Any, args: Any, kwargs: Any) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class StandardScaler(sklearn.preprocessing.StandardScaler):  # numpydoc ignore=PR02
    """The StandardScaler of scikit-learn, with passes over the data that are faster and more exact.

    It takes, gives, raises and warns as :class:`sklearn.preprocessing.StandardScaler` [1]_ does, and is one.
    Its attributes can be set. A pickle of it can be read without bncpu: it becomes scikit-learn's own then.

    Statistics and results differ from scikit-learn's by rounding errors, mostly scikit-learn's. In ``partial_fit`` a
    feature that is missing from a whole batch keeps its statistics, where scikit-learn's become NaN, and a sum of
    weights is not cut to a whole number before a batch without weights. Warnings of numerical issues are not
    given where there are none: in ``scale``, and for a feature of which nothing is known.

    Our kernels read dense X: arrays of any number type and memory order, lists, DataFrames. Sparse X, arrays on a
    device, negative weights, callbacks, and whatever is refused, are left to scikit-learn's own methods.

    Parameters
    ----------
    copy : bool, default=True
        If False, :meth:`transform` overwrites a float array that is in one piece.
    with_mean : bool, default=True
        Center.
    with_std : bool, default=True
        Scale to unit variance.

    See Also
    --------
    bncpu.patch_sklearn : The same for every StandardScaler of a program.
    bncpu.BatchNormTransformer : Merges, forgets, takes images, saves itself.

    References
    ----------
    .. [1] Pedregosa et al. (2011), "Scikit-learn: Machine Learning in Python", JMLR 12, 2825-2830.

    Examples
    --------
    >>> from bncpu.sklearn import StandardScaler
    >>> scaler = StandardScaler().fit([[0.0], [4.0]])
    >>> scaler.mean_, scaler.scale_
    (array([2.]), array([2.]))
    >>> scaler.transform([[4.0]])
    array([[1.]])
    """

    @_instead_of(THEIRS["partial_fit"], "StandardScaler.partial_fit")
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> StandardScaler:
        """Learn from the next batch; documented by scikit-learn."""
        _check_parameters(self)
        if is_watched(self):
            raise _NotOurs("it has callbacks")
        new = not hasattr(self, "n_samples_seen_")
        x, validated = _numbers(self, X, reset=new)
        width = x.shape[1]
        if new and not validated:
            self.__dict__.pop("feature_names_in_", None)
            self.n_features_in_ = width
        known, n_samples, has_var = _known(self, width)
        dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
        weights = None if sample_weight is None else _weights(sample_weight, x, dtype)
        after, found = _learned(x, weights, known)
        seen = n_samples + found.count.astype(_dtype_of_counts(dtype, weights is not None))
        if np.max(seen) == np.min(seen):  # as scikit-learn does
            seen = seen[0]
        mean, var, scale = _mean(after), moments.variance(after), None
        if self.with_std:
            constant = _is_constant_feature(var, mean, seen)
            scale = _handle_zeros_in_scale(np.sqrt(var), copy=False, constant_mask=constant)
        self.n_samples_seen_, self.mean_, self.var_, self.scale_ = seen, mean, var if has_var else None, scale
        key = id(mean)
        _exact[key] = weakref.ref(mean, lambda _: _exact.pop(key, None)), after
        return self

    @_instead_of(THEIRS["transform"].__wrapped__, "StandardScaler.transform")
    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Center and scale; documented by scikit-learn."""
        _check_parameters(self)
        mean, scale = _fitted(self)
        x, _ = _numbers(self, X, reset=False)
        if scale is not None:
            with np.errstate(divide="ignore", over="ignore"):
                scale = 1 / scale
            if np.isinf(scale).any():
                raise _NotOurs("scale_ has been set to something else")
        return _applied(x, mean, scale, None, _may_overwrite(self, X, x, copy))

    @_instead_of(THEIRS["inverse_transform"], "StandardScaler.inverse_transform")
    def inverse_transform(self, X: Any, copy: bool | None = None) -> Any:
        """Undo `transform`; documented by scikit-learn."""
        _check_parameters(self)
        mean, scale = _fitted(self)
        x = _plain(X)
        if x is None:
            _refuse(X)
            x = check_array(X, dtype=FLOAT_DTYPES, ensure_all_finite="allow-nan")
        if x.shape[1] != self.n_features_in_:
            raise _NotOurs("X has another width than in fit")
        return _applied(x, None, scale, mean, _may_overwrite(self, X, x, copy))

    def _get_doc_link(self) -> str:
        link: str = sklearn.preprocessing.StandardScaler()._get_doc_link()
        return link

    def __copy__(self) -> StandardScaler:
        made = object.__new__(type(self))
        made.__dict__.update(vars(self))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is not StandardScaler:
            return super().__reduce_ex__(protocol)
        # The class that is found where this is read: ours, or without us scikit-learn's.
        package = _Later(getattr, _Later(importlib.util.find_spec, "bncpu"), "name", "")
        module = _Later(dict.get, {"bncpu": __name__}, package, "sklearn.preprocessing")
        kind = _Later(getattr, _Later(importlib.import_module, module), "StandardScaler")
        return object.__new__, (kind,), {**vars(self), "_sklearn_version": sklearn.__version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        version, current = state.get("_sklearn_version", sklearn.__version__), sklearn.__version__
        if version != current:
            names = {"current_sklearn_version": current, "original_sklearn_version": version}
            warnings.warn(InconsistentVersionWarning(estimator_name=type(self).__name__, **names), stacklevel=2)
        self.__dict__.update({name: value for name, value in state.items() if name != "_sklearn_version"})


class _Later:
    """What pickle and deepcopy take for the result of a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@_instead_of(sklearn.preprocessing.scale, "scale")
def scale(X: Any, *, axis: int = 0, with_mean: bool = True, with_std: bool = True, copy: bool = True) -> Any:
    """Standardize along an axis; documented by scikit-learn."""
    given: tuple[Any, ...] = with_mean, with_std, copy, axis
    if [type(value) for value in given] != [bool, bool, bool, int] or axis not in (0, 1):
        raise _NotOurs("an argument is of another type, or none that is allowed")
    if not (with_mean or with_std):
        raise _NotOurs("there is nothing to do")
    if not copy:
        raise _NotOurs("copy is False")
    x = _plain(X)
    if x is None:
        _refuse(X)
        if not isinstance(X, (list, tuple, np.ndarray)) and frame_library(X) is None:
            raise _NotOurs("X is of another type")
        try:
            x = check_array(X, dtype=FLOAT_DTYPES, ensure_all_finite="allow-nan")
        except (TypeError, ValueError):
            raise _NotOurs("X has not 2 axes, or is refused") from None
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    x = x.T if axis else x
    _, found = _learned(x, None, np.zeros((5, x.shape[1])))
    if not found.count.all():
        raise _NotOurs("a feature has no values")
    divisor = None
    if with_std:
        divisor = np.sqrt(moments.variance(found))
        constant = divisor < 10 * np.finfo(dtype).eps
        if divisor[constant].any():
            raise _NotOurs("a feature is nearly constant")
        divisor[constant] = 1
        divisor = 1 / divisor
    y = _applied(x, found.mean if with_mean else None, divisor, None, False, found.mean_lo if with_mean else 0.0)
    return y.T if axis else y


def _check_parameters(scaler: Any) -> None:
    if not (type(scaler.with_mean) is type(scaler.with_std) is type(scaler.copy) is bool):
        raise _NotOurs("a parameter is not True or False")
    if not (scaler.with_mean or scaler.with_std):
        raise _NotOurs("it neither centers nor scales")


def _refuse(X: Any) -> None:
    """Leave to scikit-learn what it does not make an array in memory of."""
    if issparse(X) or (hasattr(X, "columns") and hasattr(X, "sparse")):  # a frame whose columns all are
        raise _NotOurs("X is sparse")
    if get_config()["array_api_dispatch"] and type(X) is not np.ndarray:
        raise _NotOurs("array_api_dispatch is on")


def _plain(X: Any) -> NDArray[Any] | None:
    """X, if it is an array that the kernels read as it is and scikit-learn would take, or a list of rows; else None."""
    if type(X) is list and X and type(X[0]) is list:
        try:
            X = np.asarray(X)
        except (TypeError, ValueError):  # rows of several lengths
            return None
        if X.dtype.kind == "f":  # of NumPy's narrow floats, too
            X = X.astype(np.float64, copy=False)
    if type(X) is not np.ndarray or X.ndim != 2 or not X.size:
        return None
    return X if X.dtype.kind in "biuf" and X.dtype.itemsize <= 8 and X.dtype.isnative else None


def _numbers(scaler: Any, X: Any, *, reset: bool) -> tuple[NDArray[Any], bool]:
    """X as an array, and whether scikit-learn has taken its width and names.

    What is wrong with X is said by scikit-learn; infinities that it has not looked for are found by the kernels.
    """
    x, fitted = _plain(X), vars(scaler)
    if x is not None:
        known = "feature_names_in_" not in fitted and x.shape[1] == fitted.get("n_features_in_")
        if reset or known:
            return x, False
    elif frame_library(X) == "pandas":  # tables of other libraries become float64 in scikit-learn
        if reset:
            validate_data(scaler, X, reset=True, skip_check_array=True)
        x = _door.plain(fitted, X) if "n_features_in_" in fitted else None
        if x is not None:
            return x, True
    _refuse(X)
    return validate_data(scaler, X, dtype=FLOAT_DTYPES, ensure_all_finite="allow-nan", reset=reset), True


@functools.cache
def _dtype_of_counts(dtype: np.dtype[Any], weighted: bool) -> np.dtype[Any]:
    """What `n_samples_seen_` is in this version of scikit-learn."""
    x = np.zeros((1, 1), dtype)
    fitted = THEIRS["partial_fit"](sklearn.preprocessing.StandardScaler(), x, None, np.ones(1) if weighted else None)
    n_samples: np.dtype[Any] = fitted.n_samples_seen_.dtype
    return n_samples


def _weights(sample_weight: Any, x: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    try:
        weights = np.ascontiguousarray(_check_sample_weight(sample_weight, x, dtype=dtype), np.float64)
    except (TypeError, ValueError):
        raise _NotOurs("weights are refused") from None
    if weights.min() < 0 or not weights.any():
        raise _NotOurs("weights are negative, or all 0")
    return weights


def _mean(of: Moments) -> NDArray[np.float64]:
    return np.where(of.count > 0, of.mean, np.nan)


def _known(scaler: Any, width: int) -> tuple[NDArray[np.float64], Any, bool]:
    """Count, mean, mean_lo, m2 and 0 of what a scaler has learned, as our merge wants it.

    And its `n_samples_seen_`, and whether it has a variance. The attributes are rounded. Where they are still as
    this module has set them, the moments behind them go on.
    """
    values = np.zeros((5, width))
    fitted = vars(scaler)
    n_samples, mean, var, scale = (fitted.get(name, fitted) for name in ("n_samples_seen_", "mean_", "var_", "scale_"))
    if n_samples is mean is var is scale is fitted:
        return values, 0, scaler.with_std
    has_var = var is not None
    try:
        values[0], values[1] = n_samples, mean
        if has_var or scaler.with_std:
            values[3] = var * values[0]
        if scale is fitted:
            raise TypeError
    except (TypeError, ValueError):
        raise _NotOurs("its attributes have been set to something else") from None
    _, last = _exact.get(id(mean), (None, Moments(*values[:4])))
    if np.array_equal(values[0], last.count) and np.array_equal(mean, _mean(last), equal_nan=True):
        values[1], values[2] = last.mean, last.mean_lo
        if has_var and np.array_equal(var, moments.variance(last), equal_nan=True):
            values[3] = last.m2
    values[:, values[0] == 0] = 0  # their mean is NaN
    if not np.isfinite(values).all():
        raise _NotOurs("its attributes are not finite")
    return values, n_samples, has_var


def _learned(
    x: NDArray[Any], weights: NDArray[np.float64] | None, known: NDArray[np.float64]
) -> tuple[Moments, Moments]:
    """The moments of what is known and x together, and those of x."""
    update = _kernels.update_plain(x, None, weights, None, known, None, None, 0.0)
    if update is not None:
        return Moments(*update[0][:4]), Moments(*update[1])
    with np.errstate(over="ignore", invalid="ignore"):
        found, _ = Dense(x).moments(weights, None)
        after = moments.merge(Moments(*known[:4]), found)
    if not np.isfinite(after.mean + after.m2).all():
        raise _NotOurs("X holds an infinity, or its variance overflows float64")
    return after, found


def _fitted(scaler: Any) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """The mean and the scale to apply; None for what is not asked for."""
    if hasattr(scaler, "__sklearn_is_fitted__"):
        raise _NotOurs("its class says itself whether it is fitted")
    fitted = vars(scaler)
    found: list[Any] = []
    for wanted, name in ((scaler.with_mean, "mean_"), (scaler.with_std, "scale_")):
        value = fitted.get(name) if wanted else None
        if wanted and not (type(value) is np.ndarray and value.shape == (fitted.get("n_features_in_"),)):
            raise _NotOurs("it is not fitted" if value is None else f"{name} has been set to something else")
        found.append(None if value is None else value.astype(np.float64, copy=False))
    return found[0], found[1]


def _may_overwrite(scaler: Any, X: Any, x: NDArray[Any], copy: Any) -> bool:
    if (scaler.copy if copy is None else copy) or x is not X or x.dtype.kind != "f":
        return False
    if not (x.flags.writeable and x.flags.forc):
        raise _NotOurs("copy is False, and X is read-only or not in one piece")
    try:
        with np.errstate(all="ignore"):
            assert_all_finite(x, allow_nan=True)
    except ValueError:
        raise _NotOurs("X holds an infinity") from None
    return True


def _applied(
    x: NDArray[Any],
    mean: NDArray[np.float64] | None,
    scale: NDArray[np.float64] | None,
    shift: NDArray[np.float64] | None,
    overwrite: bool,
    mean_lo: NDArray[np.float64] | float = 0.0,
) -> NDArray[Any]:
    """``(x - mean) * scale + shift``, each of the three being left out where it is None; over x, or a new array."""
    learned = np.zeros((4, x.shape[1]))
    learned[0] = 1
    if mean is not None:
        learned[1], learned[2] = mean, mean_lo
    values, single = _kernels.fold_running(learned, None, 0.0, 0.0, True, False, scale, shift)
    out = x if overwrite else None
    y = _kernels.apply_plain(x, None, out, None, None, values, single)
    if type(y) is np.ndarray:
        return y
    made, seen = (x, y[1]) if type(y) is tuple else Dense(x).apply(Coefficients(*values[3:]), out=out)
    if seen and not overwrite:
        raise _NotOurs("X holds an infinity, or a result is beyond its type")
    if seen:
        warnings.warn("overflow encountered in divide", RuntimeWarning, stacklevel=4)
    result: NDArray[Any] = x if overwrite else made
    return result
