"""Which library a device array belongs to. No library need be installed to import this."""

from __future__ import annotations

from typing import Any


def library_of(a: Any) -> str | None:
    """The library of a device array, by its type: "cupy", "torch" or "numba"; None of anything else."""
    root = type(a).__module__.partition(".")[0]
    if root == "torch":
        return root if getattr(a, "is_cuda", False) else None
    return root if root == "cupy" or (root == "numba" and hasattr(a, "copy_to_host")) else None
