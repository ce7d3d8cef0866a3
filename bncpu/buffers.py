"""The memory that large results leave for the next ones: how much of it is kept."""

from __future__ import annotations

import os
import sys
from typing import Any

from bncpu import _buffers
from bncpu._checks import whole


def release_buffers() -> int:
    """Give back the memory that waits for the next large result.

    A result of 1 MiB or more, made without ``out=``, leaves its memory to the next one of about the same size when
    the last reference to it is gone: fresh memory costs more time than the work done in it. Nothing in use is touched.

    Returns
    -------
    int
        Bytes given back to the system's allocator.

    See Also
    --------
    set_buffer_limit : How much may wait.

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
    """Set how much memory of large results may wait for the next ones.

    Only what waits counts, not results in use; results larger than the limit are never kept. What waits beyond the
    new limit is given back at once, the longest waiting first, and so is what eight large results in a row had no use
    for, whatever the limit.

    Parameters
    ----------
    n_bytes : int
        At the start 256 MiB, or what the environment variable ``BNCPU_BUFFER_LIMIT`` says. 0 keeps nothing: every
        result is in fresh memory.

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
    release_buffers : Give back what waits now, keeping the limit.

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
