"""What the tests of the CUDA backend share: arrays there and back, what kernels are launched with."""

import os
import typing

import numpy as np
import pytest
from ml_dtypes import bfloat16

from bncpu import gpu

IS_SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
# Plans of a device have several slices for larger data only.
MANY = 1 if IS_SIMULATED else 64

needs_cuda = pytest.mark.skipif(
    not IS_SIMULATED and not gpu.is_available(), reason=f"neither device nor simulator: {gpu.why_unavailable()}"
)


def device(a):
    from numba import cuda

    if a is None:
        return None
    a = np.ascontiguousarray(a)
    if a.dtype == bfloat16 and not IS_SIMULATED:  # the buffer protocol does not know it
        return cuda.to_device(a.view(np.uint16)).view(bfloat16)
    return cuda.to_device(a)


def on_host(a):
    return a.copy_to_host()


def assert_rounded(got, expected, ulps=1.0):
    """Equal to what float64 arithmetic gives, rounded once; a few of its own roundings more are allowed."""
    eps = np.finfo(got.dtype).eps
    largest = np.maximum(np.abs(expected), 1e-2)
    assert got.shape == expected.shape
    assert np.all(np.abs(got.astype(float) - expected) <= ulps * eps * largest + 64 * np.finfo(float).eps * 100)


def shown_launches(monkeypatch):
    """Kernel and arguments of every launch from now on."""
    from bncpu.gpu import _call

    launches, launcher = [], _call._launcher

    def shown(kernel, *configuration):
        def start(*arguments):
            launches.append((kernel, arguments))
            launcher(kernel, *configuration)(*arguments)

        return start

    monkeypatch.setattr(_call, "_launcher", shown)
    return launches


def assert_of_kind(value, annotation):
    from bncpu.gpu import _arguments, _compat

    if hasattr(annotation, "_fields"):
        assert type(value) is annotation
        hints = typing.get_type_hints(annotation)
        for name in annotation._fields:
            assert_of_kind(getattr(value, name), hints[name])
    elif annotation is _arguments.Address:
        assert type(value) is (_compat.Words if IS_SIMULATED else int)
    else:
        assert type(value) is annotation
