"""How cost grows: with rows and with features in a straight line, with threads until memory or processors are busy."""

import subprocess
import sys
import time

import numpy as np

from .common import SMALLEST, bncpu

N_VALUES = 1 << 12 if SMALLEST else 1 << 25  # 128 MB as float32


class _Both:
    """Learning and normalizing; `setup` makes `x` and `n_threads`."""

    n_threads = 1

    def prepare(self, shape):
        self.x = np.resize(np.random.default_rng(0).standard_normal(9973, dtype=np.float32), shape)
        self.out = self.x.copy()
        self.mean, self.var = np.zeros(shape[1]), np.ones(shape[1])

    def time_moments(self, *_):
        bncpu.batch_norm_moments(self.x, n_threads=self.n_threads)

    def time_batch_norm(self, *_):
        bncpu.batch_norm(self.x, self.mean, self.var, out=self.out, n_threads=self.n_threads)

    def time_forward(self, *_):
        bncpu.batch_norm_forward(self.x, out=self.out, n_threads=self.n_threads)


class Rows(_Both):
    """More and more rows of 32 features, from one cache to memory: time over rows is a straight line."""

    params = ([N_VALUES // 32 // k for k in (64, 16, 4, 2, 1)],)
    param_names = ("rows",)

    def setup(self, n_rows):
        self.prepare((n_rows, 32))


class Features(_Both):
    """The same number of values in more and more columns: time does not depend on how they are cut."""

    params = ([1, 3, 8, 10, 32, 100, 256, 1000, 4096],)
    param_names = ("features",)

    def setup(self, n_features):
        self.prepare((max(2, N_VALUES // n_features), n_features))


class Threads(_Both):
    """128 MB by more and more threads."""

    params = ([1, 2, 4, 8],)
    param_names = ("threads",)

    def setup(self, n_threads):
        if n_threads > bncpu._kernels.max_threads():
            raise NotImplementedError("there are not so many")
        self.n_threads = n_threads
        self.prepare((N_VALUES // 32, 32))


class Busy:
    """12 MB beside busy processes: median time of the default over that of one thread."""

    params = ([0, 1, 2, 4],)
    param_names = ("busy processes",)
    unit = "times one thread"

    def setup(self, n_busy):
        self.started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        self.x = np.ones((15_192, 192), "float32")
        self.out, self.mean, self.var = self.x.copy(), np.zeros(192), np.ones(192)

    def teardown(self, _):
        for process in self.started:
            process.kill()
            process.wait()

    def track_batch_norm(self, _):
        seconds = {None: [], 1: []}
        for _ in range(2 if SMALLEST else 200):
            for n_threads, taken in seconds.items():
                start = time.perf_counter()
                bncpu.batch_norm(self.x, self.mean, self.var, out=self.out, n_threads=n_threads)
                taken.append(time.perf_counter() - start)
        return float(np.median(seconds[None]) / np.median(seconds[1]))
