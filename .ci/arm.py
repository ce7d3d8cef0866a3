"""Does the library work on 64-bit ARM? The step `arm` of .ci/run.

    python .ci/arm.py SOURCE ROOT

Builds the library in SOURCE, a copy of the checkout, and runs the tests of its loops and of its bits with each
instruction set. On an ARM machine that is all. On Debian or Ubuntu for x86-64, ROOT is first made a Debian for ARM,
whose programs run under qemu, unless it is one from the last time. That needs root, a Debian mirror, and

    apt-get install qemu-user-static debootstrap gcc-aarch64-linux-gnu

qemu does the same arithmetic. It says nothing of speed, and gcc under it would take an hour: the cross compiler takes
its place there, and runs as a program of this machine.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ISAS = "neon", "c"
TESTS = "tests/test_reproducibility.py", "tests/test_kernels.py"
TEST_PACKAGES = "hypothesis", "pytest", "pytest-timeout"

# The Debian, its Python and its C library: wheels for the latter and older ones run there.
SUITE, PYTHON, GLIBC = "bookworm", "3.11", (2, 36)
PACKAGES = "libc6-dev", "libgomp1", "python3", "python3-dev", "python3-venv"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")

# The cross compiler, under the name that Debian's Python for ARM calls, its assembler and linker, and all that they are
# made of, seen where they are here. What programs load is the Debian's.
PROGRAMS = [f"aarch64-linux-gnu-{name}" for name in ("gcc", "as", "ld")]
GCC = PROGRAMS[0]
CROSS = "/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/gcc-cross", "/usr/aarch64-linux-gnu"
ENTER = f"""
for folder in {" ".join(CROSS)}; do
    mkdir -p "$0$folder"
    mount --bind "$folder" "$0$folder"
done
for program in {" ".join(PROGRAMS)}; do
    touch "$0/usr/bin/$program"
    mount --bind "$(realpath "$(type -P "$program")")" "$0/usr/bin/$program"
done
mount -t proc proc "$0/proc"
exec chroot "$0" bash -c 'cd /source && exec "$@"' run "$@"
"""


class Here:
    """An ARM machine, this one; the active environment takes what is installed."""

    def __init__(self, source):
        self.source, self.python = source, sys.executable

    def run(self, *command, **variables):
        """Run a command in the source tree; the script ends if it fails."""
        subprocess.run(command, cwd=self.source, env=os.environ | variables, check=True)

    def install(self):
        """Build and install the library, and what its tests need."""
        self.run(self.python, "-m", "pip", "install", "--quiet", "-e", ".", *TEST_PACKAGES)


class Emulated:
    """A Debian for ARM in the folder `root`, with the source tree in /source and an environment in /environment."""

    python = "/environment/bin/python"

    def __init__(self, source, root):
        self.root = root
        if os.geteuid() != 0:
            sys.exit("this step needs root: it makes a Debian for ARM, and shows the kernel how to run its programs")
        if not QEMU.exists() or None in (shutil.which("debootstrap"), shutil.which(GCC)):
            sys.exit(
                "this step needs qemu, debootstrap and a cross compiler: "
                "apt-get install qemu-user-static debootstrap gcc-aarch64-linux-gnu"
            )
        register()
        if not (root / "complete").exists():
            if root.exists() and any(root.iterdir()):
                sys.exit(f"{root} must be empty, or hold the complete Debian of an earlier run; remove what is there")
            subprocess.run(
                [
                    "unshare",
                    "--mount",
                    "debootstrap",
                    "--arch=arm64",
                    "--variant=minbase",
                    f"--include={','.join(PACKAGES)}",
                    SUITE,
                    root,
                ],
                check=True,
            )
            (root / "complete").touch()
        shutil.rmtree(root / "source", ignore_errors=True)
        shutil.copytree(source, root / "source")

    def run(self, *command, **variables):
        """Run a command in the source tree; the script ends if it fails."""
        # What is mounted for it, and whatever it has started, ends with it.
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", ENTER, str(self.root)]
        # The linker does not find its plugin there; it is for optimization when linking, which is not asked for.
        compiler = {"CC": f"{GCC} -fno-use-linker-plugin"}
        system = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"} | compiler
        subprocess.run([*inside, *command], env=system | variables, check=True)

    def install(self):
        """Build and install the library, and what its tests need, from wheels that this machine has fetched."""
        described = tomllib.loads((self.root / "source" / "pyproject.toml").read_text())
        needed = [*described["build-system"]["requires"], *described["project"]["dependencies"], *TEST_PACKAGES]
        shutil.rmtree(self.root / "wheels", ignore_errors=True)
        tags = [f"manylinux_{GLIBC[0]}_{minor}_aarch64" for minor in range(GLIBC[1], 16, -1)]
        platforms = [f"--platform={tag}" for tag in (*tags, "manylinux2014_aarch64")]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={PYTHON}",
             *platforms, f"--dest={self.root / 'wheels'}", *needed],
            check=True,
        )  # fmt: skip
        self.run("python3", "-m", "venv", "--clear", "/environment")
        pip = [self.python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links=/wheels"]
        self.run(*pip, *needed)
        self.run(*pip, "--no-build-isolation", "-e", ".")


def register():
    """Let the kernel start programs for ARM through qemu, as installing that does where there is an init system."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    if not (BINFMT / "qemu-aarch64").exists():
        (BINFMT / "register").write_text(QEMU.read_text())


def main():
    """Exit with an error if something does not build or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a copy of the checkout, which is built there")
    parser.add_argument("root", type=Path, help="where the Debian is, or will be")
    asked = parser.parse_args()
    native = platform.machine() in ("aarch64", "arm64")
    machine = Here(asked.source) if native else Emulated(asked.source.resolve(), asked.root.resolve())
    machine.install()
    machine.run(machine.python, "-m", "bncpu", "versions")
    machine.run(machine.python, "-c", f"from bncpu import _kernels; assert _kernels.isa_variants() == {ISAS}")
    for isa in ISAS:
        chosen = f"from bncpu import _kernels; assert _kernels.isa() == {isa!r}"
        machine.run(machine.python, "-c", chosen, BNCPU_ISA=isa)
        machine.run(
            machine.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=1200", *TESTS, BNCPU_ISA=isa
        )


if __name__ == "__main__":
    main()
