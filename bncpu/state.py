"""What a fitted transformer knows: one immutable `State`, which is only ever replaced as a whole, and its JSON."""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _scalars, _times, moments
from bncpu._checks import as_values, per_channel, required, variances
from bncpu._infinities import some
from bncpu._scalars import Real, Whole, shown
from bncpu.moments import Coefficients, Moments
from bncpu.running import Kind, Layer, Recent, Running, kind_of

Float64 = NDArray[np.float64]

NANOSECONDS = "nanoseconds"  # the key of a duration in JSON


class Parameters(NamedTuple):
    """Checked constructor parameters: those that statistics and coefficients depend on.

    `_kernels.unchanged` reads them by position: append only, and add a line there.
    """

    momentum: float | None
    halflife: float | np.timedelta64 | None  # rows, or nanoseconds
    eps: float
    ddof: float
    with_mean: bool
    with_std: bool
    channel_axis: int | None
    gamma: Float64 | None = None
    beta: Float64 | None = None
    window: int | None = None
    clip: float | None = None

    @property
    def kind(self) -> Kind:
        """The kind of running statistics."""
        return kind_of(self.momentum, self.halflife, self.window)

    def for_features(self, t: Any, n_features: int) -> Parameters:
        """With gamma and beta of `t`, which need so many values."""
        if t.gamma is None and t.beta is None:
            return self
        gamma, beta = (finite_per_channel(name, getattr(t, name), n_features) for name in ("gamma", "beta"))
        return self._replace(gamma=gamma, beta=beta)


# Of these one may be given: the kind of running statistics.
KINDS = ("momentum", "halflife", "window")

# Parameters with a value for each feature, and what stands for None.
OF_FEATURES = {"gamma": 1.0, "beta": 0.0}

# What near-constant features are judged by where weights do not tell how many values there are: docs/numerics.md, 4.
UNKNOWN_NUMBER = 128.0

NUMBERS: dict[str, Real | Whole] = {
    "momentum": Real(0, 1, "left", optional=True),
    "window": Whole(1),
    "eps": Real(0),
    "ddof": Real(0),
    "clip": Real(0, None, "neither", optional=True),
    "channel_axis": Whole(),
    "batch_size": Whole(1),
    "n_threads": Whole(1),
}


def parameters(t: Any) -> Parameters:
    """Check the constructor parameters of a BatchNormTransformer; gamma and beta wait for the number of features."""
    found = {"halflife": _times.halflife(t.halflife), **_scalars.parameters(t, NUMBERS)}
    several = [name for name in KINDS if found[name] is not None]
    if len(several) > 1:
        got = " and ".join(f"{name}={getattr(t, name)}" for name in several)
        raise ValueError(f"{' and '.join(several)} exclude each other, got {got}")
    for name in ("with_mean", "with_std", "copy"):
        value = getattr(t, name)
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {shown(value)}")
    dtype(t.dtype)
    found.update(with_mean=bool(t.with_mean), with_std=bool(t.with_std))
    return Parameters(**{name: found[name] for name in Parameters._fields if name in found})


def dtype(value: Any) -> np.dtype[Any] | None:
    """Check the parameter dtype of a transformer."""
    if value is None:
        return None
    try:
        found = np.dtype(value)
    except TypeError:
        found = None
    if found not in (np.float32, np.float64) or not found.isnative:
        raise ValueError(f"dtype must be numpy.float32, numpy.float64 or None, got {shown(value)}")
    return found


def warn_of_pytorchs_momentum(p: Parameters) -> None:
    """Warn of a momentum that looks like PyTorch's."""
    if p.momentum is not None:
        _scalars.warn_of_pytorchs(p.momentum, "BatchNormTransformer's", stacklevel=3)


def warn_of_a_fit_without_times(kind: Kind) -> None:
    """Warn that `fit` cannot forget by time, as in a Pipeline."""
    if kind.has_times:
        warnings.warn(
            "fit knows no times: all rows weigh alike, whatever the halflife; partial_fit(X, times=...) forgets",
            stacklevel=3,
        )


def finite_per_channel(name: str, a: ArrayLike | None, n_channels: int) -> Float64 | None:
    """A parameter with one finite value per channel, as float64; None stays None."""
    values = per_channel(name, a, n_channels)
    if values is not None and not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}")
    return values


