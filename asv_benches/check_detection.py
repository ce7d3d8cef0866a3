"""Show that asv names figures of the gate that have become 20 % larger, and none that have not.

    python asv_benches/check_detection.py               # with made-up results, in seconds
    python asv_benches/check_detection.py --measured    # on an idle machine, in minutes

Commits without contents are given results and published, with the thresholds of history.conf.json. ``--measured`` runs
this build for every commit; for the last ones an extra pass over two fifths of the data is put before `transform`.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CONFIGURATION = json.loads((HERE / "history.conf.json").read_text(encoding="utf-8"))
FIGURES = {
    "gate.Large.track_multiple": [["'transform 1M x 32'", "'fit 1M x 32'"], ["'float32'", "'float64'"]],
    "gate.Calls.track_multiple": [["'transform 1 x 10'", "'partial_fit 1 x 10'"]],
}
SLOWER = """
from bncpu import BatchNormTransformer

def transform(self, X, *args, before=BatchNormTransformer.transform, **options):
    X[: len(X) * 2 // 5].max()
    return before(self, X, *args, **options)

BatchNormTransformer.transform = transform
"""


def run(*command, **options):
    """Run a command; what it prints."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def names(figures):
    """Every figure of benchmarks with parameters, as asv calls it."""
    return {f"{name}({', '.join(p)})" for name, params in figures.items() for p in itertools.product(*params)}


def repository(folder, n_commits):
    """Make one, with asv's configuration for it; the commits, the first one first."""
    folder.mkdir()
    git = ["git", "-C", folder, "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    run(*git, "init", "--quiet")
    for k in range(n_commits):
        run(*git, "commit", "--quiet", "--allow-empty", "--no-gpg-sign", "--message", k)
    changed = {"repo": str(folder), "benchmark_dir": str((HERE / "benchmarks").resolve()), "results_dir": "results"}
    (folder / "asv.conf.json").write_text(json.dumps(CONFIGURATION | changed), encoding="utf-8")
    return run(*git, "rev-list", "--reverse", "HEAD").split()


def make_up(folder, commits, n_slow, factor, scatter=0.01):
    """Write results of which the last `n_slow` are `factor` times as large."""
    machine = {"machine": "made-up", "version": 1}
    benchmarks = {
        name: {
            "name": name, "params": params, "param_names": [f"p{k}" for k in range(len(params))], "code": "",
            "type": "track", "unit": "times the limit", "version": "1",
        }
        for name, params in FIGURES.items()
    }  # fmt: skip
    written = {"benchmarks.json": {"version": 2} | benchmarks, "made-up/machine.json": machine}
    rng = np.random.default_rng(0)
    for k, commit in enumerate(commits):
        level = factor if k >= len(commits) - n_slow else 1
        results = {}
        for name, params in FIGURES.items():
            n = len(list(itertools.product(*params)))
            results[name] = [(level * np.exp(scatter * rng.standard_normal(n))).tolist(), params, "1"]
        written[f"made-up/{commit[:8]}-python.json"] = {
            "commit_hash": commit, "date": 1000 * k, "env_name": "python", "env_vars": {}, "params": machine,
            "python": "3", "requirements": {}, "result_columns": ["result", "params", "version"],
            "results": results, "durations": {}, "version": 2,
        }  # fmt: skip
    (folder / "results" / "made-up").mkdir(parents=True)
    for name, contents in written.items():
        (folder / "results" / name).write_text(json.dumps(contents), encoding="utf-8")


def measure(folder, commits, n_slow):
    """Run this build for each commit, the slower one for the last `n_slow`."""
    (folder / "slower").mkdir()
    (folder / "slower" / "sitecustomize.py").write_text(SLOWER, encoding="utf-8")
    asv = [sys.executable, "-m", "asv"]
    home = os.environ | {"HOME": str(folder)}  # asv keeps a description of the machine there
    run(*asv, "machine", "--yes", cwd=folder, env=home)
    for k, commit in enumerate(commits):
        slower = {"PYTHONPATH": str(folder / "slower")} if k >= len(commits) - n_slow else {}
        chosen = ["--bench", r"gate\.Large\.track_multiple\('(transform|fit) 1M x 32', 'float32'"]
        printed = run(
            *asv, "run", "--python=same", f"--set-commit-hash={commit}", *chosen, cwd=folder, env=home | slower
        )
        print(*(line for line in printed.splitlines() if "float32" in line and "n/a" not in line), sep="\n", flush=True)


def listed(folder):
    """The figures on asv's page of regressions."""
    run(sys.executable, "-m", "asv", "publish", cwd=folder)
    found = json.loads((folder / "html" / "regressions.json").read_text(encoding="utf-8"))["regressions"]
    return {name for name, *_ in found}


def check(found, expected):
    """Stop at another list."""
    print(f"{len(found)} listed, {len(expected)} expected", flush=True)
    assert found == expected, found ^ expected


with tempfile.TemporaryDirectory() as work:
    if sys.argv[1:] == ["--measured"]:
        measure(Path(work, "measured"), repository(Path(work, "measured"), 20), 8)
        check(listed(Path(work, "measured")), {"gate.Large.track_multiple('transform 1M x 32', 'float32')"})
    else:
        for factor in (1.2, 1.0, 1 / 1.2):
            folder = Path(work, f"{factor:.2f}")
            make_up(folder, repository(folder, 20), 2, factor)  # asv takes a single commit for noise
            check(listed(folder), names(FIGURES) if factor > 1 else set())
