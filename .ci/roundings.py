"""Do the claims of examples/evidence hold under every rounding? The steps `rounding` and `roundings` of .ci/run.

A network that trains amplifies the last digit: with another kernel of OpenBLAS, or another number of threads, the same
seeds train other networks, as they do on another processor. What a page says has to hold with all of them.

Without an argument every rounding is tried; with `--beside` one, whose kernel is not the machine's own.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bncpu import _kernels

EVIDENCE = Path(__file__).resolve().parent.parent / "examples" / "evidence"

# What OPENBLAS_CORETYPE may be on x86-64. Prescott is plain SSE. A build that lacks a kernel takes an older one for it.
CORES = "Haswell", "SkylakeX", "Zen", "Sandybridge", "Nehalem", "Prescott", "Cooperlake", "SapphireRapids"
FEWEST = 3  # kernels

# Run where the examples are run: which kernels they get, from NumPy's OpenBLAS and from SciPy's, and that these work.
PROBE = """
import json, numpy, scipy.linalg.blas, networks, threadpoolctl
x = numpy.ones((99, 99), numpy.float32)
assert (x @ x == 99).all() and (scipy.linalg.blas.sgemm(1, x, x) == 99).all()
found = [lib for lib in threadpoolctl.threadpool_info() if lib["internal_api"] == "openblas"]
print(json.dumps([[lib["architecture"], lib["num_threads"]] for lib in found]))
"""


class Rounding(NamedTuple):
    """A way to run the examples: a name for OPENBLAS_CORETYPE, threads, and an instruction set of bncpu."""

    core: str
    threads: int
    isa: str

    def environment(self):
        """That of the process. No name: OpenBLAS chooses."""
        chosen = {"BNCPU_EVIDENCE_THREADS": str(self.threads), "BNCPU_ISA": self.isa, "MPLBACKEND": "Agg"}
        kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
        return kept | chosen | ({"OPENBLAS_CORETYPE": self.core} if self.core else {})

    def kernel(self):
        """The kernel that OpenBLAS then uses, or None and the reason."""
        environment = self.environment() | {"OPENBLAS_VERBOSE": "1"}  # it then says what it does not find
        command = [sys.executable, "-c", PROBE]
        done = subprocess.run(command, cwd=EVIDENCE, env=environment, capture_output=True, text=True)
        if done.returncode == -signal.SIGILL:
            return None, "this processor lacks its instructions"
        if done.returncode:
            sys.exit(f"{self}: {done.stderr}")
        if self.core and f"Core not found: {self.core}" in done.stderr:
            return None, "this OpenBLAS does not know it"
        found = {tuple(pair) for pair in json.loads(done.stdout)}
        if not found:
            return None, "NumPy was not built with OpenBLAS"
        if len(found) > 1 or {threads for _, threads in found} != {self.threads}:
            sys.exit(f"{self}: NumPy and SciPy use {found}")
        return found.pop()[0], ""


def kernels(most):
    """A name for each kernel that runs here, by the kernel, up to so many; the machine's own comes first."""
    isa = _kernels.isa()
    own, reason = Rounding("", 1, isa).kernel()
    if own is None:
        print(f"skipped all: {reason}")
        return {}
    names = {own: ""}
    for core in CORES:
        if len(names) == most:
            break
        kernel, reason = Rounding(core, 1, isa).kernel()
        if kernel is None:
            print(f"skipped {core}: {reason}")
        elif names.setdefault(kernel, core) != core and core != kernel:
            print(f"skipped {core}: it is {kernel} in this OpenBLAS, which runs anyway")
    return names


def tried(rounding, jobs):
    """Whether all tests pass under it, which one line says. With `jobs` so many scripts run side by side."""
    kernel, reason = rounding.kernel()
    if kernel is None:
        sys.exit(f"{rounding}: {reason}")
    environment = rounding.environment() | {"BNCPU_EVIDENCE_JOBS": str(jobs)}
    environment.pop("BNCPU_SITE", None)  # examples are to be run
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EVIDENCE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    *details, tests = done.stdout.strip().splitlines() or ["no tests"]
    if done.returncode:
        print(*details, done.stderr, sep="\n")
    verdict, threads = "FAILED" if done.returncode else "passed", f"threads {rounding.threads}"
    print(f"{verdict}: OpenBLAS {kernel}, {threads}, bncpu {rounding.isa}: {tests}", flush=True)
    return done.returncode == 0


def sweep(cores, processors):
    """Every kernel with one and with two threads; bncpu's instruction sets take turns.

    A covering design: every instruction set is used, but not with every kernel, as bncpu computes the same bits with
    each (`test_every_instruction_set_trains_the_same_network` compares them).
    """
    if len(cores) < FEWEST:
        sys.exit(f"{len(cores)} kernels of OpenBLAS run here, {FEWEST} are wanted")
    variants = itertools.cycle(_kernels.isa_variants())
    design = [Rounding(core, threads, next(variants)) for core in cores for threads in (1, 2)]
    passed = []
    for threads in (1, 2):  # a processor for each thread: OpenBLAS waits for its own in a loop
        fitting = [rounding for rounding in design if rounding.threads == threads]
        with ThreadPoolExecutor(max(1, processors // threads)) as pool:
            passed += pool.map(lambda rounding: tried(rounding, 0), fitting)
    print(f"{sum(passed)} of {len(passed)} roundings passed")
    return all(passed)


def main():
    """Exit with 1 if a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", action="store_true", help="only one rounding, other than the machine's own")
    beside = parser.parse_args().beside
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = list(kernels(2 if beside else len(CORES) + 1).values())
    if not beside:
        return 0 if sweep(cores, processors) else 1
    if len(cores) < 2:
        print("no other kernel of OpenBLAS runs here")
        return 0
    return 0 if tried(Rounding(cores[1], 1, _kernels.isa()), processors) else 1


if __name__ == "__main__":
    sys.exit(main())
