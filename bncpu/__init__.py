"""Batch normalization for NumPy people: a scikit-learn transformer that learns from batches, and plain functions."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

# The command imports what it needs when it needs it, so that `bncpu --version` waits for nothing.
_IS_COMMAND = os.path.basename(sys.argv[0] if sys.argv else "") in ("-m", "bncpu", "bncpu.exe")

if TYPE_CHECKING or not _IS_COMMAND:
    from bncpu._public import *  # noqa: F403
    from bncpu._public import __all__ as __all__
    from bncpu._public import __version__ as __version__


def __getattr__(name: str) -> Any:
    """A public name or a module that has not been imported."""
    if _IS_COMMAND and (name in ("__all__", "__version__") or not name.startswith("_")):
        if name == "__version__":
            return import_module("importlib.metadata").version("bncpu")
        if find_spec(f"bncpu.{name}") is not None:
            return import_module(f"bncpu.{name}")
        public = import_module("bncpu._public")
        if name in (*public.__all__, "__all__"):
            return getattr(public, name)
    raise AttributeError(f"module 'bncpu' has no attribute {name!r}")
