"""The console command, run as a user would, and what it prints."""

import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

import bncpu
from bncpu import cli, gpu


def test_demo_streams_checks_times_and_draws(tmp_path, capsys):
    picture = tmp_path / "settling.png"
    assert cli.main(["demo", "--rows", "30", "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "37,980 x 192 float32 in 3 batch(es)" in printed
    for mean, var in re.findall(r"means differ by at most (\S+) standard deviations, variances by (\S+) of", printed):
        assert float(mean) <= 1e-12 and float(var) <= 1e-11
    raw, normalized = map(float, re.search(r"raw (\S+), normalized (\S+)", printed).groups())
    assert 0.9 < raw < 1 and 0.9 < normalized < 1
    assert len(re.findall(r"(partial_fit|transform) .* M rows/s .* times as fast", printed)) == 2
    image = imread(picture)
    assert image.shape[0] > 300 and np.ptp(image) > 0.5


def test_versions_are_one_pasteable_block(capsys):
    assert cli.main(["versions"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["bncpu"] == bncpu.__version__
    assert lines["numpy"] == np.__version__
    assert re.fullmatch(r"\w+ \(of .*c\)", lines["instruction sets"])
    assert set(lines) >= {"scikit-learn", "python", "platform", "OpenMP", "threads", "OMP_NUM_THREADS", "CUDA"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["normalise"], "invalid choice: 'normalise'"),
        (["demo", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["demo", "--picture", "nowhere/x.png"], "--picture must be in an existing folder, got nowhere"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_picture_that_cannot_be_saved_is_one_line(tmp_path, capsys):
    assert cli.main(["demo", "--rows", "12", "--picture", str(tmp_path / "x.xyz")]) == 1
    assert re.fullmatch(r"bncpu: Format 'xyz' is not supported.*\n", capsys.readouterr().err)


def test_a_missing_extra_is_named_in_one_line():
    code = "import sys; sys.modules['rich'] = None; sys.modules['rich.console'] = None\n"
    code += "from bncpu.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"bncpu: the demo needs rich\S*: pip install 'bncpu\[demo\]'\n", done.stderr)


def test_importing_bncpu_imports_nothing_that_scikit_learn_does_not():
    code = "import sys, sklearn.preprocessing; before = set(sys.modules); import bncpu; "
    code += "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'bncpu'}"


def test_the_gpu_says_in_one_line_why_it_cannot_be_used(monkeypatch):
    reason = gpu.why_unavailable()
    assert gpu.is_available() == (reason is None)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert gpu.why_unavailable() == "numba-cuda is not installed: pip install 'bncpu[gpu]'"
    assert not gpu.is_available()