class State(NamedTuple):
    """What a fitted transformer knows. Never changed: a new one takes its place.

    Attributes
    ----------
    kind : Kind
        Of its running statistics, at the last fit.
    running : Running
    n_samples : int, float or ndarray of shape (n_features,)
        Values seen per feature, or the sum of their weights; one number if equal for all features.
    n_batches : int
    parameters : Parameters
        At the last fit: those that `transform` uses.
    derived : ndarray of shape (6, n_features), float64
        As `moments.fold_running` returns it: mean, variance, divisor, and the three `Coefficients`.
    single : ndarray of shape (3, n_features), float32, or None
        The coefficients, if float32 suffices for all features.
    n_tracked : int, default=0
        Batches that a layer of PyTorch says to have seen, of unknown sizes, beyond the one it counts as in `n_batches`.
    """

    kind: Kind
    running: Running
    n_samples: Any
    n_batches: int
    parameters: Parameters
    derived: Float64
    single: NDArray[np.float32] | None
    n_tracked: int = 0

    @classmethod
    def of(
        cls, kind: Kind, running: Running, n_samples: Any, n_batches: int, p: Parameters, n_tracked: int = 0
    ) -> State:
        """With all that is derived from the rest by the parameters `p`, which have gamma and beta."""
        # Where batches are averaged ddof has been applied to each, and the count is the weight seen so far.
        n_values, ddof = (n_samples / n_batches, 0.0) if kind.averages_batches else (None, p.ddof)
        if is_weighted(n_samples):
            n_values = UNKNOWN_NUMBER
        how = p.eps, p.with_mean, p.with_std, p.gamma, p.beta
        derived, single = moments.fold_running(running.values, n_values, ddof, *how)
        return cls(kind, running, n_samples, n_batches, p, derived, single, n_tracked)

    def of_features(self, which: NDArray[np.intp]) -> State:
        """Of some features, in the order of their indices."""
        p, n = self.parameters, self.n_samples
        own: dict[str, Any] = {
            name: None if a is None else a[which] for name, a in (("gamma", p.gamma), ("beta", p.beta))
        }
        n = collapsed(n[which], is_weighted(n)) if isinstance(n, np.ndarray) else n
        p = p._replace(**own)
        return State.of(self.kind, self.running.of_features(which), n, self.n_batches, p, self.n_tracked)

    @classmethod
    def beside(cls, parts: Sequence[State]) -> State:
        """Of the features of the first, then of the second, and so on; all of one kind and with the same parameters."""
        first = parts[0]
        n_batches = max(part.n_batches for part in parts)
        if first.kind.averages_batches and any(part.n_batches != n_batches for part in parts):
            raise ValueError(f"momentum averages batches: all must have learned {n_batches} of them")
        seen = [np.broadcast_to(part.n_samples, part.n_features) for part in parts]
        n_samples = collapsed(np.concatenate(seen), any(is_weighted(n) for n in seen))
        own = {
            name: joined([getattr(part.parameters, name) for part in parts], [len(n) for n in seen], default)
            for name, default in OF_FEATURES.items()
        }
        running, n_tracked = Running.beside([part.running for part in parts]), max(part.n_tracked for part in parts)
        return cls.of(first.kind, running, n_samples, n_batches, first.parameters._replace(**own), n_tracked)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self.derived.shape[1])

    @property
    def forward(self) -> Coefficients:
        """What `transform` applies."""
        return Coefficients(*self.derived[3:])

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Features without spread: of variance 0, or of one that may be rounding alone."""
        _, var, divisor = self.derived[:3]
        constant: NDArray[np.bool_] = (var == 0) | ((self.parameters.eps == 0) & (divisor == 1) & (var != 1))
        return constant

    @property
    def counts(self) -> Float64:
        """Values seen of each feature."""
        return np.broadcast_to(np.asarray(self.n_samples, np.float64), self.n_features)

    @property
    def effective_n(self) -> Float64:
        """Values of equal weight that would leave each mean as uncertain; infinite where a layer does not tell."""
        observed = self.running.moments.count
        n = self.kind.effective_n(self.counts, observed, self.n_batches)
        return np.where((self.counts == 0) & (observed > 0), np.inf, n)

    @property
    def values_per_batch(self) -> float | None:
        """Values of a feature in a batch, on average; None where a layer does not tell."""
        return None if isinstance(self.kind, Layer) else float(np.max(self.counts)) / self.n_batches


def joined(values: Sequence[Any], n_features: Sequence[int], default: float) -> Any:
    """Values of some features each, joined; None stands for the default of each feature, and for that of all."""
    if all(a is None for a in values):
        return None
    each = [np.full(n, default) if a is None else a for a, n in zip(values, n_features, strict=True)]
    return np.concatenate(each)


def is_weighted(count: Any) -> bool:
    """Whether numbers of values are sums of weights."""
    return not isinstance(count, int) and np.asarray(count).dtype.kind == "f"


def collapsed(counts: Float64, weighted: bool) -> Any:
    """One number if all features have the same count; integers unless weights were involved."""
    counts = counts.astype(np.float64 if weighted or np.max(counts) >= 2**53 else np.int64)
    return counts[0].item() if np.all(counts == counts[0]) else counts


def added(before: Any, seen: Any, weighted: bool, n_features: int) -> Any:
    """Numbers of values before, and so many more."""
    return collapsed(np.broadcast_to(before, n_features) + seen, weighted or is_weighted(before))


def statistics(mean: Any, var: Any, n_samples: Any, ddof: float, *, with_std: bool) -> tuple[Float64, Float64, Float64]:
    """Mean, variance and count of each feature of from_statistics, as new arrays; 0 where nothing was observed."""
    if var is None and not with_std:
        var = 0.0
    given = {"mean": mean, "var": var, "n_samples": n_samples}
    for name, a in given.items():
        if a is None:
            hint = ", which goes with with_std=False only" if name == "var" else ""
            raise TypeError(f"{name} must be an array of shape (n_features,), or a number; got None{hint}")
    arrays = {name: as_values(name, a) for name, a in given.items()}
    n_features = next((a.size for a in arrays.values() if a.ndim), None)
    if n_features is None:
        raise ValueError(
            "mean must have shape (1,) for one feature, got a number; numbers go with arrays of the others"
        )
    mean, var, count = (np.full(n_features, a) if a.ndim == 0 else a for a in arrays.values())
    mean, var = required("mean", mean, n_features), variances("var", var, n_features)
    if not n_features:
        raise ValueError("mean must have shape (n_features,) with at least one feature, got an empty array")
    count = required("n_samples", count, n_features)
    if not np.all(count >= 0) or np.any(np.isinf(count)):
        raise ValueError(f"n_samples must be finite and not negative, got {shown(n_samples)}")
    seen = count > 0
    for name, values in (("mean", mean), ("var", var)):
        bad = np.flatnonzero(seen & ~np.isfinite(values))
        if len(bad):
            raise ValueError(f"{name} must be finite where n_samples is not 0, got {values[bad[0]]} at {some(bad)}")
    few = np.flatnonzero(seen & moments.too_small(count, ddof))
    if len(few):
        raise ValueError(f"n_samples must be above ddof={ddof:g}, got {count[few[0]]:g} at {some(few)}")
    return np.where(seen, mean, 0.0), np.where(seen, var, 0.0), count


def heavy_enough(now: State, weights: Any) -> None:
    """Refuse weights, perhaps of Dask, if no feature has a variance and those above 0 are below 1 on average.

    Rows too few for ddof have none either, and may be followed by others.
    """
    count, ddof = now.running.moments.count, now.parameters.ddof
    count = count[count > 0]
    if not len(count) or now.kind.averages_batches or not np.all(moments.too_small(count, ddof)):
        return
    total, n_positive = (getattr(n, "compute", lambda n=n: n)() for n in (weights.sum(), (weights > 0).sum()))
    if total < n_positive:
        raise ValueError(
            f"sample_weight must sum to more than ddof={ddof:g} where it is below 1 on average, got {np.max(count):g}; "
            "multiply weights that are normalized by the number of rows, or use ddof=0"
        )


def mergeable(t: Any, other: Any) -> None:
    """Check that `t` can take in what `other` has seen."""
    if not isinstance(other, type(t)):
        raise TypeError(f"other must be a {type(t).__name__}, got {type(other).__name__}")
    states = [getattr(side, "_state", None) for side in (t, other)]
    for name, side, state in zip(("self", "other"), (t, other), states, strict=True):
        kinds = [parameters(side).kind] + ([] if state is None else [state.kind])
        kind = next((kind for kind in kinds if not kind.merges), None)
        if isinstance(kind, Layer):
            raise ValueError(f"merge needs the number of samples of both, which the layer that is {name} does not tell")
        if kind is not None:
            raise ValueError(f"merge needs cumulative statistics, whose order does not matter; {name} uses {kind.name}")
    for name in ("ddof", "channel_axis"):
        if getattr(t, name) != getattr(other, name):
            raise ValueError(f"other must have {name}={getattr(t, name)}, got {getattr(other, name)}")
    if None in states:
        return
    if t.n_features_in_ != other.n_features_in_:
        raise ValueError(f"other must have {t.n_features_in_} features, got {other.n_features_in_}")
    names: Any = getattr(t, "feature_names_in_", None)
    others: Any = getattr(other, "feature_names_in_", None)
    if (names is None) != (others is None) or not np.array_equal(names, others):
        first = 0 if names is None or others is None else int(np.flatnonzero(names != others)[0])
        expected, got = (None if a is None else shown(a[first:].tolist()) for a in (names, others))
        where = f", from feature {first} on" if first else ""
        raise ValueError(f"other must have the feature names {expected}, got {got}{where}")


def alike(parts: Sequence[Any]) -> None:
    """Check that transformers are of one kind, and have the same parameters, but for OF_FEATURES."""
    kinds = [part._state.kind for part in parts]
    other = next((kind for kind in kinds if kind.name != kinds[0].name), None)
    if other is not None:
        raise ValueError(f"transformers must have running statistics of one kind, got {kinds[0].name} and {other.name}")
    for of in (_given, _in_effect):
        first, *others = [of(t) for t in parts]
        for them in others:
            for name, value in them.items():
                if name not in OF_FEATURES and value != first[name]:
                    raise ValueError(f"transformers must have the same {name}, got {first[name]!r} and {value!r}")


# ---- JSON ----


def content(t: Any) -> dict[str, Any]:
    """What a state file holds of the fitted transformer `t`."""
    checked = parameters(t).for_features(t, t.n_features_in_)
    durations = {name: value for name, value in checked._asdict().items() if isinstance(value, np.timedelta64)}
    state, names = t._state, getattr(t, "feature_names_in_", None)
    kept = {
        "parameters": _to_keep(t, durations),
        "in_effect": _in_effect(t),
        "mode": state.kind.name,
        "n_features_in": t.n_features_in_,
        "feature_names_in": None if names is None else list(names),
        "n_samples_seen": _as_json(state.n_samples),
        "n_batches_seen": state.n_batches,
        **{name: _as_json(values) for name, values in state.running.moments._asdict().items()},
        "age": _as_json(state.running.age),
    }
    if state.n_tracked:
        kept["n_batches_tracked"] = state.n_tracked
    observed = state.running.moments.count > 0
    kept["mean"] = [value if seen else None for value, seen in zip(kept["mean"], observed, strict=True)]
    if state.kind.has_times:
        kept["last"] = state.running.last
    try:
        _as_fitted(type(t), kept)
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"save needs a class whose constructor takes the parameters of BatchNormTransformer, as load calls it; "
            f"{type(t).__name__} does not: {error}. Pickle it instead"
        ) from None
    if state.running.recent is not None:
        kept["recent"] = {
            name: _bytes(value) if isinstance(value, np.ndarray) else value
            for name, value in state.running.recent.stored().items()
        }
    return kept


def _given(t: Any) -> dict[str, Any]:
    """The constructor parameters of `t`, arrays as lists."""
    return {name: _as_json(value) for name, value in t.get_params().items()}


def _to_keep(t: Any, checked: dict[str, Any]) -> dict[str, Any]:
    """The constructor parameters of `t` for a state file; for some the values that were made of them.

    TypeError if one of a subclass would come back as another.
    """
    found = {}
    for name, value in t.get_params().items():
        if name in checked or name in ("gamma", "beta", "dtype"):
            found[name] = _as_json(checked.get(name, value))
            continue
        is_number = isinstance(value, (np.bool_, np.number, np.str_)) and not isinstance(value, np.timedelta64)
        found[name] = value.item() if is_number else value
        if not _is_kept(found[name]):
            raise TypeError(
                f"save takes parameters that are finite numbers, texts or lists of them, got {name}={shown(value)}"
            )
    return found


def _is_kept(value: Any) -> bool:
    """Whether `value` comes back from JSON as it was."""
    if type(value) is list:
        return all(map(_is_kept, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _in_effect(t: Any) -> dict[str, Any]:
    """The parameters at the last fit of `t`, for JSON."""
    return {name: _as_json(value) for name, value in t._state.parameters._asdict().items()}


def _as_json(value: Any) -> Any:
    """A parameter or statistic as what JSON knows: numbers in full precision, a dtype by its name."""
    if isinstance(value, np.timedelta64):
        return {NANOSECONDS: int(value.astype(np.int64))}
    if isinstance(value, (type, np.dtype)):
        return np.dtype(value).name
    return value if value is None else np.asarray(value).tolist()


def _parameters(kept: Any) -> dict[str, Any]:
    """Parameters of a state file, durations as such."""
    if not isinstance(kept, dict):
        raise TypeError(f"its parameters must be an object, got {type(kept).__name__}")
    return {name: _of_duration(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _of_duration(kept: dict[str, Any]) -> np.timedelta64:
    n = kept.get(NANOSECONDS)
    if len(kept) != 1 or type(n) is not int or not 0 < n < 2**63:
        raise ValueError(f"a duration must be {NANOSECONDS} from 1, got {shown(kept)}")
    return np.timedelta64(n, "ns")


def _bytes(a: NDArray[Any]) -> dict[str, Any]:
    """An array as base64 of its little-endian bytes."""
    little = a.astype(a.dtype.newbyteorder("<"))
    return {"dtype": little.dtype.str, "shape": list(a.shape), "base64": base64.b64encode(little.tobytes()).decode()}


def _of_bytes(name: str, kept: Any) -> NDArray[Any]:
    """Undo `_bytes`."""
    try:
        values = np.frombuffer(base64.b64decode(kept["base64"], validate=True), np.dtype(kept["dtype"]))
        values = values.reshape(kept["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array as bytes: {error}") from None
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold numbers, got {values.dtype}")
    return values.astype(values.dtype.newbyteorder("="))


def _as_fitted(cls: Any, kept: dict[str, Any]) -> tuple[Any, Parameters]:
    """A new transformer of the class `cls` with the parameters that were in effect, and these, checked."""
    made = cls(**{**_parameters(kept["parameters"]), **_parameters(kept["in_effect"])})
    return made, parameters(made)


def restored(cls: Any, kept: dict[str, Any]) -> Any:
    """Undo `content`: a transformer of the class `cls`; TypeError or ValueError if `kept` cannot be what that made."""
    arrays = _arrays(kept)
    age = arrays.pop("age")
    made, p = _as_fitted(cls, kept)
    made.n_features_in_ = n_features = kept["n_features_in"]
    if kept["feature_names_in"] is not None:
        made.feature_names_in_ = np.array(kept["feature_names_in"], dtype=object)
    seen = kept["n_samples_seen"]
    seen = np.array(seen) if isinstance(seen, list) else seen
    kind: Kind = Layer() if kept["mode"] == Layer.name and p.kind.merges else p.kind
    if kind.name != kept["mode"]:
        raise ValueError(f"it has {kept['mode']!r} statistics, and parameters of {p.kind.name} ones")
    recent = _recent(kept["recent"], n_features) if "recent" in kept else None
    if (recent is not None) is not kind.keeps_rows:
        raise ValueError("a state with window= must have the entry 'recent', and no other state may")
    if ("last" in kept) is not kind.has_times:
        raise ValueError("a state with a halflife of time must have the entry 'last', and no other state may")
    running = Running.of(Moments(**arrays), age)._replace(last=_last(kept.get("last")))
    if recent is not None:  # the statistics are those of the rows, whatever stands beside them
        with np.errstate(over="ignore", invalid="ignore"):
            running = Running.of_rows(recent)
        if not np.all(np.isfinite(running.values)):
            raise ValueError("the variance of the rows of recent overflows float64")
    batches, tracked = kept["n_batches_seen"], kept.get("n_batches_tracked", 0)
    made._state = State.of(kind, running, seen, batches, p.for_features(made, n_features), tracked)
    made.set_params(**_parameters(kept["parameters"]))
    parameters(made).for_features(made, n_features)
    for name in ("gamma", "beta"):
        if getattr(made, name) is not None:
            setattr(made, name, np.array(getattr(made, name), dtype=np.float64))
    return made


ENTRIES = {"parameters", "in_effect", "mode", "n_features_in", "feature_names_in", "n_samples_seen", "n_batches_seen"}


def _arrays(kept: dict[str, Any]) -> dict[str, Float64]:
    """Check what a state file holds, apart from the parameters; its arrays per feature."""
    per_feature = (*Moments._fields, "age")
    if set(kept) - {"recent", "last", "n_batches_tracked"} != ENTRIES | set(per_feature):
        raise ValueError(f"it has the entries {sorted(kept)}")
    n_features, names, n_batches = (kept[key] for key in ("n_features_in", "feature_names_in", "n_batches_seen"))
    if not (_is_whole(n_features, 1) and _is_whole(n_batches, 1)):
        raise ValueError(f"n_features_in and n_batches_seen must be whole numbers, got {n_features} and {n_batches}")
    if not _is_whole(kept.get("n_batches_tracked", 0), -1):
        raise ValueError(f"n_batches_tracked must be a whole number, got {kept['n_batches_tracked']}")
    if names is not None and not (_is_list(names, n_features) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"feature_names_in must be null or {n_features} strings")
    arrays = {}
    for key in per_feature:
        values = kept[key]
        missing = [value is None for value in values] if key == "mean" and _is_list(values, n_features) else []
        if any(missing):
            values = [0.0 if value is None else value for value in values]
        if not (_is_list(values, n_features) and all(_is_number(value) for value in values)):
            raise ValueError(f"{key} must be {n_features} numbers")
        arrays[key] = np.array(values, dtype=np.float64)
        if key in ("count", "m2", "age") and np.any(arrays[key] < 0):
            raise ValueError(f"{key} must not be negative")
        if any(missing) and np.any(arrays["count"][missing]):
            raise ValueError("mean must not be null where count is not 0")
    seen = kept["n_samples_seen"]
    seen = seen if isinstance(seen, list) else [seen] * n_features
    if not (_is_list(seen, n_features) and all(_is_number(value) and value >= 0 for value in seen)):
        raise ValueError(f"n_samples_seen must be a number that is not negative, or {n_features} of them")
    return arrays


def _last(kept: Any) -> int | None:
    """When the last row came, in nanoseconds since 1970."""
    if kept is None or (type(kept) is int and abs(kept) < 2**63):
        return kept
    raise ValueError("last must be null or nanoseconds in 64 bits")


def _recent(kept: Any, n_features: int) -> Recent:
    """The rows of a window."""
    if not isinstance(kept, dict) or set(kept) != {"rows", "weights", "lengths", "n_older", "has_last", "gone"}:
        raise ValueError("recent must be the rows of a window")
    rows = _of_bytes("the rows of recent", kept["rows"])
    weights = None if kept["weights"] is None else _of_bytes("the weights of recent", kept["weights"])
    lengths, n_older, has_last, gone = (kept[name] for name in ("lengths", "n_older", "has_last", "gone"))
    fits = (
        isinstance(lengths, list)
        and len(lengths) > 0
        and all(_is_whole(length, 1) for length in lengths)
        and rows.ndim > 1
        and rows.shape[:2] == (sum(lengths), n_features)
        and (
            weights is None
            or (weights.dtype == np.float64 and weights.shape == rows.shape[:1] and np.all(weights >= 0))
        )
        and isinstance(has_last, bool)
        and _is_whole(n_older, 0)
        and n_older + has_last <= len(lengths)
        and _is_whole(gone, 0)
        and (gone < lengths[0] if n_older else gone == 0)
    )
    if not fits or np.any(np.isinf(rows)):
        raise ValueError("recent must be pieces of rows that fit each other")
    return Recent.restored(rows, weights, lengths, n_older, has_last, gone)


def _is_whole(value: Any, low: int) -> bool:
    return type(value) is int and low <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length
