"""State files: versioned JSON with a checksum over every byte, written atomically, read without executing anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from bncpu._temporary import NAME, temporary

VERSION = 1

UNSIGNED = "0" * 64

TRANSFORMER = "bncpu.BatchNormTransformer"

# The checksum is computed over the file with `UNSIGNED` in its place. START matches at most `LONGEST_START` bytes.
START = re.compile(rb'\{"format": "([\w.]{1,40})", "version": (\d{1,9}), "sha256": "([0-9a-f]{64})", ')
LONGEST_START = 200


def write(
    path: str | os.PathLike[str], content: dict[str, Any], kind: str = TRANSFORMER, *, force: bool = False
) -> None:
    """Write `content` to exactly `path`. Whatever happens, the file holds the whole old state or the whole new one.

    Parameters
    ----------
    path : str or path-like
        A link is followed.
    content : dict
        JSON values; floats must be finite.
    kind : str, default="bncpu.BatchNormTransformer"
        What kind of file this is; `read` must be called with the same.
    force : bool, default=False
        Replace whatever file is there.

    Raises
    ------
    OSError
        If the file cannot be written, or if there is a file that this function has not written. The old file stays.
    """
    if not force:
        may_replace(path)
    head = {"format": kind, "version": VERSION, "sha256": UNSIGNED}
    text = json.dumps({**head, **content}, allow_nan=False, default=float) + "\n"
    text = text.replace(UNSIGNED, hashlib.sha256(text.encode()).hexdigest(), 1)
    with replacing(path) as file:
        file.write(text.encode("ascii"))


def may_replace(path: str | os.PathLike[str], ours: re.Pattern[bytes] = START) -> None:
    """Refuse to overwrite a file that does not begin like one of ours. Empty files may be overwritten."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return  # `replacing` refuses it
        with open(path, "rb") as file:
            head = file.read(20 * LONGEST_START)
    except FileNotFoundError:
        return
    if head and not ours.match(head):
        message = "It is there, and no file of bncpu's; remove it first, or choose another name"
        raise FileExistsError(errno.EEXIST, message, os.fsdecode(path))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that replaces `path` when the block ends. If the block raises, the new file is removed.

    Parameters
    ----------
    path : str or path-like
        A link is followed.

    Yields
    ------
    file object
        Binary, opened for writing.

    Raises
    ------
    OSError
        If the file cannot be written. The old file stays.
    """
    final = os.path.realpath(os.fsdecode(path))
    try:
        try:
            old = os.stat(final).st_mode
        except FileNotFoundError:
            old = None
        if old is not None and not stat.S_ISREG(old):
            raise OSError(errno.EINVAL, "Not a regular file")
        mode = 0o666 if old is None else stat.S_IMODE(old)
        with temporary(os.path.dirname(final), mode) as (beside, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            if old is not None:
                os.chmod(beside, mode)
            file.close()
            os.replace(beside, final)
    except OSError as error:
        if error.filename is not None and not NAME.fullmatch(os.path.basename(error.filename)):
            raise
        if error.errno is None:  # not of the system
            raise OSError(f"{final!r} cannot be written: {error}") from None
        raise OSError(error.errno, error.strerror, final) from None  # not the temporary file
    _sync_folder(os.path.dirname(final))


def _sync_folder(folder: str) -> None:
    """Sync the folder, so that the new name survives a power cut. Not all systems can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: str | os.PathLike[str], kind: str = TRANSFORMER) -> dict[str, Any]:
    """The content of the state file `path`; ValueError if it is not whole.

    Parameters
    ----------
    path : str or path-like
    kind : str, default="bncpu.BatchNormTransformer"

    Returns
    -------
    dict
        What was given to `write`; every number is finite.

    Raises
    ------
    OSError
        If the file cannot be read; FileNotFoundError if there is none.
    ValueError
        If it is not a state file, was changed, or is of another version.
    RecursionError
        If it is nested too deeply.
    """
    with _opened(path) as file:
        head = file.read(LONGEST_START)
        start = START.match(head)
        if start is None or start[1].decode() != kind:  # do not read the rest, which may be endless
            raise ValueError("it does not begin like one")
        if int(start[2]) != VERSION:
            raise ValueError(f"it has version {int(start[2])}, and this bncpu reads version {VERSION}")
        raw = head + file.read()
    at, end = start.span(3)
    if hashlib.sha256(raw[:at] + UNSIGNED.encode() + raw[end:]).hexdigest() != start[3].decode():
        raise ValueError("its checksum does not match: it is incomplete or was changed")
    content = json.loads(
        raw.decode(),
        parse_constant=_refused,
        parse_float=_finite,
        parse_int=_whole,
        object_pairs_hook=_without_repetition,
    )
    return {key: value for key, value in content.items() if key not in ("format", "version", "sha256")}


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        message = f"there is no state file {os.fsdecode(path)!r}; `save` and `bncpu fit` write one"
        raise FileNotFoundError(message) from None


def _without_repetition(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(entries)
    if len(content) < len(entries):
        raise ValueError("it holds an entry twice")
    return content


def _refused(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"it holds a number too large: {_shortened(text)}")
    return number


def _whole(text: str) -> int:
    # By default int() refuses so many digits itself. With that limit off, a million digits take seconds, ten million
    # minutes.
    if len(text) > 4300:
        raise ValueError(f"it holds a number too large: {_shortened(text)}")
    return int(text)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:20]}... of {len(text)} characters"
