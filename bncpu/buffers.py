"""How much memory of earlier large results is kept for the next ones."""

from __future__ import annotations

import os
import sys
from typing import Any

from bncpu import _buffers
from bncpu._scalars import whole


def release_buffers() -> int:
    """Free the memory that is kept for the next large results.

    When the last reference to a result of 1 MiB or more, made without ``out=``, is gone, its memory is kept for the
    next result of about the same size: fresh memory costs more time than the work done in it. Memory of results that
    are in use is not touched.

    Returns
    -------
    int
        Bytes returned to the system's allocator.

    See Also
    --------
    set_buffer_limit : Set how much may be kept.

    Examples
    --------
    >>> import numpy as np
    >>> import bncpu
    >>> _ = bncpu.release_buffers()
    >>> y = bncpu.batch_norm(np.zeros((10_000, 1_000), np.float32), np.zeros(1_000), np.ones(1_000))
    >>> del y
    >>> bncpu.release_buffers()
    40000000
    """
    return _buffers.release()


def set_buffer_limit(n_bytes: int) -> int:
    """Set how much memory of earlier large results may be kept for the next ones.

    Results in use do not count, and the memory of results larger than the limit is never kept. What exceeds the new
    limit is freed at once, the memory kept longest first. Whatever the limit, memory that eight large results in a row
    had no use for is freed, too.

    Parameters
    ----------
    n_bytes : int
        The initial limit is 256 MiB, or what the environment variable ``BNCPU_BUFFER_LIMIT`` says. With 0 nothing is
        kept: every result is in fresh memory.

    Returns
    -------
    int
        The limit before.

    Raises
    ------
    TypeError, ValueError
        If `n_bytes` is no integer, or negative.

    See Also
    --------
    release_buffers : Free what is kept now, without changing the limit.

    Examples
    --------
    >>> import bncpu
    >>> before = bncpu.set_buffer_limit(1 << 30)
    >>> bncpu.set_buffer_limit(before)
    1073741824
    """
    return _buffers.set_limit(_checked(n_bytes))


def _checked(value: Any) -> int:
    """`n_bytes`, an integer from 0."""
    number = whole("n_bytes", value, low=0)
    if number is None:
        raise TypeError("n_bytes must be an integer, got None; 0 keeps nothing")
    return min(int(number), sys.maxsize)


def _number_of_environment(name: str, text: str) -> int:
    """The bytes that an environment variable says, digits only."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{name} must be a number of bytes, such as 268435456; got {text!r}")
    return _checked(int(text))


if os.environ.get("BNCPU_BUFFER_LIMIT"):
    _buffers.set_limit(_number_of_environment("BNCPU_BUFFER_LIMIT", os.environ["BNCPU_BUFFER_LIMIT"]))
