"""Run existing scikit-learn programs on our kernels, unchanged.

    python -m bncpu.accel script.py arguments
    python -m bncpu.accel -m module arguments
    %load_ext bncpu.accel                        in a notebook
    pytest -p bncpu.accel                        for tests

``BNCPU_ACCEL_LOG=1`` writes a line per call to standard error: done by bncpu, or by scikit-learn, and why.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import os
import runpy
import sys
import threading
import types
import zipfile
from types import TracebackType
from typing import Any

import sklearn.preprocessing
import sklearn.utils.parallel
from sklearn.preprocessing import _data

from bncpu import sklearn as ours

__all__ = ["patch_sklearn", "unpatch_sklearn"]

USAGE = "usage: python -m bncpu.accel [-m module | script.py] [arguments]"

_MODULES = (sklearn.preprocessing, _data)
# What scikit-learn wraps the functions in that it sends to other processes; a private name, which may go.
_Wrapper: Any = getattr(sklearn.utils.parallel, "_FuncWrapper", None)

# Calls of patch_sklearn without a `with`, and contexts that are within theirs, since it was last undone, and how often
# it was.
_calls, _contexts, _undone = 0, 0, 0
_changing = threading.RLock()


class Patched:
    """What :func:`patch_sklearn` returns. As a context it is a patch that ends with it."""

    def __init__(self) -> None:
        self._call: int | None = _undone
        self._entered: list[int] = []

    def __enter__(self) -> Patched:
        global _calls, _contexts
        with _changing:
            if self._call == _undone:  # the call before this `with` is no other patch
                _calls -= 1
            self._call = None
            self._entered.append(_undone)
            _contexts += 1
            _patch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _contexts
        with _changing:
            if self._entered.pop() == _undone:
                _contexts -= 1
                if not _calls and not _contexts:
                    _unpatch()


def patch_sklearn() -> Patched:
    """Let scikit-learn's StandardScaler and scale use our kernels, in all of this process.

    The methods of :class:`sklearn.preprocessing.StandardScaler` are replaced, not the class: objects that exist, names
    that were imported before, subclasses and pickles stay what they are. :func:`sklearn.preprocessing.scale` is
    replaced where it is defined; who has imported it before keeps scikit-learn's. Work that scikit-learn gives to other
    processes (``n_jobs``) is patched there, too. Results are those of :class:`bncpu.sklearn.StandardScaler`.

    Returns
    -------
    Patched
        A context manager, for ``with patch_sklearn():``. At the end of the last such context, in whatever thread,
        scikit-learn has its own code back, unless there was another call.

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
    global _calls
    with _changing:
        _calls += 1
        _patch()
        return Patched()


def unpatch_sklearn() -> None:
    """Give scikit-learn its own code back, in contexts, too; nothing happens if it has it.

    See Also
    --------
    patch_sklearn : What it undoes.

    Examples
    --------
    >>> from bncpu import unpatch_sklearn
    >>> unpatch_sklearn()
    """
    global _calls, _contexts, _undone
    with _changing:
        _calls, _contexts, _undone = 0, 0, _undone + 1
        _unpatch()


def _patch() -> None:
    for name in ours.THEIRS:
        setattr(sklearn.preprocessing.StandardScaler, name, vars(ours.StandardScaler)[name])
    for module in _MODULES:
        module.scale = ours.scale
    if _Wrapper is not None:
        _Wrapper.__reduce__ = _of_worker


def _unpatch() -> None:
    """Take back what is ours; what others have put in its place since stays."""
    for name, method in ours.THEIRS.items():
        if vars(sklearn.preprocessing.StandardScaler)[name] is vars(ours.StandardScaler)[name]:
            setattr(sklearn.preprocessing.StandardScaler, name, method)
    for module in _MODULES:
        if module.scale is ours.scale:
            module.scale = ours.scale.__wrapped__
    if vars(_Wrapper or object).get("__reduce__") is _of_worker:
        del _Wrapper.__reduce__


def is_patched() -> bool:
    """Whether scikit-learn uses our kernels."""
    return all(
        vars(sklearn.preprocessing.StandardScaler)[name] is vars(ours.StandardScaler)[name] for name in ours.THEIRS
    )


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
    is_module = arguments[:1] == ["-m"] or (arguments and arguments[0].startswith("-m"))
    if is_module:
        arguments = [arguments[0][2:], *arguments[1:]] if len(arguments[0]) > 2 else arguments[1:]
    if not arguments or (arguments[0].startswith("-") and not is_module):
        print(USAGE, file=sys.stdout if arguments == ["--help"] else sys.stderr)
        return 0 if arguments == ["--help"] else 2
    patch_sklearn()
    sys.argv[:] = arguments
    name = arguments[0]
    # As python itself does: the program is the module __main__, also for threads and exit functions that outlive it.
    program = types.ModuleType("__main__")
    program.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = program
    if "__mp_main__" in sys.modules:  # multiprocessing's own name of it
        sys.modules["__mp_main__"] = program
    if is_module:
        _first_on_path(os.getcwd())
        runpy._run_module_as_main(name)  # type: ignore[attr-defined]  # what python -m calls
    elif os.path.isdir(name) or zipfile.is_zipfile(name):
        _first_on_path(os.path.abspath(name))
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
    else:
        _run_script(program, os.path.abspath(name))
    return 0


def _run_script(program: types.ModuleType, path: str) -> None:
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        print(f"python -m bncpu.accel: can't open {path!r}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    _first_on_path(os.path.dirname(path))
    program.__file__ = path
    program.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    exec(compile(source, path, "exec", dont_inherit=True), program.__dict__)


def _first_on_path(folder: str) -> None:
    """What python puts there for the program, in the place of what it put there for this module."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


if __name__ == "__main__":
    from bncpu.accel import main  # not this module, which pickle would look for in the program

    sys.exit(main())
