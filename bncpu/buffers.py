"""The memory that large results leave for the next ones: how much of it is kept."""

from __future__ import annotations

import os

from bncpu import _buffers, _validation


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
    return _buffers.set_limit(_validation.n_bytes(n_bytes))


if os.environ.get("BNCPU_BUFFER_LIMIT"):
    _buffers.set_limit(_validation.n_bytes_of_environment("BNCPU_BUFFER_LIMIT", os.environ["BNCPU_BUFFER_LIMIT"]))
