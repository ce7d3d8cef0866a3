"""Which kernels run, and on how many threads."""

import numpy as np
import pytest

from bncpu import _dispatch, _kernels


@pytest.mark.parametrize(
    ("asked", "allowed", "n_bytes", "expected"),
    [
        (None, 8, 0, 1),
        (None, 8, 1 << 19, 1),
        (None, 8, 1 << 20, 2),
        (None, 8, 1 << 30, 8),
        (None, 1, 1 << 30, 1),
        (3, 8, 1 << 30, 3),
        (16, 8, 1 << 30, 16),
        (16, 8, 1 << 20, 2),
    ],
)
def test_threads_are_those_asked_for_or_allowed_but_only_as_many_as_pay(asked, allowed, n_bytes, expected, monkeypatch):
    monkeypatch.setattr(_kernels, "max_threads", lambda: allowed, raising=True)
    assert _dispatch.threads(asked, n_bytes) == expected


def test_numpy_arrays_are_served_by_the_compiled_kernels():
    assert _dispatch.kernels(np.zeros(1)) is _kernels
    for name in ("moments", "apply", "sparse_sums"):
        assert callable(getattr(_dispatch.kernels(np.zeros(1)), name))
