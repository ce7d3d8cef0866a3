"""What memory allows here: the rates of reading, of copying, and of making a third array of two.

They are of the machine, not of our code: where they change from one run to the next, so do all times; multiples do not.
"""

from .common import SMALLEST, Case, _yardsticks, bench, chosen

SIZES = {"second-level cache": (4_096, 32), "third-level cache": (65_536, 32), "memory": (1_000_000, 32)}


class Rates:
    """The fastest loop of each yardstick, by where arrays of float32 lie and how many threads share them."""

    params = ([] if _yardsticks is None else list(_yardsticks.LOOPS), list(SIZES), chosen([1, 2]))
    param_names = ("yardstick", "size", "threads")
    unit = "GB/s"

    def setup(self, yardstick, size, n_threads):
        case = Case("batch_norm_backward", SIZES[size])
        self.case = case.smallest() if SMALLEST else case

    def track_rate(self, yardstick, size, n_threads):
        seconds, rounds = (0.0, 1) if SMALLEST else (1.0, bench.LEAST_ROUNDS)
        found = bench.yardsticks(self.case, seconds, n_threads=n_threads, names=[yardstick], least_rounds=rounds)
        return found[yardstick].gb_per_second
