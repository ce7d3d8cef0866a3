"""Measure commits by the figures of the gate, each commit built, and keep the results in history/.

    python asv_benches/history.py MACHINE COMMITS...

MACHINE is a name for the processor, such as epyc-zen4-2-cores. COMMITS are what `git rev-list --first-parent` takes:
``-n 20 main``, ``v0.1..main``, ``-n 20 main -- bncpu`` for the last that changed the package. Commits that have results
of this machine are left out. Needs an idle machine, and asv and virtualenv.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def asv(*arguments, **options):
    """Run one of asv's commands where the configuration is; its exit status."""
    return subprocess.run([sys.executable, "-m", "asv", *arguments], cwd=HERE, **options).returncode


def measure(machine, commits):
    """Run the gate's figures at each of the commits; not 0 if one failed."""
    # asv takes the fields that are not given from its entry for this host, which the first command makes.
    asv("machine", "--yes", stdout=subprocess.DEVNULL)
    asv("machine", "--machine", machine, "--os", sys.platform, "--yes", stdout=subprocess.DEVNULL)
    chosen = ["--bench", r"gate\..*track_multiple", "--skip-existing", "HASHFILE:-"]
    return asv("run", "--config", "history.conf.json", "--machine", machine, *chosen, input=commits, text=True)


def keep_what_has_results():
    """Leave other benchmarks out of asv's list: their pages would be empty."""
    found = {
        name
        for path in (HERE / "history").glob("*/*-*.json")
        for name in json.loads(path.read_text(encoding="utf-8"))["results"]
    }
    path = HERE / "history" / "benchmarks.json"
    listed = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in listed.items() if name in found | {"version"}}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    name, *which = sys.argv[1:]
    git = ["git", "rev-list", "--first-parent", *which]
    status = measure(name, subprocess.run(git, check=True, stdout=subprocess.PIPE, text=True).stdout)
    keep_what_has_results()
    sys.exit(status)
