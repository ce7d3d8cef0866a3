"""Compile every kernel, of each type and form, without a device, and check the machine code.

    python -m bncpu.gpu.ptx_check            # every kernel; exit code 1 if a promise is broken
    python -m bncpu.gpu.ptx_check --full     # and print them all
    python -m bncpu.gpu.ptx_check --one      # compile one kernel, no checks: does the extra `gpu` work as installed?

It is the code that a launch would load: optimized as a whole when it is linked, for the architecture of the device
alone. The promises: data are read and written 16 bytes at a time where vectors have 16 bytes (all but those of planes
in `collect`, and of rows with an odd number of channels), several such loads are on their way at once, nothing is kept
in local memory, and registers leave room for the threads that the plan wants. Needs the extra `gpu`, and nvdisasm
except with `--one`. Needs no driver; does not work in the simulator.
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

from ._arguments import Belonging
from ._plan import ACCESS, STORAGE, WARP, Plan, plan

ARCHITECTURES = ((8, 0), (9, 0))


class Form(NamedTuple):
    """Data of a shape with channels on axis 1, and the kernels that go through them."""

    shape: tuple[int, ...]
    belonging: Belonging
    names: tuple[str, ...]


PASSES = ("apply", "forward", "backward_sums", "backward_apply", "backward")
FORMS = {
    "rows": Form((4096, 256), "columns", ("moments", *PASSES, "collect")),
    "odd rows": Form((4096, 255), "columns", ("moments", *PASSES, "collect")),
    "joined rows": Form((4096, 8 * 255), "repeated", ("apply", "backward_sums", "backward_apply", "collect")),
    "parts of channels": Form((9, 255), "columns", ("fold_moments",)),
    "planes": Form((64, 64, 56, 56), "columns", ("moments", *PASSES, "collect")),
    "samples": Form((1, 65536, 768), "along", ("moments", *PASSES)),
    "planes of groups": Form((1, 4096, 3136), "planes", PASSES),
    "rows of samples": Form((65536, 768), "rows", ("backward_sums",)),
    "sums of planes": Form((64, 4096), "columns", ("fold",)),
    "sums of groups": Form((1, 4096, 64), "columns", ("fold",)),
}

REGISTERS = 65536  # of a multiprocessor
NEAR = 64  # instructions; the latency of memory is that of several hundred


class Code(NamedTuple):
    """The compiled code of one kernel."""

    name: str
    registers: int
    limit: int
    faults: list[str]


def compiled(kernel: Any, capability: tuple[int, int]) -> bytes:
    """The machine code that a launch would load: optimized when it is linked, for exactly this architecture."""
    from numba.cuda import codegen, dispatcher

    from ._compat import signature_of

    class Device:
        compute_capability = capability

    exactly = (*capability, "a" if capability >= (9, 0) else "")
    # No device is needed for what is not loaded.
    dispatcher.get_current_device = lambda: Device
    codegen.CUDACodeLibrary._ensure_cc = lambda library, asked: asked or exactly
    made = dispatcher._Kernel(kernel.py_func, signature_of(kernel), **kernel.targetoptions)
    return made._codelibrary.get_cubin().code


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


def checked(form: str, kind: Any, p: Plan, name: str, capability: tuple[int, int]) -> Code:
    """What is wrong with a kernel, if anything."""
    from ._kernels import kernels

    sass, faults = disassembled(compiled(getattr(kernels(kind), name), capability)), []
    if re.search(r"\b(LDL|STL)\b", sass):
        faults.append("local memory")
    if p.n * STORAGE[kind.storage] == ACCESS:
        if "LDG.E.128" not in sass:
            faults.append("no load of 16 bytes")
        if name in ("apply", "forward", "backward_apply", "backward") and "STG.E.128" not in sass:
            faults.append("no store of 16 bytes")
        if (loads := loads_at_once(sass)) < (2 if kind.is_heavy else 3):
            faults.append(f"{loads} loads at once")
    registers = 1 + max(map(int, re.findall(r"\bR(\d+)\b", sass)))
    limit = REGISTERS // kind.blocks_at_once // (-(-kind.threads // WARP) * WARP)
    if registers > limit:
        faults.append(f"{registers} registers")
    what = "".join(f" {flag}" for flag in ("relu", "residual", "given") if getattr(kind, flag))
    what += f" {kind.parameters}" * (kind.parameters != "float32") + " rms" * (not kind.centred)
    return Code(f"sm_{''.join(map(str, capability))} {form} {kind.storage} {name}{what}", registers, limit, faults)


def loads_at_once(sass: str) -> int:
    """The most loads of 16 bytes that are near each other."""
    at = [number for number, line in enumerate(sass.splitlines()) if "LDG.E.128" in line]
    return max((sum(0 <= other - first < NEAR for other in at) for first in at), default=0)


def variants(name: str, belonging: Belonging, *, newest: bool) -> list[dict[str, Any]]:
    """Kinds to compile for a kernel: the one with most to do, and for the newest devices also the one with least."""
    if name in ("moments", "collect", "fold", "fold_moments"):
        kinds: list[dict[str, Any]] = [{"skipping": name == "collect"}]
        return [*kinds, {}] if name == "collect" and belonging == "repeated" else kinds
    plain: dict[str, Any] = {}
    fused: dict[str, Any] = {"relu": True, "residual": True}
    both = [fused, plain] if newest and name not in ("forward", "backward") else [fused]
    return [*both, *({**some, "given": True} for some in both)] if name == "apply" else both


def one() -> None:
    """Compile a single kernel. If the installation does not work, an exception says why."""
    from ._arguments import Kind
    from ._kernels import kernels

    storage, name, capability = "float32", "moments", ARCHITECTURES[-1]
    p = plan(FORMS["rows"].shape, 1, STORAGE[storage])
    kernel = getattr(kernels(Kind(storage, "float32", p.rows, p.n, p.columns, p.members)), name)
    cubin = compiled(kernel, capability)
    print(f"{name} compiled for sm_{''.join(map(str, capability))}: {len(cubin):,} bytes")


def main(arguments: list[str] | None = None) -> int:
    """Check every kernel."""
    parser = argparse.ArgumentParser(prog="python -m bncpu.gpu.ptx_check", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="print every kernel")
    parser.add_argument("--one", action="store_true", help="compile a single kernel, and look at nothing")
    asked = parser.parse_args(arguments)
    from ._arguments import Kind
    from ._compat import SIMULATED
    from ._kernels import Kernels

    if SIMULATED:
        raise SystemExit("the simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM")
    if asked.one:
        one()
        return 0
    work: list[tuple[Any, ...]] = []
    assert {name for form in FORMS.values() for name in form.names} == set(Kernels._fields)
    for capability, form, (storage, itemsize) in itertools.product(ARCHITECTURES, FORMS, STORAGE.items()):
        shape, belonging, names = FORMS[form]
        whole, single = plan(shape, 1, itemsize), plan(shape, 1, itemsize, aligned=False)
        assert whole.n * itemsize == ACCESS or form in ("odd rows", "parts of channels")
        for name in names:
            if name in ("fold", "fold_moments") and storage != "float64":
                continue
            p = single if name == "collect" and not whole.rows else whole
            of: Belonging = "columns" if name in ("moments", "collect") else belonging
            kind = Kind(storage, "float32", p.rows, p.n, p.columns, p.members, belonging=of)
            newest = capability == ARCHITECTURES[-1]
            changes = variants(name, belonging, newest=newest)
            of_batches = belonging in ("columns", "repeated")
            kinds = [kind._replace(**some) for some in changes if of_batches or "given" not in some]
            if newest and belonging in ("along", "rows") and name in ("forward", "backward", "backward_sums"):
                kinds += [kinds[0]._replace(parameters=other) for other in ("float64", storage)]
                kinds += [kinds[0]._replace(centred=False)]
            work.extend((form, each, p, name, capability) for each in kinds)
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
