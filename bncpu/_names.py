"""Names of features, and which features names, indices or masks mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu._scalars import shown


def feature_names(names: ArrayLike, n_features: int) -> NDArray[Any]:
    """Names of features as scikit-learn keeps them."""
    found = np.array(names, dtype=object)
    if found.shape != (n_features,) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"feature_names must be {n_features} strings, one per feature; got {shown(names)}")
    return found


def indices_of(features: Any, names: NDArray[Any] | None, n_features: int) -> NDArray[np.intp]:
    """Indices of the features that names, indices, a mask or a slice select, each once."""
    if isinstance(features, np.ma.MaskedArray):
        raise TypeError("features must not be masked, got a MaskedArray")
    if isinstance(features, slice):
        try:
            found = np.arange(n_features)[features]
        except (TypeError, ValueError) as error:
            raise type(error)(f"features must be a slice of indices, got {features}: {error}") from None
    else:
        wanted = np.atleast_1d(np.asarray(features))
        if wanted.dtype.kind == "U" and not isinstance(features, np.ndarray):
            wanted = np.atleast_1d(np.asarray(features, object))  # 1 beside "a" is no name
        if wanted.dtype == bool and wanted.shape == (n_features,) and np.ndim(features):
            found = np.flatnonzero(wanted)
        elif wanted.ndim == 1 and wanted.dtype.kind in "iu":
            found = np.where(wanted < 0, wanted + n_features, wanted)
            outside = wanted[(found < 0) | (found >= n_features)]
            if len(outside):
                raise ValueError(f"features must be indices below {n_features}, got {outside[0]}")
        elif wanted.ndim == 1 and len(wanted) and all(isinstance(name, str) for name in wanted):
            found = _indices_of_names(wanted, names)
        elif not wanted.size:
            found = wanted.reshape(-1)
        else:
            raise TypeError(
                f"features must be names, indices, a mask of {n_features} booleans, or a slice; got {features!r:.100}"
            )
    if not len(found):
        raise ValueError(f"features must select at least one feature, got {features!r:.100}")
    if len(set(found.tolist())) < len(found):
        raise ValueError(f"features must name each feature once, got {features!r:.100}")
    return found.astype(np.intp)


def _indices_of_names(wanted: NDArray[Any], names: NDArray[Any] | None) -> NDArray[np.intp]:
    if names is None:
        raise ValueError(f"features must be indices, as fit saw no names; got {wanted[0]!r:.100}")
    known = names.tolist()
    for name in wanted.tolist():
        if known.count(name) != 1:
            kind = "unknown" if name not in known else "the name of several features"
            raise ValueError(f"features must be names of fit, got {name!r:.100}, which is {kind}")
    return np.array([known.index(name) for name in wanted.tolist()])


def joined_names(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """Names of features, joined; None if there are none."""
    known = [names for names in parts if names is not None]
    if not known:
        return None
    if len(known) < len(parts):
        raise ValueError(
            "transformers must all have names of features, or none; select() and from_statistics give them"
        )
    names = np.concatenate(known)
    values, counts = np.unique(names.astype(str), return_counts=True)
    if np.any(counts > 1):
        raise ValueError(f"transformers must have different features, got {str(values[counts > 1][0])!r} twice")
    return names
