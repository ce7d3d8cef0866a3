"""What the scripts of this folder printed: run here, or captured when the documentation was built."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# pytest would import the scripts, and so run them, to look for doctests.
collect_ignore = [path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")]


def captured(page):
    """The text of the "Out:" blocks of a page that sphinx-gallery wrote."""
    blocks = re.findall(r"^ \.\. code-block:: none\n\n((?:    .*\n|\s*\n)+)", page, re.MULTILINE)
    return "".join(textwrap.dedent(block).strip("\n") + "\n" for block in blocks)


@pytest.fixture(scope="session")
def printed(tmp_path_factory):
    """A function from a script's name to what it printed; a script runs once.

    BNCPU_SITE may name the source folder of a built documentation, whose gallery/NAME.rst has the text already.
    """
    texts = {}

    def run(name):
        if name not in texts:
            if site := os.environ.get("BNCPU_SITE"):
                texts[name] = captured((Path(site) / "gallery" / f"{name}.rst").read_text(encoding="utf-8"))
            else:
                folder = tmp_path_factory.mktemp(name)
                command = [sys.executable, str(HERE / f"{name}.py")]
                environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"}
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=290
                )
                assert done.returncode == 0, done.stderr
                assert (folder / f"{name}.png").stat().st_size > 10_000
                texts[name] = done.stdout
        return texts[name]

    return run
