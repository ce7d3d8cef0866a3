"""How an array is divided among blocks and threads. Pure Python, so that every shape can be tested without a GPU."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

THREADS = 256  # in a block
ACCESS = 16  # bytes that a thread reads at once
WARP = 32
AT_ONCE = 512  # threads of a multiprocessor, each with four vectors on their way
NARROW = 8  # bytes of a vector with which so many cover the latency of memory, 16 KiB; below it twice as many do
# Bytes of a value, by the name of its type in memory.
STORAGE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
FAN_IN = 32  # slices in a group, which the last of them merges
LEAST_STEPS = 8  # vectors for a thread, before a column is shared among more blocks
WARP_STEPS = 16  # vectors for a thread at most, where a warp has a plane for itself
LARGE = (
    1 << 24
)  # bytes of data from which on wider vectors save more time than the launches that they add, one to three
MOST_SLICES = 65535


class Plan(NamedTuple):
    """Sizes, in vectors of `n` values. `_kernels` explains the terms."""

    rows: bool
    n: int
    columns: int
    members: int
    outer: int
    channels: int
    inner: int
    blocks: int
    slices: int

    @property
    def width(self) -> int:
        """The number of channels."""
        return self.channels * (self.n if self.rows else 1)

    @property
    def values(self) -> int:
        """The number of values of a channel."""
        return self.outer * self.inner * (1 if self.rows else self.n)

    @property
    def step(self) -> tuple[int, int]:
        """The distance between two vectors of a thread, in outer and inner positions."""
        return divmod(self.slices * self.members, self.inner)

    @property
    def levels(self) -> list[int]:
        """The number of slices, and of those that merge `FAN_IN` of a level each, until there is one."""
        levels = [self.slices]
        while levels[-1] > 1:
            levels.append(-(-levels[-1] // FAN_IN))
        return levels

    @property
    def grid(self) -> tuple[int, int]:
        """The number of blocks along columns, and of slices."""
        return self.blocks, self.slices

    @property
    def block(self) -> tuple[int, int]:
        """The number of threads of a block, those first that lie side by side: they read what does."""
        return (self.columns, self.members) if self.rows else (self.members, self.columns)


def plan(
    shape: tuple[int, ...], channel_axis: int, itemsize: int, *, rows: bool | None = None, share: int = 0,
    aligned: bool = True, multiprocessors: int = 132, threads: int = THREADS,
) -> Plan:  # fmt: skip
    """The plan for a C-contiguous array.

    Parameters
    ----------
    shape : tuple of int
        No axis may have length 0.
    channel_axis : int
        Not negative.
    itemsize : int
        The bytes of a value.
    rows : bool, optional
        The form; by default that of rows where no axis follows the channels.
    share : int, default=0
        If not 0, no vector of rows goes from one group of so many channels to the next.
    aligned : bool
        Whether all arrays of this shape lie at multiples of 16 bytes.
    multiprocessors : int
        The number of multiprocessors of the device.
    threads : int
        The most threads of a block.
    """
    outer, width, inner = prod(shape[:channel_axis]), shape[channel_axis], prod(shape[channel_axis + 1 :])
    rows = inner == 1 if rows is None else rows
    n = max(1, ACCESS // itemsize) if aligned else 1
    while (width if rows else inner) % n or share % n:
        n //= 2
    channels, inner = (width // n, 1) if rows else (width, inner // n)
    # Shared memory holds four float64 for every thread and channel of its column.
    threads = threads // 2 if rows and n > 4 else threads
    vectors = outer * inner  # of a column
    if rows:
        # Blocks of equal numbers of columns, so that none is almost idle.
        columns = -(-channels // -(-channels // min(WARP, threads)))
        members = min(_power_to(threads // columns), _power_from(vectors))
    else:
        # Short planes that fill the device, a warp for each: none waits for another.
        in_warps = vectors <= WARP * WARP_STEPS and channels >= multiprocessors * (threads // WARP)
        members = min(WARP if in_warps else threads, threads, _power_from(vectors))
        # Few columns stay apart, so that each has a multiprocessor.
        columns = min(threads // members, _power_from(-(-channels // multiprocessors)))
    blocks = -(-channels // columns)
    # No more blocks than run at once: a few more would wait for the end of all others.
    slices = multiprocessors * (threads_at_once(n * itemsize) // (columns * members)) // blocks
    most = 1 if not rows and in_warps else vectors // (members * LEAST_STEPS)
    slices = max(1, min(slices, most, MOST_SLICES))
    return Plan(rows, n, columns, members, outer, channels, inner, blocks, slices)


def rows_together(p: Plan, itemsize: int) -> int:
    """How many rows of large data should be taken as one, so that vectors have 16 bytes whatever their length."""
    is_large = p.slices > 1 and p.width * p.values * itemsize >= LARGE
    return ACCESS // itemsize // p.n if p.rows and is_large else 1


def threads_at_once(size: int) -> int:
    """How many threads of a multiprocessor should read vectors of so many bytes."""
    return AT_ONCE if size >= NARROW else 2 * AT_ONCE


def _power_from(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << (least - 1).bit_length()


def _power_to(most: int) -> int:
    """The largest power of two that is not above `most`."""
    return 1 << (most.bit_length() - 1)
