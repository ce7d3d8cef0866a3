"""What the fuzz targets share: bytes read as choices, and the loop of the fuzzer."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Source:
    """Bytes as a series of choices; after their end every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        """The next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def choice(self, options: Sequence[Any]) -> Any:
        """One of at most 256 options."""
        return options[self.byte() % len(options)]

    def flag(self) -> bool:
        """False, or in one of four True."""
        return self.byte() % 4 == 3

    def rest(self) -> bytes:
        """What is left."""
        return self._data[self._at :]


def kept(target: str) -> list[bytes]:
    """What is worth starting from, or was a finding once, a line of hexadecimal digits each; and what was found now."""
    lines = Path(__file__).with_name(f"{target}.txt").read_text().splitlines()
    found = Path(os.environ.get("BNCPU_FUZZ_FOUND", os.devnull), target)
    return [bytes.fromhex(line) for line in lines] + [path.read_bytes() for path in sorted(found.glob("*"))]


def fuzz(target: str, check: Callable[[bytes], object]) -> None:
    """Call `check` with bytes that find new ways through the code, until one raises. Arguments are libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=["bncpu"]):
        import bncpu  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(kept(target)):
            Path(folder, str(i)).write_bytes(data)
        atheris.Setup([*sys.argv, folder], check)
        atheris.Fuzz()
