"""Temporary files beside what they will replace. A lock tells whether the process that made one still lives."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from typing import BinaryIO

# Elsewhere a file in use cannot be removed anyway.
HAS_LOCKS = os.name == "posix"

NAME = re.compile(r"\.bncpu-[0-9a-f]{16}\.tmp")


@contextlib.contextmanager
def temporary(folder: str, mode: int = 0o600) -> Iterator[tuple[str, BinaryIO]]:
    """A new file in `folder`: its path, and the file, opened for writing. It is removed at the end, unless moved."""
    paths: list[str] = []
    try:
        while True:
            paths.append(os.path.join(folder, f".bncpu-{secrets.token_hex(8)}.tmp"))
            with open(paths[-1], "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                _lock(file)
                if os.fstat(file.fileno()).st_nlink or not HAS_LOCKS:
                    yield paths[-1], file
                    return
                # Another process has removed it before it was locked.
    finally:
        for path in paths:
            with contextlib.suppress(OSError):
                os.remove(path)


def clear(folder: str) -> None:
    """Remove the temporary files in `folder` that killed processes have left."""
    try:
        left = [entry.path for entry in os.scandir(folder) if NAME.fullmatch(entry.name)]
    except OSError:  # a folder that may be written but not listed
        return
    for path in left:
        with contextlib.suppress(OSError):
            with open(path, "rb") as file:
                if not _lock(file):
                    continue
                if HAS_LOCKS:
                    os.remove(path)
            if not HAS_LOCKS:
                os.remove(path)


def _lock(file: BinaryIO) -> bool:
    """Lock a file for as long as it is open; False if another process has. File systems without locks say True."""
    if HAS_LOCKS:
        import fcntl

        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True
