"""Arrays of other libraries in CPU memory, by DLPack: read, and written, where they lie.

PyTorch, JAX and every library of the array API share memory in this way. A function of ours then sees NumPy arrays, and
its results go back as arrays of the library of its first argument.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu.gpu._library import library_of

CPU = 1  # in DLPack's list of devices

# Arguments that must be arrays. Parameters are read as lists are.
ARRAYS = ("x", "dy", "residual", "out", "where", "running_mean", "running_var", "weight")


def is_foreign(x: object) -> bool:
    """Whether `x` is an array in CPU memory, of another library than NumPy."""
    if isinstance(x, (np.ndarray, np.generic)) or not hasattr(x, "__dlpack_device__"):
        return False
    try:
        return library_of(x) is None and bool(x.__dlpack_device__()[0] == CPU)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):  # of no device that DLPack knows
        return False


def shared(name: str, a: Any) -> NDArray[Any]:
    """The memory of another library's array as a NumPy array."""
    no_gradients(name, a)
    if getattr(a, "is_neg", bool)():  # PyTorch's view of values whose sign DLPack does not tell
        raise TypeError(f"{name} must hold its values as they are, got a {type(a).__name__} that negates them: copy it")
    try:
        view = np.from_dlpack(a)
        if not view.flags.writeable and hasattr(a, "__array__"):  # older DLPack cannot tell
            other = np.asarray(a)
            view = other if other.flags.writeable and np.may_share_memory(other, view) else view
        return view
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array in CPU memory, got {type(a).__name__}: {error}") from None


def no_gradients(name: str, a: Any) -> None:
    """Refuse a tensor whose gradients its library wants to know."""
    if getattr(a, "requires_grad", False):
        raise TypeError(
            f"{name} must not require gradients, which are not recorded here; got a {type(a).__name__} that does: "
            f"pass {name}.detach()"
        )


def called(function: Callable[..., Any], given: Mapping[str, Any], first: str = "x") -> Any:
    """What a function returns for its arguments, some of which are of other libraries.

    Its arrays are of the library of the argument `first`.

    Parameters
    ----------
    function : callable
    given : mapping of str to object
        All its arguments, and perhaps more, by name: its ``locals()``.
    first : str
    """
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    to_library, out = _maker(first, given[first]), given.get("out")
    views = {name: given[name] for name in names}
    views |= {name: shared(name, views[name]) for name in ARRAYS if is_foreign(views.get(name))}
    result = function(**views)

    def back(a: Any) -> Any:
        if out is not None and a is views["out"]:
            return out
        return to_library(a) if isinstance(a, np.ndarray) else a

    return tuple(map(back, result)) if type(result) is tuple else back(result)


def _maker(name: str, a: Any) -> Callable[[Any], Any]:
    """The function that makes arrays like `a` of arrays of NumPy, without a copy."""
    if hasattr(a, "__array_namespace__"):
        library = a.__array_namespace__()
    else:
        library = sys.modules[type(a).__module__.partition(".")[0]]
    if not hasattr(library, "from_dlpack"):
        raise TypeError(f"{name} must be an array of NumPy, or of a library with from_dlpack; got {type(a).__name__}")
    maker: Callable[[Any], Any] = library.from_dlpack
    return maker
