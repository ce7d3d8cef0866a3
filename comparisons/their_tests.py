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
import collections
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
        root, targets = found_in(package, asked.mentioning)
        with_patch = outcomes(root, targets, asked.jobs, True, *chosen)
        after = failures(with_patch)
        some = sorted({name.rpartition("::")[2].partition("[")[0] for name in after})
        if not asked.quick:
            without = outcomes(root, targets, asked.jobs, False, *chosen)
        else:
            without = outcomes(root, targets, asked.jobs, False, "-k", " or ".join(some)) if after else {}
        before = failures(without)
        only = {name for name in after - before if not is_flaky(name, root, targets)}
        gone = [] if asked.quick else sorted(functions(without) - functions(with_patch))
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


def found_in(package, mentioning):
    """The folder that names of tests are relative to, and what to give to pytest: files, if only some are wanted."""
    path = pathlib.Path(package)
    if not path.exists():
        spec = importlib.util.find_spec(package)
        path = pathlib.Path((spec.submodule_search_locations or [spec.origin])[0])
    path = path.resolve()
    targets = [path]
    if mentioning and path.is_dir():
        targets = [file for file in sorted(path.rglob("test_*.py")) if "StandardScaler" in file.read_text()]
    root = path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    return root, [str(target) for target in targets]


def functions(found):
    """The tests without their parameters, whose names may be random; each with how many there are."""
    counts = collections.Counter(name.partition("[")[0] for name in found)
    return {f"{name}, {number} times" for name, number in counts.items()}


def outcomes(root, targets, jobs, patched, *more):
    """From the name of each test to whether it passed, failed or was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestWarning"]
        command += ["-n", str(jobs)] * (jobs != "0") + ["-p", "bncpu.accel"] * patched
        command += [f"--junitxml={report}", f"--rootdir={root}", "--continue-on-collection-errors", *targets, *more]
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, env=os.environ | {"MPLBACKEND": "agg"})
        if not report.exists():  # pytest refused its arguments, or died
            return {}
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


def is_flaky(name, root, targets):
    """Whether a test passes with the patch when it is run once more, or fails without it."""
    module, _, test = name.partition("[")[0].rpartition("::")
    chosen = ["-k", test] if module else []  # without a module: the module itself could not be imported
    for _ in range(2):
        if outcomes(root, targets, "0", True, *chosen).get(name) == "passed":
            return True
        if outcomes(root, targets, "0", False, *chosen).get(name) == "failed":
            return True
    return False


if __name__ == "__main__":
    main()
