"""Compile every kernel, of each type and form, without a device, and check the machine code.

    python -m bncpu.gpu.ptx_check            # every kernel; exit code 1 if a promise is broken
    python -m bncpu.gpu.ptx_check --full     # and print them all
    python -m bncpu.gpu.ptx_check --one      # compile one kernel, no checks: does the extra `gpu` work as installed?

The promises: data are read and written 16 bytes at a time where vectors have 16 bytes (all but those of planes in
`collect`), nothing is kept in local memory, and registers leave room for enough threads. Needs the extra `gpu`, and
nvdisasm except with `--one`. Needs no driver; does not work in the simulator.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ._plan import ACCESS, Plan, plan

ARCHITECTURES = ((8, 0), (9, 0))
SHAPES = {"rows": (4096, 256), "planes": (64, 64, 56, 56)}

# The most registers of a thread, for vectors of up to 4 values, and of 8: the threads of a multiprocessor share 65,536.
REGISTERS = {
    "apply": (64, 96),
    "backward_apply": (96, 144),
    "moments": (96, 128),
    "backward_sums": (96, 160),
    "forward": (96, 128),
    "backward": (112, 176),
    "collect": (144, 232),
}


class Code(NamedTuple):
    """The compiled code of one kernel."""

    name: str
    registers: int
    limit: int
    faults: list[str]


def compiled(kernel: Any, capability: tuple[int, int]) -> tuple[str, bytes]:
    """PTX, and the machine code compiled from it."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba import cuda
    from numba.cuda import dispatcher

    from ._compat import signature_of

    class Device:
        compute_capability = capability

    dispatcher.get_current_device = lambda: Device  # none is needed for a kernel that is only compiled
    ptx, _ = cuda.compile_ptx(kernel.py_func, signature_of(kernel), cc=capability)
    options = LinkerOptions(arch="sm_{}{}".format(*capability))
    return ptx, Linker(ObjectCode.from_ptx(ptx.encode()), options=options).link("cubin").code


def disassembled(cubin: bytes) -> str:
    """Machine code as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return subprocess.run([nvdisasm(), str(path)], capture_output=True, text=True, check=True).stdout


def nvdisasm() -> str:
    """The path of the disassembler."""
    import nvidia

    for folder in nvidia.__path__:
        for found in Path(folder).rglob("nvdisasm*"):
            if found.is_file():
                return str(found)
    raise SystemExit("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")


def checked(kind: Any, p: Plan, name: str, capability: tuple[int, int]) -> Code:
    """What is wrong with a kernel, if anything."""
    from ._compat import STORAGE
    from ._kernels import kernels

    ptx, cubin = compiled(getattr(kernels(kind), name), capability)
    sass, faults = disassembled(cubin), []
    if ".local" in ptx or re.search(r"\b(LDL|STL)\b", sass):
        faults.append("local memory")
    if p.n * STORAGE[kind.storage] == ACCESS and "LDG.E.128" not in sass:
        faults.append("no load of 16 bytes")
    if name not in ("moments", "backward_sums", "collect") and "STG.E.128" not in sass:
        faults.append("no store of 16 bytes")
    registers = 1 + max(map(int, re.findall(r"\bR(\d+)\b", sass)))
    limit = REGISTERS[name][p.n > 4]
    if registers > limit:
        faults.append(f"{registers} registers")
    what = "".join(f" {flag}" for flag in ("relu", "residual", "given") if getattr(kind, flag))
    form = "rows" if p.rows else "planes"
    return Code(f"sm_{''.join(map(str, capability))} {form} {kind.storage} {name}{what}", registers, limit, faults)


def variants(name: str, *, newest: bool) -> list[dict[str, Any]]:
    """Kinds to compile for a kernel: the one with most to do, and for the newest devices also the one with least."""
    if name in ("moments", "collect"):
        return [{"skipping": name == "collect"}]
    plain: dict[str, Any] = {}
    fused: dict[str, Any] = {"relu": True, "residual": True}
    both = [fused, plain] if newest and name not in ("forward", "backward") else [fused]
    return [*both, *({**some, "given": True} for some in both)] if name == "apply" else both


def one() -> None:
    """Compile a single kernel. If the installation does not work, an exception says why."""
    from ._arguments import Kind
    from ._compat import STORAGE
    from ._kernels import kernels

    storage, name, capability = "float32", "moments", ARCHITECTURES[-1]
    p = plan(SHAPES["rows"], 1, STORAGE[storage])
    kernel = getattr(kernels(Kind(storage, "float32", p.rows, p.n, *p.block)), name)
    _, cubin = compiled(kernel, capability)
    print(f"{name} compiled for sm_{''.join(map(str, capability))}: {len(cubin):,} bytes")


def main(arguments: list[str] | None = None) -> int:
    """Check every kernel."""
    parser = argparse.ArgumentParser(prog="python -m bncpu.gpu.ptx_check", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="print every kernel")
    parser.add_argument("--one", action="store_true", help="compile a single kernel, and look at nothing")
    asked = parser.parse_args(arguments)
    from ._arguments import Kind
    from ._compat import SIMULATED, STORAGE
    from ._kernels import Kernels

    if SIMULATED:
        raise SystemExit("the simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM")
    if asked.one:
        one()
        return 0
    work: list[tuple[Any, ...]] = []
    for capability, shape, (storage, itemsize) in itertools.product(ARCHITECTURES, SHAPES.values(), STORAGE.items()):
        whole, single = plan(shape, 1, itemsize), plan(shape, 1, itemsize, aligned=False)
        assert whole.n * itemsize == ACCESS
        for name in Kernels._fields:
            p = single if name == "collect" and not whole.rows else whole
            kind = Kind(storage, "float32", p.rows, p.n, *p.block)
            newest = capability == ARCHITECTURES[-1]
            kinds = (kind._replace(**changes) for changes in variants(name, newest=newest))
            work.extend((each, p, name, capability) for each in kinds)
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(checked, *zip(*work, strict=True)))
    for code in found:
        if asked.full or code.faults:
            verdict = ", ".join(code.faults) or "as promised"
            print(f"{code.name:64} {code.registers:4} registers of {code.limit}  {verdict}")
    n_faulty = sum(bool(code.faults) for code in found)
    print(f"{len(found)} kernels compiled, {n_faulty} not as promised")
    return int(n_faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
