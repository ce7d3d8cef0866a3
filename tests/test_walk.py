"""What is chosen for the processor; that no choice changes a bit stands in test_normalize.py and test_kernels.py."""

import os
import subprocess
import sys

import pytest

from bncpu import _kernels, _walk


@pytest.mark.parametrize(
    ("vendor", "expected"),
    [("GenuineIntel", ("GenuineIntel", 4)), ("AuthenticAMD", ("AuthenticAMD", 1)), ("", ("any", 1))],
)
def test_streams_are_those_of_the_maker_and_one_on_what_nobody_has_measured(vendor, expected, monkeypatch):
    monkeypatch.delenv("BNCPU_STREAMS", raising=False)
    monkeypatch.setattr(_kernels, "processor_vendor", lambda: vendor)
    assert _walk.of_this_machine()[:2] == expected


@pytest.mark.parametrize(("told", "expected"), [(1 << 20, 1 << 19), (2 << 20, 1 << 20), (0, 1 << 20), (-1, 1 << 20)])
def test_half_of_the_second_level_cache_is_kept_for_the_next_step(told, expected, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: told, raising=False)
    assert _walk.of_this_machine().resident_bytes == expected


def test_without_sysconf_a_common_size_is_taken(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert _walk.of_this_machine().resident_bytes == 1 << 20


def test_the_environment_overrides_the_streams(monkeypatch):
    for asked in ("1", "4"):
        monkeypatch.setenv("BNCPU_STREAMS", asked)
        assert _walk.of_this_machine().streams == int(asked)


def test_another_number_of_streams_is_one_clear_error():
    child = [sys.executable, "-c", "import bncpu"]
    done = subprocess.run(child, env=os.environ | {"BNCPU_STREAMS": "3"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ValueError: BNCPU_STREAMS must be 1 or 4, got '3'" in done.stderr
