"""Does the library work on 64-bit ARM? The step `arm` of .ci/run.

    python .ci/arm.py SOURCE ROOT

Builds the library in SOURCE, a copy of the checkout, and runs the tests of its loops and of its bits with each
instruction set. On an ARM machine that is all. On Debian or Ubuntu for x86-64, ROOT is first made a Debian for ARM,
unless it is one from the last time; machines.py says what that needs.
"""

import argparse
import platform
import shutil
import tomllib
from pathlib import Path

from machines import Debian, Here

ISAS = "neon", "c"
TESTS = "tests/test_reproducibility.py", "tests/test_kernels.py"
TEST_PACKAGES = "hypothesis", "pytest", "pytest-timeout"
PACKAGES = "libc6-dev", "libgomp1", "python3", "python3-dev", "python3-venv"


def test(machine, *options):
    """Run tests with each instruction set, and see that it is the one in use."""
    machine.run(machine.python, "-m", "bncpu", "versions")
    machine.run(machine.python, "-c", f"from bncpu import _kernels; assert _kernels.isa_variants() == {ISAS}")
    for isa in ISAS:
        chosen = f"from bncpu import _kernels; assert _kernels.isa() == {isa!r}"
        machine.run(machine.python, "-c", chosen, BNCPU_ISA=isa)
        quiet = "-q", "-p", "no:cacheprovider", "-o", "timeout=1200"
        machine.run(machine.python, "-m", "pytest", *quiet, *options, *TESTS, BNCPU_ISA=isa)


def main():
    """Exit with an error if something does not build or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a copy of the checkout, which is built there")
    parser.add_argument("root", type=Path, help="where the Debian is, or will be")
    asked = parser.parse_args()
    if platform.machine() in ("aarch64", "arm64"):
        machine = Here(asked.source)
        machine.run(machine.python, "-m", "pip", "install", "--quiet", "-e", ".", *TEST_PACKAGES)
    else:
        machine = Debian(asked.root.resolve(), "aarch64", *PACKAGES)
        shutil.copytree(asked.source, machine.source, dirs_exist_ok=True)
        described = tomllib.loads((asked.source / "pyproject.toml").read_text())
        needed = *described["build-system"]["requires"], *described["project"]["dependencies"]
        machine.add_cross_compiler()
        machine.environment(*needed, *TEST_PACKAGES)
        machine.install("--no-build-isolation", "-e", ".")
    test(machine)


if __name__ == "__main__":
    main()
