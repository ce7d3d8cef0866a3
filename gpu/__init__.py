"""The Numba CUDA backend. So far it only says whether CUDA can be used; importing it starts nothing."""

from __future__ import annotations

__all__ = ["is_available", "why_unavailable"]


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
        from numba import cuda
    except ImportError:
        return "numba-cuda is not installed: pip install 'bncpu[gpu]'"
    if cuda.is_available():
        return None
    reason = getattr(cuda, "cuda_error", lambda: None)()
    return "no usable CUDA device" + (f": {str(reason).splitlines()[0]}" if reason else "")
