"""Which library a device array belongs to. No library need be installed to import this."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def library_of(a: Any) -> str | None:
    """The library of a device array, by its type: "cupy", "torch" or "numba"; None of anything else."""
    kind: type = type(a)
    library = _library_of_type(kind)
    return library if library != "torch" or getattr(a, "is_cuda", False) else None


@lru_cache(maxsize=256)
def _library_of_type(kind: type) -> str | None:
    """The library that defines the type, or one that it is derived from; "torch" also of what is on the CPU."""
    for ancestor in kind.__mro__:
        root = ancestor.__module__.partition(".")[0]
        if root in ("cupy", "torch") or (root == "numba" and hasattr(kind, "copy_to_host")):
            return root
    return None
