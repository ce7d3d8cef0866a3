"""What memory allows: three yardsticks, and the limit of each operation in them.

=========  ==========================  ===========================
yardstick  of arrays of n bytes        bytes that move
=========  ==========================  ===========================
read       x                           n
copy       x to out                    2 n
triad      x and dy to out             3 n
=========  ==========================  ===========================

Each can be done in several ways, and which is the fastest depends on the processor, on the size of the arrays and on
the number of threads. So each is several loops, of which the fastest counts: see ``bench.measure``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from bncpu import _kernels, _layout
from bncpu._contenders import Call, Data


def _in_streams(streams: int) -> Callable[[Data], Call]:
    """Read in one stream, or the parts of a run in turn: two halves, as our sums do, or four quarters."""
    return lambda d: lambda: _kernels.read(d.x, threads(d), streams)


def _copy_in(streams: int) -> Callable[[Data], Call]:
    """Copy past the cache in so many streams, or as the C library does, by as many threads as the others have."""
    return lambda d: lambda: _kernels.copy(d.x, d.out, threads(d), streams)


def _triad_in(streams: int) -> Callable[[Data], Call]:
    """Combine past the cache in so many streams, or plainly."""
    return lambda d: lambda: _kernels.triad(d.x, d.dy, d.out, threads(d), streams)


def _memmove(d: Data) -> Call:
    """Copy as the C library does, all at once."""
    arguments = d.out.ctypes.data, d.x.ctypes.data, d.x.nbytes
    return lambda: ctypes.memmove(*arguments)


def threads(d: Data) -> int:
    """As many as the others may use."""
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
ARRAYS = {"read": 1, "copy": 2, "triad": 3}  # that move


class Limit(NamedTuple):
    """The passes over memory that an operation cannot do without: so many of each yardstick."""

    read: int = 0
    copy: int = 0
    triad: int = 0

    @property
    def yardsticks(self) -> tuple[str, ...]:
        """Those that it is made of."""
        return tuple(name for name, n in self._asdict().items() if n)

    def seconds(self, of: Callable[[str], Any]) -> Any:
        """Add up, by what gives the time, or an array of times, of each yardstick."""
        return sum(getattr(self, name) * of(name) for name in self.yardsticks)

    def __str__(self) -> str:
        """What is added."""
        passes = self._asdict().items()
        return " + ".join(name if n == 1 else f"{n} {name}s" for name, n in passes if n)


# By task: results are written once, statistics read all values once more.
LIMITS = {
    "inference": Limit(copy=1),
    "statistics": Limit(read=1),
    "stream": Limit(read=1),
    "training": Limit(read=1, copy=1),
    "gradients": Limit(read=2, triad=1),
}
# Where the values of a channel stay in the cache between its statistics and its results, they come from memory once.
RESIDENT = {"training": Limit(copy=1), "gradients": Limit(triad=1)}
READ = {"training": 1, "gradients": 2}  # arrays


def limit_of(d: Data) -> Limit:
    """What the operation of these data costs at least."""
    task = d.case.task
    if task in RESIDENT:
        form, _ = _layout.canonical(d.x, (d.case.channel_axis,))
        if _kernels.resident_channels(form, READ[task], threads(d)):
            return RESIDENT[task]
    return LIMITS[task]


def loops(d: Data, yardsticks: Iterable[str]) -> dict[tuple[str, str], Call]:
    """Every way to do each of these, by the yardstick's name and its own."""
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
