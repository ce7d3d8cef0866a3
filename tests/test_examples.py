"""The scripts in examples/ run, and find what they say they find."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(name, cwd):
    command = [sys.executable, str(EXAMPLES / name)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=100).stdout


def test_processes_that_share_a_batch_get_the_results_of_the_whole(tmp_path):
    assert printed("synchronized_batch_norm.py", tmp_path).endswith("equal to 13 digits: True\n")
