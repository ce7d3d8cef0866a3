"""The console command, run as a user would, and what it prints."""

import ast
import re
import subprocess
import sys

import pytest

from bncpu import __version__, cli


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


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"bncpu {__version__}\n"


def test_python_m_bncpu_is_the_command():
    done = subprocess.run([sys.executable, "-m", "bncpu", "versions"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"bncpu: {__version__}\n")


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
    # Cython keeps the types that its modules share in a module named after its version.
    imported = {name for name in ast.literal_eval(done.stdout) if not name.startswith("_cython_")}
    assert imported == {"bncpu"}
