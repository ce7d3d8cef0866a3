"""What memory allows: three yardsticks, and the limit of each operation as a sum of them.

=========  ==========================  ===========================
yardstick  of arrays of n bytes        bytes that move
=========  ==========================  ===========================
read       x                           n
copy       x to out                    2 n
triad      x and dy to out             3 n
=========  ==========================  ===========================

Each yardstick has several loops. Which is the fastest depends on the processor, the size of the arrays and the number
of threads, so all are timed and the fastest counts: see ``bench.measure``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from bncpu import _kernels, _layout
from bncpu._contenders import Call, Data


def _in_streams(streams: int) -> Callable[[Data], Call]:
    """Read in one stream, or in turn from the two halves or the four quarters of a run, as our sums do."""
    return lambda d: lambda: _kernels.read(d.x, threads(d), streams)


def _copy_in(streams: int) -> Callable[[Data], Call]:
    """Copy past the cache in so many streams; with 0, as the C library does, but by several threads."""
    return lambda d: lambda: _kernels.copy(d.x, d.out, threads(d), streams)


def _triad_in(streams: int) -> Callable[[Data], Call]:
    """Combine two arrays, stored past the cache in so many streams; with 0, with plain stores."""
    return lambda d: lambda: _kernels.triad(d.x, d.dy, d.out, threads(d), streams)


def _memmove(d: Data) -> Call:
    """Copy as the C library does, all at once."""
    arguments = d.out.ctypes.data, d.x.ctypes.data, d.x.nbytes
    return lambda: ctypes.memmove(*arguments)


def threads(d: Data) -> int:
    """The number of threads that all candidates may use."""
    return d.n_threads or _kernels.max_threads()


# NumPy's loops and the C library's whole copy have one thread.
LOOPS: dict[str, dict[str, Callable[[Data], Call]]] = {
    "read": {"one stream": _in_streams(1), "two streams": _in_streams(2), "four streams": _in_streams(4)},
    "copy": {
        "plain stores": _copy_in(0),
        "one stream past the cache": _copy_in(1),
        "four streams past the cache": _copy_in(4),
        "memmove": _memmove,
        "np.copyto": lambda d: lambda: np.copyto(d.out, d.x),
    },
    "triad": {
        "plain stores": _triad_in(0),
        "one stream past the cache": _triad_in(1),
        "four streams past the cache": _triad_in(4),
        "np.add": lambda d: lambda: np.add(d.x, d.dy, out=d.out),
    },
}
ARRAYS = {"read": 1, "copy": 2, "triad": 3}  # arrays that are read or written


class Limit(NamedTuple):
    """The passes over memory that an operation needs at least: how many of each yardstick."""

    read: int = 0
    copy: int = 0
    triad: int = 0

    @property
    def yardsticks(self) -> tuple[str, ...]:
        """The yardsticks in the sum."""
        return tuple(name for name, n in self._asdict().items() if n)

    def seconds(self, of: Callable[[str], Any]) -> Any:
        """The sum; `of` gives the time, or an array of times, of a yardstick by its name."""
        return sum(getattr(self, name) * of(name) for name in self.yardsticks)

    def __str__(self) -> str:
        """The sum as text, such as "2 reads + triad"."""
        passes = self._asdict().items()
        return " + ".join(name if n == 1 else f"{n} {name}s" for name, n in passes if n)


# By task. Results are written once; statistics read all values once more.
LIMITS = {
    "inference": Limit(copy=1),
    "statistics": Limit(read=1),
    "stream": Limit(read=1),
    "training": Limit(read=1, copy=1),
    "gradients": Limit(read=2, triad=1),
}
# Where the values of a channel stay in the cache between its statistics and its results, they come from memory once.
RESIDENT = {"training": Limit(copy=1), "gradients": Limit(triad=1)}
READ = {"training": 1, "gradients": 2}  # number of arrays that are read


def limit_of(d: Data) -> Limit:
    """The least that the operation of a case can cost."""
    task = d.case.task
    if task in RESIDENT:
        form, _ = _layout.canonical(d.x, (d.case.channel_axis,))
        if _kernels.resident_channels(form, READ[task], threads(d)):
            return RESIDENT[task]
    return LIMITS[task]


def loops(d: Data, yardsticks: Iterable[str]) -> dict[tuple[str, str], Call]:
    """All loops of these yardsticks, by (yardstick, loop)."""
    return {(name, way): make(d) for name in yardsticks for way, make in LOOPS[name].items()}


class Yardstick(NamedTuple):
    """The fastest loop of a yardstick, and how fast it was."""

    loop: str
    seconds: float
    n_bytes: int  # that moved

    @property
    def gb_per_second(self) -> float:
        """The rate, in 10**9 bytes."""
        return self.n_bytes / self.seconds / 1e9
