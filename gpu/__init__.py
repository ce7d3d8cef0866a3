"""Batch normalization on NVIDIA GPUs, for arrays of CuPy, PyTorch and Numba. Importing it starts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bncpu.saved import SavedStatistics

if TYPE_CHECKING:
    from ._functional import (
        batch_norm,
        batch_norm_backward,
        batch_norm_backward_frozen,
        batch_norm_forward,
    )

__all__ = [
    "SavedStatistics",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_frozen",
    "batch_norm_forward",
    "is_available",
    "why_unavailable",
]

_NOT_INSTALLED = "numba-cuda is not installed: pip install 'bncpu[gpu]'"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import _functional
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("numba", "llvmlite"):
            raise
        raise ImportError(_NOT_INSTALLED) from None
    globals()[name] = found = getattr(_functional, name)  # looked for once
    return found


def is_available() -> bool:
    """Whether a CUDA device can be used.

    Returns
    -------
    bool
        False if :func:`why_unavailable` has a reason.

    Examples
    --------
    >>> from bncpu import gpu
    >>> gpu.is_available() == (gpu.why_unavailable() is None)
    True
    """
    return why_unavailable() is None


def why_unavailable() -> str | None:
    """Why CUDA cannot be used, in one line; None if it can.

    Returns
    -------
    str or None
        Such as ``"numba-cuda is not installed: pip install 'bncpu[gpu]'"``.

    Examples
    --------
    >>> from bncpu import gpu
    >>> print(gpu.why_unavailable())  # doctest: +SKIP
    None
    """
    try:
        import numba_cuda  # noqa: F401  (without it numba.cuda is another, older one)
        from numba import cuda
    except ImportError:
        return _NOT_INSTALLED
    if cuda.is_available():
        return None
    reason = getattr(cuda, "cuda_error", lambda: None)()
    lines = [line.strip() for line in str(reason or "").splitlines() if line.strip()]
    return ": ".join(["no usable CUDA device", *lines[:1]])
