"""Pictures and figures that the commands save, and do not replace what is not theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bncpu import _state_file

# Where a format says what made it.
MAKER = {".png": "Software", ".svg": "Creator", ".pdf": "Creator", ".ps": "Creator", ".eps": "Creator"}
OURS = re.compile(rb".{,4000}bncpu", re.DOTALL)


def save(figure: Any, path: Path) -> None:
    """Save a figure of Matplotlib, with our name in it where the format has room."""
    key = MAKER.get(path.suffix.lower())
    figure.savefig(path, dpi=110, metadata={key: "bncpu"} if key else None)


def may_replace(path: Path | None) -> None:
    """Refuse to overwrite a file that does not name us at its beginning."""
    if path is not None:
        _state_file.may_replace(path, OURS)
