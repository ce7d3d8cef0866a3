"""How the kernels walk through arrays larger than the cache: what suits this processor, by measurements.

Nothing here changes a result. ``python comparisons/tune.py`` measures the alternatives on the machine it runs on.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from bncpu import _kernels


class Walk(NamedTuple):
    """How results that are stored past the cache are written, and what is taken to stay in the cache.

    Attributes
    ----------
    processor : str
        Whose row of the table it is.
    streams : int
        1: in one stream from end to end; 4: in four that are one wide row of about 4 KiB apart.
    resident_bytes : int
        What one step of a pass leaves in the second-level cache for the next.
    """

    processor: str
    streams: int
    resident_bytes: int


# Streams of `transform` of 1,000,000 x 32 float32, in copies of the array. One lost at most 10 % wherever both were
# measured, four up to 45 %: what nobody has measured gets one.
STREAMS = {
    "GenuineIntel": 4,  # Xeon with AVX-512 and AMX, 2026-11: four 0.88, one 0.95 to 1.00
    "AuthenticAMD": 1,  # EPYC, Zen 5, 2026-11: one 1.00, four 1.24 to 1.45
}


def of_this_machine() -> Walk:
    """The row of this processor; ``BNCPU_STREAMS`` in the environment overrides its streams."""
    vendor = _kernels.processor_vendor()
    asked = os.environ.get("BNCPU_STREAMS") or str(STREAMS.get(vendor, 1))
    if asked not in ("1", "4"):
        raise ValueError(f"BNCPU_STREAMS must be 1 or 4, got {asked!r}")
    return Walk(vendor if vendor in STREAMS else "any", int(asked), (_second_level_cache() or 2 << 20) // 2)


def _second_level_cache() -> int:
    """Bytes of the cache that each core has to itself; 0 if that is not told."""
    try:
        return max(0, os.sysconf("SC_LEVEL2_CACHE_SIZE"))
    except (AttributeError, ValueError, OSError):  # no sysconf, no such name, no answer
        return 0
