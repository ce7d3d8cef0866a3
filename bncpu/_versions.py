"""What a bug report should say of the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from bncpu import _buffers, _kernels, _walk, gpu


def show_versions() -> None:
    """Print versions, instruction set, OpenMP, threads, buffers and CUDA as one block to paste into a report.

    Examples
    --------
    >>> import bncpu
    >>> bncpu.show_versions()  # doctest: +SKIP
    bncpu: 0.1.0
    ...
    """
    openmp = _kernels.openmp_version()
    lines = {
        **{name: _version(name) for name in ("bncpu", "numpy", "scikit-learn", "scipy", "joblib", "numba-cuda")},
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "instruction sets": f"{_kernels.isa()} (of {', '.join(_kernels.isa_variants())})",
        "OpenMP": openmp or "no",
        "threads": f"{_kernels.max_threads()} allowed, {_kernels.idle_threads(most=1 << 20)} processors idle, "
        f"{os.cpu_count()} in all",
        "walk": ", ".join(f"{name} {value}" for name, value in _walk.of_this_machine()._asdict().items()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "buffers": f"{_buffers.waiting()} bytes waiting, {_buffers.limit()} at most",
        "CUDA": gpu.why_unavailable() or "available",
    }
    for name, value in lines.items():
        print(f"{name}: {value}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
