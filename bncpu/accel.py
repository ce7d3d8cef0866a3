"""Run existing scikit-learn programs on our kernels, unchanged.

    python -m bncpu.accel script.py arguments
    python -m bncpu.accel -m module arguments
    %load_ext bncpu.accel                        in a notebook
    pytest -p bncpu.accel                        for tests

``BNCPU_ACCEL_LOG=1`` writes a line per call to standard error: done by bncpu, or by scikit-learn, and why.
"""

from __future__ import annotations

import os
import runpy
import sys
from types import TracebackType
from typing import Any

import sklearn.preprocessing
import sklearn.utils.parallel
from sklearn.preprocessing import _data

from bncpu import sklearn as ours

__all__ = ["patch_sklearn", "unpatch_sklearn"]

USAGE = "usage: python -m bncpu.accel [-m module | script.py] [arguments]"

# What is replaced, by name; and, while it is, scikit-learn's own.
_MODULES = (sklearn.preprocessing, _data)
_Wrapper: Any = getattr(sklearn.utils.parallel, "_FuncWrapper", None)


class Patched:
    """What :func:`patch_sklearn` returns: leaving it as a context restores what was before."""

    def __init__(self, was_patched: bool) -> None:
        self._was_patched = was_patched

    def __enter__(self) -> Patched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._was_patched:
            unpatch_sklearn()


def patch_sklearn() -> Patched:
    """Let scikit-learn's StandardScaler and scale use our kernels, in all of this process.

    The methods of :class:`sklearn.preprocessing.StandardScaler` are replaced, not the class: objects that exist, names
    that were imported before, subclasses and pickles stay what they are. :func:`sklearn.preprocessing.scale` is
    replaced where it is defined; who has imported it before keeps scikit-learn's. Work that scikit-learn gives to other
    processes (``n_jobs``) is patched there, too. Results are those of :class:`bncpu.sklearn.StandardScaler`.

    Returns
    -------
    Patched
        A context manager, for ``with patch_sklearn():``; at its end all is as it was before.

    See Also
    --------
    unpatch_sklearn : The way back.
    bncpu.sklearn.calls : What was done by which code, and why.

    Examples
    --------
    >>> from bncpu import patch_sklearn
    >>> from sklearn.preprocessing import StandardScaler
    >>> with patch_sklearn():
    ...     scaler = StandardScaler().fit([[0.0], [4.0]])
    >>> scaler.scale_
    array([2.])
    """
    was_patched = is_patched()
    if not was_patched:
        for name in ours.THEIRS:
            setattr(sklearn.preprocessing.StandardScaler, name, vars(ours.StandardScaler)[name])
        for module in _MODULES:
            module.scale = ours.scale
        if _Wrapper is not None:
            _Wrapper.__reduce__ = _of_worker
    return Patched(was_patched)


def unpatch_sklearn() -> None:
    """Give scikit-learn its own code back; nothing happens if it has it.

    See Also
    --------
    patch_sklearn : What it undoes.

    Examples
    --------
    >>> from bncpu import unpatch_sklearn
    >>> unpatch_sklearn()
    """
    if is_patched():
        for name, method in ours.THEIRS.items():
            setattr(sklearn.preprocessing.StandardScaler, name, method)
        for module in _MODULES:
            module.scale = ours.scale.__wrapped__
        if _Wrapper is not None:
            del _Wrapper.__reduce__


def is_patched() -> bool:
    """Whether scikit-learn uses our kernels."""
    return bool(_data.scale is ours.scale)


def _of_worker(wrapper: Any) -> Any:
    """A pickle of a function that scikit-learn sends to another process: patched there while it runs."""
    return _InWorker, (), vars(wrapper)


class _InWorker(_Wrapper or object):  # type: ignore[misc]
    """What scikit-learn sends to another process, there."""

    def __init__(self) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with patch_sklearn():
            return super().__call__(*args, **kwargs)


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext bncpu.accel``."""
    patch_sklearn()


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext bncpu.accel``."""
    unpatch_sklearn()


def pytest_configure(config: Any) -> None:
    """``pytest -p bncpu.accel``."""
    patch_sklearn()


def main() -> int:
    """Run a script or a module, as ``python`` does, with scikit-learn patched."""
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    if is_module:
        arguments = arguments[1:]
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr if arguments != ["--help"] else sys.stdout)
        return 0 if arguments == ["--help"] else 2
    patch_sklearn()
    sys.argv[:] = arguments
    if is_module:
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
