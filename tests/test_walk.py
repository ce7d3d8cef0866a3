"""What is chosen for the processor; that no choice changes a bit stands in test_normalize.py and test_kernels.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bncpu import _kernels, _walk


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (("GenuineIntel", 6), ("GenuineIntel", 4, 0)),
        (("AuthenticAMD", 25), ("AuthenticAMD family 25", 1, 2048)),
        (("AuthenticAMD", 26), ("AuthenticAMD family 26", 1, 0)),
        (("AuthenticAMD", 23), ("AuthenticAMD", 1, 2048)),
        (("HygonGenuine", 24), ("any", 1, 0)),
        (("", 0), ("any", 1, 0)),
    ],
)
def test_the_walk_is_that_of_the_family_or_maker_and_careful_on_what_nobody_has_measured(
    processor, expected, monkeypatch
):
    for name in ("BNCPU_STREAMS", "BNCPU_READ_AHEAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_kernels, "processor", lambda: processor)
    assert _walk.of_this_machine()[:3] == expected


@pytest.mark.parametrize(("told", "expected"), [(1 << 20, 1 << 19), (2 << 20, 1 << 20), (0, 1 << 20)])
def test_half_of_the_second_level_cache_is_kept_for_the_next_step(told, expected, monkeypatch):
    monkeypatch.setattr(_kernels, "second_level_cache", lambda: told)
    assert _walk.of_this_machine().resident_bytes == expected


CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@pytest.mark.skipif(not CACHES.exists(), reason="the system does not say what caches there are")
def test_the_size_of_the_cache_is_what_the_system_says():
    levels = {(folder / "level").read_text().strip(): folder for folder in CACHES.glob("index*")}
    assert _kernels.second_level_cache() == int((levels["2"] / "size").read_text().strip().removesuffix("K")) << 10


def test_the_environment_overrides_the_walk(monkeypatch):
    for asked in ("1", "4"):
        monkeypatch.setenv("BNCPU_STREAMS", asked)
        assert _walk.of_this_machine().streams == int(asked)
    monkeypatch.setenv("BNCPU_READ_AHEAD", "192")
    assert _walk.of_this_machine().ahead == 192


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("BNCPU_STREAMS", "3", "must be 1 or 4"), ("BNCPU_READ_AHEAD", "100", "must be a multiple of 64 up to 1048576")],
)
def test_another_walk_is_one_clear_error(name, value, expected):
    child = [sys.executable, "-c", "import bncpu"]
    done = subprocess.run(child, env=os.environ | {name: value}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ValueError: {name} {expected}, got {value!r}" in done.stderr
