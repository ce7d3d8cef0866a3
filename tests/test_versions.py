"""The block that a bug report needs."""

import importlib.metadata
import re

import numpy as np

import bncpu
from bncpu import cli


def test_versions_are_one_pasteable_block(capsys):
    assert cli.main(["versions"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["bncpu"] == bncpu.__version__
    assert lines["numpy"] == np.__version__
    assert re.fullmatch(r"\w+ \(of .*c\)", lines["instruction sets"])
    assert set(lines) >= {"scikit-learn", "python", "platform", "OpenMP", "threads", "OMP_NUM_THREADS", "CUDA"}


def test_a_package_that_is_not_there_is_said_to_be_so(monkeypatch, capsys):
    versions = importlib.metadata.version

    def without_joblib(name):
        if name == "joblib":
            raise importlib.metadata.PackageNotFoundError(name)
        return versions(name)

    monkeypatch.setattr(importlib.metadata, "version", without_joblib)
    bncpu.show_versions()
    assert "joblib: not installed\n" in capsys.readouterr().out
