"""How an array is cut into blocks and threads: pure Python, so that every shape can be tried without a GPU."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

THREADS = 256  # of a block
ACCESS = 16  # bytes that a thread reads at once
WARP = 32
BLOCKS_PER_MULTIPROCESSOR = 8
LEAST_STEPS = 8  # of a thread, before a column is shared among more blocks
MOST_SLICES = 65535


class Plan(NamedTuple):
    """Sizes in vectors of `n` values: see `_kernels`."""

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
        """Those of a channel."""
        return self.outer * self.inner * (1 if self.rows else self.n)

    @property
    def step(self) -> tuple[int, int]:
        """Outer and inner positions between two vectors of a thread."""
        return divmod(self.slices * self.members, self.inner)

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks: of columns, and of slices."""
        return self.blocks, self.slices

    @property
    def block(self) -> tuple[int, int]:
        """Threads."""
        return self.columns, self.members


def plan(
    shape: tuple[int, ...], channel_axis: int, itemsize: int, *,
    aligned: bool = True, multiprocessors: int = 132, threads: int = THREADS,
) -> Plan:  # fmt: skip
    """The plan for a C-contiguous array.

    Parameters
    ----------
    shape : tuple of int
        Without a 0.
    channel_axis : int
        Not negative.
    itemsize : int
        Bytes of a value.
    aligned : bool
        Whether all arrays of this shape lie at multiples of 16 bytes.
    multiprocessors : int
        Of the device.
    threads : int
        Of a block, at most.
    """
    outer, width, inner = prod(shape[:channel_axis]), shape[channel_axis], prod(shape[channel_axis + 1 :])
    rows = inner == 1
    n = max(1, ACCESS // itemsize) if aligned else 1
    while (width if rows else inner) % n:
        n //= 2
    channels, inner = (width // n, 1) if rows else (width, inner // n)
    # Shared memory holds four float64 for every thread and channel of its column.
    threads = threads // 2 if rows and n > 4 else threads
    columns = min(WARP, threads, 1 << (channels - 1).bit_length()) if rows else 1
    members = min(threads // columns, 1 << (outer * inner - 1).bit_length())
    blocks = -(-channels // columns)
    wanted = -(-multiprocessors * BLOCKS_PER_MULTIPROCESSOR // blocks)
    slices = max(1, min(wanted, outer * inner // (members * LEAST_STEPS), MOST_SLICES))
    return Plan(rows, n, columns, members, outer, channels, inner, blocks, slices)
