"""How the kernels walk through arrays larger than the cache: the best way for this processor, as measured.

Nothing here changes a result. ``python comparisons/tune.py`` measures the alternatives on the machine it runs on.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from bncpu import _kernels


class Walk(NamedTuple):
    """How results are stored past the cache, and how much of the cache a pass may count on.

    Attributes
    ----------
    processor : str
        The row of the table that was used: maker and family, or "any".
    streams : int
        1: results are written in one stream, from beginning to end. 4: in four, a wide row of about 4 KiB apart.
    ahead : int
        How many bytes ahead of a single stream are fetched: a multiple of 64; 0 leaves it to the processor.
    resident_bytes : int
        Bytes that are still in the second-level cache when the next step of a pass reads them.
    """

    processor: str
    streams: int
    ahead: int
    resident_bytes: int


# Number of streams, and bytes ahead of one stream, by maker and family (0: any other family). Figures are the time of
# `transform` of 128 MB of float32, as a multiple of a copy of the array. Where both were measured, one stream lost at
# most 10 %, four up to 45 %, so processors that nobody has measured get one. Fetching ahead gained a fifth on one AMD
# processor, and costs an instruction for every 64 bytes.
WALKS = {
    ("GenuineIntel", 0): (4, 0),  # Xeon with AVX-512 and AMX, 2026-11: four 0.88, one 0.95 to 1.00
    ("AuthenticAMD", 0x1A): (1, 0),  # EPYC, Zen 5, 2026-11: one 1.00, four 1.24 to 1.45
    ("AuthenticAMD", 0x19): (
        1,
        2048,
    ),  # EPYC, Zen 3, 2026-11: 1.07 to 1.41; nothing ahead 1.30 to 1.66, four 1.25 to 6.5
    ("AuthenticAMD", 0): (1, 2048),
}
OTHERS = (1, 0)


def of_this_machine() -> Walk:
    """The row of this processor; ``BNCPU_STREAMS`` and ``BNCPU_READ_AHEAD`` in the environment override it."""
    maker, family = _kernels.processor()
    known = next((key for key in ((maker, family), (maker, 0)) if key in WALKS), None)
    streams, ahead = OTHERS if known is None else WALKS[known]
    asked = os.environ.get("BNCPU_STREAMS") or str(streams)
    if asked not in ("1", "4"):
        raise ValueError(f"BNCPU_STREAMS must be 1 or 4, got {asked!r}")
    told = os.environ.get("BNCPU_READ_AHEAD") or str(ahead)
    if not (told.isascii() and told.isdigit() and int(told) % 64 == 0 and int(told) <= 1 << 20):
        raise ValueError(f"BNCPU_READ_AHEAD must be a multiple of 64 up to 1048576, got {told!r}")
    processor = "any" if known is None else f"{maker} family {family}" if known[1] else maker
    return Walk(processor, int(asked), int(told), (_kernels.second_level_cache() or 2 << 20) // 2)


def take(walk: Walk) -> None:
    """Set how the kernels walk. Not while one runs."""
    _kernels.set_walk(walk.streams, walk.resident_bytes, ahead=walk.ahead)
