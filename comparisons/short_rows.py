"""Layer and RMS norm over 2 to 256 values: ours and PyTorch's, in times of a copy of the same array.

    pip install -r comparisons/requirements.txt && pip install .
    python comparisons/short_rows.py      # a minute, on an idle machine

One thread, 8M float32 values, ours with `out=`; medians of turns.
"""

import numpy as np
import torch

import bncpu
from bncpu.bench import interleaved, machine

SIZES = (2, 3, 4, 7, 8, 10, 16, 32, 64, 100, 256)
VALUES = 1 << 23
SECONDS = 4


def calls(size):
    """What takes turns for rows of `size` values."""
    x = np.resize(np.random.default_rng(0).standard_normal(9973, dtype=np.float32), (VALUES // size, size))
    out, gamma, beta = np.empty_like(x), np.ones(size, np.float32), np.zeros(size, np.float32)
    theirs, weight, bias = map(torch.from_numpy, (x, gamma, beta))
    ours = {"out": out, "n_threads": 1}
    return {
        "copy": lambda: np.copyto(out, x),
        "layer norm": lambda: bncpu.layer_norm(x, size, **ours),
        "with gamma, beta": lambda: bncpu.layer_norm(x, size, gamma, beta, **ours),
        "RMS norm": lambda: bncpu.rms_norm(x, size, **ours),
        "PyTorch": lambda: torch.nn.functional.layer_norm(theirs, (size,)),
        "PyTorch with both": lambda: torch.nn.functional.layer_norm(theirs, (size,), weight, bias),
    }


def main():
    """Measure, and print a line for each size."""
    torch.set_num_threads(1)
    print(machine(1)["processor"])
    for size in SIZES:
        taken = interleaved(calls(size), SECONDS)
        ratios = {name: float(np.nanmedian(times / taken["copy"])) for name, times in taken.items() if name != "copy"}
        print(f"{size:>4}: " + ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items()), flush=True)


if __name__ == "__main__":
    main()
