"""The machines that steps of .ci/run build and test on: this one, and Debians in folders of it.

A Debian needs root, a Debian mirror and `apt-get install debootstrap`. One for ARM on another processor also needs

    apt-get install qemu-user-static gcc-aarch64-linux-gnu

Its programs run under qemu, which does the same arithmetic. It says nothing of speed, and gcc under it would take an
hour: the cross compiler takes its place there, and runs as a program of this machine.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# The Debian, its Python and its C library: wheels for the latter and older ones run there.
SUITE, PYTHON, GLIBC = "bookworm", "3.11", (2, 36)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")

# The cross compiler, under the name that Debian's Python for ARM calls, its assembler and linker, and all that they are
# made of, seen where they are here. What programs load is the Debian's.
PROGRAMS = [f"aarch64-linux-gnu-{name}" for name in ("gcc", "as", "ld")]
GCC = PROGRAMS[0]
CROSS = "/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/gcc-cross", "/usr/aarch64-linux-gnu"


class Here:
    """The machine itself, in the folder `source`; the active environment takes what is installed."""

    def __init__(self, source):
        self.source, self.python = source, sys.executable

    def run(self, *command, **variables):
        """Run a command in the folder; the script ends if it fails."""
        subprocess.run(command, cwd=self.source, env=os.environ | variables, check=True)


class Debian:
    """A Debian for `processor` in the folder `root`, made unless it is there, with an environment in /environment.

    Commands run in /source, and see what is at the `mounted` paths of this machine: {path: path there}.
    """

    python = "/environment/bin/python"

    def __init__(self, root, processor, *packages):
        self.root, self.source, self.processor = root, root / "source", processor
        self.mounted, self.variables = {}, {}
        if os.geteuid() != 0:
            sys.exit("this step needs root: it makes a Debian, and enters it")
        if not shutil.which("debootstrap"):
            sys.exit("this step needs debootstrap: apt-get install debootstrap")
        if processor != platform.machine():
            if not QEMU.exists() or not shutil.which(GCC):
                sys.exit(
                    "this step needs qemu and a cross compiler: apt-get install qemu-user-static gcc-aarch64-linux-gnu"
                )
            register()
        if not (root / "complete").exists():
            if root.exists() and any(root.iterdir()):
                sys.exit(f"{root} must be empty, or hold the complete Debian of an earlier run; remove what is there")
            kind = [f"--arch={ARCHITECTURES[processor]}", "--variant=minbase", f"--include={','.join(packages)}"]
            subprocess.run(["unshare", "--mount", "debootstrap", *kind, SUITE, root], check=True)
            (root / "complete").touch()
        shutil.rmtree(self.source, ignore_errors=True)
        self.source.mkdir()

    def add_cross_compiler(self):
        """Let commands find the cross compiler from now on."""
        programs = {Path(shutil.which(program)).resolve(): f"/usr/bin/{program}" for program in PROGRAMS}
        self.mounted = {Path(folder): folder for folder in CROSS} | programs
        # The linker does not find its plugin there; it is for optimization when linking, which is not asked for.
        self.variables = {"CC": f"{GCC} -fno-use-linker-plugin"}

    def remove_compiler(self):
        """Hide it again; the script ends if there is another one."""
        self.mounted, self.variables = {}, {}
        found = 'for one in "$@"; do if $one --version; then exit 1; fi; done 2> /dev/null'
        self.run("bash", "-c", found, "found", "cc", "gcc", "clang", "c99", *PROGRAMS)

    def run(self, *command, **variables):
        """Run a command in /source; the script ends if it fails."""
        lines = []
        for here, there in self.mounted.items():
            place = shlex.quote(f"{self.root}{there}")
            lines += [
                f"{'mkdir -p' if here.is_dir() else 'touch'} {place}",
                f"mount --bind {shlex.quote(str(here))} {place}",
            ]
        lines += ['mount -t proc proc "$0/proc"', """exec chroot "$0" bash -c 'cd /source && exec "$@"' run "$@\""""]
        # What is mounted for it, and whatever it has started, ends with it.
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", "\n".join(lines), self.root]
        system = {"PATH": "/environment/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        subprocess.run([*inside, *command], env=system | self.variables | variables, check=True)

    def environment(self, *needed, python="python3", version=PYTHON):
        """Make the environment, with what is needed from wheels that this machine fetches into /wheels."""
        tags = [f"manylinux_{GLIBC[0]}_{minor}_{self.processor}" for minor in range(GLIBC[1], 16, -1)]
        platforms = [f"--platform={tag}" for tag in (*tags, f"manylinux2014_{self.processor}")]
        wheels = self.root / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={version}",
             *platforms, f"--dest={wheels}", *needed],
            check=True,
        )  # fmt: skip
        self.run(python, "-m", "venv", "--clear", "/environment")
        self.install(*needed)

    def install(self, *what):
        """Install into the environment, without a network."""
        self.run(self.python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links=/wheels", *what)


def register():
    """Let the kernel start programs for ARM through qemu, as installing that does where there is an init system."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    if not (BINFMT / "qemu-aarch64").exists():
        (BINFMT / "register").write_text(QEMU.read_text())
