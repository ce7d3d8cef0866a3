"""Weights of samples and of positions: what they are, and that they fit X."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array
from sklearn.utils.validation import _check_sample_weight

from bncpu import _foreign
from bncpu._batches import Batch
from bncpu._compat import foreign_namespace, is_lazy
from bncpu._device import DeviceBatch
from bncpu._door import ALL_ZERO, numbers_only
from bncpu._scalars import shown
from bncpu.gpu._library import library_of


def of_samples(sample_weight: Any, X: Any) -> NDArray[np.float64] | None:
    """Weights as contiguous float64: finite, not negative, not all 0."""
    if sample_weight is None:
        return None
    if library_of(sample_weight) is not None:
        raise TypeError(f"sample_weight must be in CPU memory, got a device array: {type(sample_weight).__name__}")
    if foreign_namespace(sample_weight) is not None:
        sample_weight = _foreign.shared("sample_weight", sample_weight)
    sample_weight = _unmasked(sample_weight)
    sample_weight = numbers_only("sample_weight", sample_weight)
    if has_positions(sample_weight, X):
        return _of_positions(np.asarray(sample_weight), X)
    # scikit-learn looks at the number of samples alone.
    return _not_all_zero(sample_weight, np.empty((len(X), 0)) if isinstance(X, Batch) else X)


def _unmasked(sample_weight: Any) -> Any:
    """Weights that are 0 where they are masked."""
    return sample_weight.filled(0) if isinstance(sample_weight, np.ma.MaskedArray) else sample_weight


def has_positions(sample_weight: Any, X: Any) -> bool:
    """Whether weights are those of positions of X."""
    return getattr(X, "ndim", 0) > 2 and np.ndim(sample_weight) > 1


def _fit_positions(weights: Any, X: Any) -> None:
    """Check that there is a weight for each position of X, whose channels are on axis 1."""
    shape = (X.shape[0], *X.shape[2:])
    if weights.shape != shape:
        raise ValueError(
            f"sample_weight must have a weight for each of {X.shape[0]} samples, or for each of their positions, "
            f"{shape}; got shape {weights.shape}"
        )


def _of_positions(weights: NDArray[Any], X: Any) -> NDArray[np.float64]:
    """Weights of the positions of X, whose channels are on axis 1."""
    _fit_positions(weights, X)
    if isinstance(X, DeviceBatch):
        raise TypeError("sample_weight must have one weight per sample for device arrays, got weights of positions")
    return _not_all_zero(weights.reshape(-1), np.empty((weights.size, 0))).reshape(weights.shape)


def _not_all_zero(sample_weight: Any, X: Any) -> NDArray[np.float64]:
    try:
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    except OverflowError:
        raise ValueError("sample_weight must be finite in float64, got an integer beyond it") from None
    except (TypeError, ValueError) as error:
        if "float()" in str(error) or "could not convert" in str(error) or "sequence" in str(error):
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"sample_weight must hold numbers: {error}") from None
        raise
    except RuntimeError as error:
        raise TypeError(f"sample_weight must be an array in memory, got {shown(sample_weight)}: {error}") from None
    if not np.all(np.isfinite(weights)):  # a single number, of which scikit-learn says nothing
        raise ValueError(f"sample_weight must be finite, got {shown(sample_weight)}")
    if not np.any(weights):
        raise ValueError(ALL_ZERO)
    return np.ascontiguousarray(weights)


def of_block(weights: Any, X: Any) -> NDArray[np.float64] | None:
    """Weights of a block, which may all be 0."""
    if weights is None:
        return None
    weights = _unmasked(weights)
    loose = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "ensure_min_features": 0}
    weights = check_array(weights, dtype=np.float64, input_name="sample_weight", **loose)
    if weights.shape not in (X.shape[:1], (X.shape[0], *X.shape[2:])):
        raise ValueError(
            f"sample_weight must be cut into blocks as X is, got one of shape {weights.shape} beside one of {X.shape}"
        )
    if np.any(weights < 0):
        raise ValueError(f"Negative values in data passed to `sample_weight`, got {np.min(weights)}")
    return np.ascontiguousarray(weights)


def of_lazy(sample_weight: Any, X: Any) -> tuple[Any, bool]:
    """Weights for a Dask X: of Dask, or float64 in memory; and whether they are to be cut as X is."""
    chunks = X.chunks[0] if hasattr(X, "chunks") else (math.nan,) * X.npartitions
    n_samples = sum(chunks)
    if not is_lazy(sample_weight):
        if math.isnan(n_samples):
            raise ValueError(
                "sample_weight must be a Dask array or Series, cut as X is, where X does not know the sizes of its "
                f"blocks; got {type(sample_weight).__name__}"
            )
        sample_weight = numbers_only("sample_weight", _unmasked(sample_weight))
        if has_positions(sample_weight, X):
            return _of_positions(np.asarray(sample_weight), X), True
        return _not_all_zero(sample_weight, range(n_samples)), True
    if has_positions(sample_weight, X):
        if any(map(math.isnan, X.shape + sample_weight.shape)):
            raise ValueError(
                "sample_weight of positions needs X and weights that know their sizes: compute_chunk_sizes()"
            )
        _fit_positions(sample_weight, X)
        return sample_weight, True
    if sample_weight.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got {sample_weight.ndim}D array.")
    theirs = sample_weight.chunks[0] if hasattr(sample_weight, "chunks") else (math.nan,) * sample_weight.npartitions
    if math.isnan(n_samples + sum(theirs)):
        if len(theirs) != len(chunks):
            raise ValueError(f"sample_weight must have as many blocks as X, {len(chunks)}, got {len(theirs)}")
        return sample_weight, False
    if sum(theirs) != n_samples:
        raise ValueError(f"sample_weight.shape == {sample_weight.shape}, expected {(n_samples,)}!")
    return sample_weight, True
