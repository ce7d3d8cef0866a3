"""What the scripts of this folder printed: run here, or captured when the documentation was built."""

import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# pytest would import the scripts, and so run them, to look for doctests.
collect_ignore = [path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")]
SCRIPTS = sorted({Path(name).stem for name in collect_ignore} - {"conftest", "networks"})

# Seconds, to end what hangs. A script takes up to 80 s on a core of its own, but where others want the cores, too, two
# threads of OpenBLAS wait for each other in a loop, and have taken 20 minutes.
TIMEOUT = 3600


def captured(page):
    """The text of the "Out:" blocks of a page that sphinx-gallery wrote."""
    blocks = re.findall(r"^ \.\. code-block:: none\n\n((?:    .*\n|\s*\n)+)", page, re.MULTILINE)
    return "".join(textwrap.dedent(block).strip("\n") + "\n" for block in blocks)


def output(name, folder):
    """What a script prints, run in an empty folder, without a warning."""
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(HERE / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return done.stdout


@pytest.fixture(scope="session")
def printed(tmp_path_factory):
    """A function from a script's name to what it printed; a script runs once, when it is asked for.

    BNCPU_SITE may name the source folder of a built documentation, whose gallery/NAME.rst has the text already. With
    BNCPU_EVIDENCE_JOBS all scripts run from the start, so many side by side.
    """
    if site := os.environ.get("BNCPU_SITE"):
        yield lambda name: captured((Path(site) / "gallery" / f"{name}.rst").read_text(encoding="utf-8"))
        return
    jobs, running = int(os.environ.get("BNCPU_EVIDENCE_JOBS", "0")), {}
    with ThreadPoolExecutor(max(1, jobs)) as pool:

        def started(name):
            if name not in running:
                running[name] = pool.submit(output, name, tmp_path_factory.mktemp(name))
            return running[name]

        for name in SCRIPTS if jobs else ():
            started(name)
        yield lambda name: started(name).result()
        pool.shutdown(cancel_futures=True)
