"""The scripts in examples/ run, and find what they say they find."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(name, cwd, *launcher):
    command = [*launcher, sys.executable, str(EXAMPLES / name)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=100).stdout


def test_processes_that_share_a_batch_get_the_results_of_the_whole(tmp_path):
    assert printed("synchronized_batch_norm.py", tmp_path).endswith("equal to 13 digits: True\n")


@pytest.mark.parametrize("name", ["merge_joblib.py", "merge_multiprocessing.py", "merge_dask.py"])
def test_workers_that_merge_have_the_statistics_of_the_whole(name, tmp_path):
    lines = printed(name, tmp_path).splitlines()
    assert lines[-2:] == ["rows: 10000", "equal to 12 digits: True"]
    assert not any("False" in line for line in lines)


def test_ranks_of_mpi_end_with_the_same_statistics(tmp_path):
    pytest.importorskip("mpi4py", reason="pip install mpi4py mpich")
    beside_python = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    launcher = shutil.which("mpiexec", path=beside_python)
    lines = printed("merge_mpi.py", tmp_path, launcher, "-n", "2").splitlines()
    assert lines == ["ranks: 2 rows: 10000", "equal to 12 digits: True", "same bits on every rank: True"]
