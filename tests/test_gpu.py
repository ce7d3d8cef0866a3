"""The CUDA backend: so far, whether it can be used, and why not."""

import sys

from bncpu import gpu


def test_the_gpu_says_in_one_line_why_it_cannot_be_used(monkeypatch):
    reason = gpu.why_unavailable()
    assert gpu.is_available() == (reason is None)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert gpu.why_unavailable() == "numba-cuda is not installed: pip install 'bncpu[gpu]'"
    assert not gpu.is_available()
