"""The tests of scikit-learn, and of libraries that use StandardScaler, with bncpu.patch_sklearn() and without it.

    pip install pytest pytest-xdist scikit-learn skops skl2onnx ... && pip install .
    python comparisons/their_tests.py sklearn                       # the whole suite, twice: an hour and more
    python comparisons/their_tests.py sklearn --mentioning          # only the files that mention StandardScaler
    python comparisons/their_tests.py sklearn --quick -k scale      # without it only what fails with it
    python comparisons/their_tests.py skops dask_ml --json their_tests.json

Ends with exit status 1 if a test fails with the patch that does not fail without it. A test that differs is run twice
more each way: some of these suites have tests that fail now and then.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree


def main():
    """Run what the command line names, each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="+", help="packages, modules, or folders and files of tests")
    parser.add_argument("--mentioning", action="store_true", help="only files that mention StandardScaler")
    parser.add_argument("--quick", action="store_true", help="without the patch, run only what fails with it")
    parser.add_argument("-k", metavar="EXPRESSION", help="as pytest's")
    parser.add_argument("--jobs", default="auto", help="processes of pytest-xdist (auto)")
    parser.add_argument("--json", metavar="FILE", help="where to write the lists of failures")
    asked = parser.parse_args()
    lists, worse, chosen = {}, False, ["-k", asked.k] if asked.k else []
    for package in asked.packages:
        targets = files(package) if asked.mentioning else [package]
        with_patch = outcomes(targets, asked.jobs, True, *chosen)
        after = failures(with_patch)
        if not asked.quick:
            without = outcomes(targets, asked.jobs, False, *chosen)
        elif after:
            without = outcomes(sorted({module(name) or package for name in after}), asked.jobs, False, *chosen)
        else:
            without = {}
        before = failures(without)
        only = {name for name in after - before if not is_flaky(name, targets)}
        gone = sorted(set(without) - set(with_patch))
        print(f"{package}: {len(with_patch)} tests, {len(before)} fail without the patch, {len(after)} with it")
        for name in sorted(only):
            print(f"  only with it: {name}")
        for name in gone[:10]:
            print(f"  not run with it: {name}")
        worse |= bool(only) or bool(gone) or not with_patch
        lists[package] = {
            "tests": len(with_patch),
            "fail without": sorted(before),
            "fail with": sorted(after),
            "only with": sorted(only),
        }
    if asked.json:
        pathlib.Path(asked.json).write_text(json.dumps(lists, indent=1) + "\n")
    sys.exit(worse)


def files(package):
    """The test files of a package that mention StandardScaler."""
    root = pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])
    found = [path for path in sorted(root.rglob("test_*.py")) if "StandardScaler" in path.read_text()]
    return [".".join([package, *path.relative_to(root).with_suffix("").parts]) for path in found]


def outcomes(targets, jobs, patched, *more):
    """From the name of each test to whether it passed, failed or was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestWarning"]
        command += ["-n", str(jobs)] * (jobs != "0") + ["-p", "bncpu.accel"] * patched
        command += [f"--junitxml={report}", "--pyargs", *targets, *more]
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, env=os.environ | {"MPLBACKEND": "agg"})
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            name = f"{case.get('classname')}::{case.get('name')}"
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            found[name] = "failed" if found.get(name) == "failed" else outcome
        return found


def failures(found):
    """The names of the tests that failed."""
    return {name for name, outcome in found.items() if outcome == "failed"}


def module(name):
    """The module of a test of a package, which may be in a class; None for a test in a folder."""
    parts = name.partition("::")[0].split(".")
    while parts and parts != [""]:
        with contextlib.suppress(ImportError):
            if importlib.util.find_spec(".".join(parts)):
                return ".".join(parts)
        parts.pop()
    return None


def is_flaky(name, targets):
    """Whether a test passes with the patch when it is run once more, or fails without it."""
    target = [module(name)] if module(name) else targets
    chosen = "-k", name.rpartition("::")[2].partition("[")[0]
    for _ in range(2):
        if outcomes(target, "0", True, *chosen).get(name) == "passed":
            return True
        if outcomes(target, "0", False, *chosen).get(name) == "failed":
            return True
    return False


if __name__ == "__main__":
    main()
