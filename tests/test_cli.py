"""The console command, run as a user would, and what it prints."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from own_process import run

from bncpu import __version__, _inputs, cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["normalise"], "invalid choice: 'normalise'"),
        (["demo", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["demo", "--picture", "nowhere/x.png"], "--picture must be in an existing folder, got nowhere"),
        (["fit", "x.npy"], "the following arguments are required: -o/--out"),
        (["fit", "-o", "s.json"], "the following arguments are required: IN"),
        (["fit", "x.npy", "-o", "nowhere/s.json"], "-o must be in an existing folder, got nowhere"),
        (
            ["fit", "x.npy", "-o", "s.json", "--momentum", "0.9", "--halflife", "9"],
            "not allowed with argument --momentum",
        ),
        (["fit", "x.npy", "-o", "s.json", "--momentum", "2"], "momentum == 2.0, must be < 1"),
        (["fit", "x.npy", "-o", "s.json", "--eps", "-1"], "eps == -1.0, must be >= 0"),
        (["fit", "x.npy", "-o", "s.json", "--batch-rows", "0"], "--batch-rows must be at least 1, got 0"),
        (["fit", "x.npy", "-o", "s.json", "--columns", "a,,b"], "--columns must be different names"),
        (["fit", "x.npy", "-o", "s.json", "--columns", "a,a"], "--columns must be different names"),
        (["fit", "x.npy", "-o", "s.json", "--columns", "a", "--columns", "a,b"], "--columns must be different names"),
        (["fit", "x.npy", "-o", "s.json", "--exclude", ""], "--exclude must be different names"),
        (["fit", "x.npy", "-o", "s.json", "--exclude", ",a"], "--exclude must be different names"),
        (["fit", "x.npy", "-o", "s.json", "--exclude", "a", "--columns", "b"], "not allowed with argument --exclude"),
        (["fit", "x.npy", "-o", "s.json", "--columns", "a,b", "--weights", "b"], "--weights b is one of --columns"),
        (["transform", "s.json", "x.npy", "-o", "y.txt"], "-o must end in .npy, .csv, .tsv, .jsonl, .parquet"),
        (["merge", "-o", "s.json"], "the following arguments are required: STATE"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    if arguments and arguments[0] in cli.COMMANDS:
        assert err.startswith(f"usage: bncpu {arguments[0]} ")


def test_the_formats_that_can_be_asked_for_are_those_that_are_read():
    """`cli` lists them again, as it imports no reader to show its help."""
    asked = {f".{name}" for name in cli.FORMATS}
    assert asked == {_inputs.format_of(Path("-"), name) for name in cli.FORMATS} <= set(_inputs.FORMATS)
    assert set(_inputs.FORMATS) - asked == {".feather", ".ipc", ".ndjson"}
    assert ("", *_inputs.COMPRESSED) == cli.COMPRESSIONS


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"bncpu {__version__}\n"


@pytest.mark.parametrize("command", ["fit", "transform", "merge", "show", "demo", "bench"])
def test_the_help_of_a_command_has_an_example_that_parses(command, capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    example = re.search(rf"examples?: bncpu ({command}[^;]*)", capsys.readouterr().out.replace("\n", " "))[1]
    monkeypatch.chdir(tmp_path)
    if command in cli.FILE_COMMANDS:
        assert cli.main(shlex.split(example)) == 1  # the files are not there: no wrong argument
        assert re.fullmatch(r"bncpu: (no file matches|there is no state file) .*\n", capsys.readouterr().err)


@pytest.mark.filterwarnings("default")
def test_pytorchs_momentum_is_one_line_of_warning(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.eye(3))
    assert cli.main(["fit", str(tmp_path / "x.npy"), "-o", str(tmp_path / "s.json"), "--momentum", "0.1"]) == 0
    assert re.fullmatch(r"bncpu: .*momentum.*\n", capsys.readouterr().err)


def test_python_m_bncpu_is_the_command():
    done = subprocess.run([sys.executable, "-m", "bncpu", "versions"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"bncpu: {__version__}\n")


def test_a_picture_that_cannot_be_saved_is_one_line(tmp_path, capsys):
    assert cli.main(["demo", "--rows", "12", "--picture", str(tmp_path / "x.xyz")]) == 1
    assert re.fullmatch(r"bncpu: Format 'xyz' is not supported.*\n", capsys.readouterr().err)


def test_a_missing_extra_is_named_in_one_line():
    code = "import sys; sys.modules['rich'] = None; sys.modules['rich.console'] = None; sys.stderr = sys.stdout\n"
    said, status = run(code, "from bncpu.cli import main; print(main(['demo']))").splitlines()
    assert re.fullmatch(r"bncpu: the demo needs rich\S*: pip install 'bncpu\[demo\]'", said)
    assert status == "1"


def test_importing_bncpu_imports_nothing_that_scikit_learn_does_not():
    code = "import sys, sklearn.pipeline, sklearn.preprocessing; before = set(sys.modules); import bncpu; "
    code += "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    # Cython keeps the types that its modules share in a module named after its version.
    imported = {name for name in ast.literal_eval(run(code)) if not name.startswith("_cython_")}
    assert imported == {"bncpu"}
