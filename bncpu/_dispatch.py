"""Which kernels or functions serve an array, by its type, and what they know of the machine."""

from __future__ import annotations

import os
from typing import Any

import joblib

try:
    from bncpu import _kernels
except ImportError:
    raise ImportError(
        f"no compiled kernel in {os.path.dirname(__file__)}; if this is bncpu's source tree, start Python in another "
        "folder to use the installed package, or install with pip install -e ."
    ) from None

from bncpu import _walk, gpu
from bncpu.gpu._library import library_of

# A fork leaves the child without OpenMP's idle threads, and its first parallel loop would wait for them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_kernels.pause_threads)

if os.environ.get("BNCPU_ISA"):
    _kernels.use_isa(os.environ["BNCPU_ISA"])


def know_machine() -> None:
    """Tell the kernels how many processors there are, how many this process may use, and which file counts tasks."""
    # joblib knows affinity and the quota of a container.
    _kernels.set_machine(os.cpu_count() or 1, joblib.cpu_count(), "/proc/loadavg")


know_machine()
_walk.take(_walk.of_this_machine())


def device_functions(array: object) -> Any:
    """`bncpu.gpu` for a device array, None for anything else."""
    return gpu if library_of(array) is not None else None


def device_norms(array: object) -> Any:
    """`bncpu.gpu._norms` for a device array, None for anything else."""
    if library_of(array) is None:
        return None
    gpu.batch_norm  # noqa: B018  (says which extra is missing, if it is)
    from bncpu.gpu import _norms

    return _norms
