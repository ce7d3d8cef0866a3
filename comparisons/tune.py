"""How this processor stores results past its cache fastest: a row for the table in ``bncpu/_walk.py``.

In how many streams, and how far ahead of a single one what is read is fetched.

    python comparisons/tune.py      # a minute, on an idle machine

Figures are medians of turns, in times of a copy of the same array in the same turn, with one thread and with all.
"""

import joblib
import numpy as np

from bncpu import _kernels, _walk
from bncpu.bench import interleaved, machine

SHAPES = ((1_000_000, 32), (125_000, 256), (10_666_667, 3))  # 128 MB of float32 each
WALKS = ((1, 0), (1, 1024), (1, 2048), (1, 4096), (1, 8192), (4, 0))  # streams, bytes ahead
SECONDS = 8


def candidates(shape, n_threads):
    """A copy, and what `transform` does in each of the walks."""
    x = np.resize(np.random.default_rng(0).standard_normal(9973, dtype=np.float32), (1, *shape, 1))
    y = np.empty_like(x)
    one, zero = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    resident = _walk.of_this_machine().resident_bytes

    def apply(streams, ahead):
        _kernels.set_walk(streams, resident, ahead=ahead)
        _kernels.apply(x, y, None, zero, one, zero, False, True, n_threads)

    calls = {"copy": lambda: _kernels.copy(x, y, n_threads)}
    return calls | {walk: lambda walk=walk: apply(*walk) for walk in WALKS}


def main():
    """Measure, and print the row."""
    found = {walk: [] for walk in WALKS}
    print(f"{machine(1)['processor']}, {_walk.of_this_machine()}")
    for n_threads in sorted({1, joblib.cpu_count()}):
        for shape in SHAPES:
            taken = interleaved(candidates(shape, n_threads), SECONDS)
            for walk, ratios in found.items():
                ratios.append(float(np.nanmedian(taken[walk] / taken["copy"])))
            figures = ", ".join(f"{walk} {ratios[-1]:.2f}" for walk, ratios in found.items())
            print(f"{shape[0]:>10,} x {shape[1]:<4} {n_threads} thread(s): {figures}")
    best = min(WALKS, key=lambda walk: np.mean(found[walk]))
    said = ", ".join(f"{walk}: {min(ratios):.2f} to {max(ratios):.2f}" for walk, ratios in found.items())
    print(f"{_kernels.processor()}: {best},  # {said}")


if __name__ == "__main__":
    main()
