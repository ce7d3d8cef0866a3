"""Forward and backward passes of the functions, on activations of convolutional networks and of transformers."""

import time
from statistics import median

import numpy as np

try:
    import bncpu
except ImportError:  # a commit from before the package existed
    bncpu = None

from .transformer import data

LARGE = {"NCHW": (32, 64, 56, 56), "NHWC": (32, 56, 56, 64), "small planes": (64, 256, 14, 14), "rows": (200_000, 128)}
SHAPES = {**LARGE, "small": (64, 64)}
NORMS = ("batch", "layer", "rms", "instance", "group")


class _Passes:
    """What is measured; `setup` makes `forward` and `backward`."""

    def passes(self, norm, shape, dtype, **options):
        self.x, self.dy, self.out = data(SHAPES[shape], dtype), data(SHAPES[shape], dtype), data(SHAPES[shape], dtype)
        if norm == "instance" and shape == "rows":
            raise NotImplementedError("one value per channel and sample")
        forward, backward = (getattr(bncpu, f"{norm}_norm_{name}") for name in ("forward", "backward"))
        channel_axis = -1 if shape == "NHWC" else 1
        n_channels = SHAPES[shape][channel_axis]
        arguments = {"layer": [n_channels], "rms": [n_channels], "group": [16]}.get(norm, [])
        gamma = np.linspace(0.5, 2, n_channels)
        options |= {"channel_axis": channel_axis}
        _, saved = forward(self.x, *arguments, gamma, **options)
        self.forward = lambda: forward(self.x, *arguments, gamma, out=self.out, **options)
        self.backward = lambda: backward(self.dy, self.x, saved, gamma, out=self.out, **options)


class Norms(_Passes):
    """Every norm in every layout."""

    params = (list(NORMS), list(LARGE))
    param_names = ("norm", "shape")

    def setup(self, norm, shape):
        self.passes(norm, shape, "float32")

    def time_forward(self, *_):
        self.forward()

    def time_backward(self, *_):
        self.backward()


class Small(_Passes):
    """A layer of a small network: what a call costs, not what the data costs."""

    params = (["batch", "layer"],)
    param_names = ("norm",)

    def setup(self, norm):
        self.passes(norm, "small", "float32")

    def time_forward(self, *_):
        self.forward()

    def time_backward(self, *_):
        self.backward()


class Memory(_Passes):
    """What a backward pass needs beside its arrays."""

    params = (["batch", "layer", "group"],)
    param_names = ("norm",)

    def setup(self, norm):
        self.passes(norm, "NCHW", "float32")

    def peakmem_backward(self, *_):
        self.backward()


class Fused(_Passes):
    """ReLU and a residual within batch norm, as in a residual network."""

    params = (["NCHW", "NHWC"], ["relu", "residual and relu"])
    param_names = ("shape", "fused")

    def setup(self, shape, fused):
        residual = {"residual": data(SHAPES[shape], "float32")} if "residual" in fused else {}
        self.passes("batch", shape, "float32", activation="relu", **residual)

    def time_forward(self, *_):
        self.forward()

    def time_backward(self, *_):
        self.backward()


class Ratio(_Passes):
    """Seconds of ours over seconds of a plain copy of the same array, interleaved: steady between machines and runs."""

    params = (["forward", "backward"], list(LARGE))
    param_names = ("direction", "shape")
    unit = "copies"

    def setup(self, direction, shape):
        self.passes("batch", shape, "float32")
        self.ours = self.forward if direction == "forward" else self.backward

    def track_ratio_to_copy(self, *_):
        ratios = []
        for _ in range(9):
            start = time.perf_counter()
            np.copyto(self.out, self.x)
            between = time.perf_counter()
            self.ours()
            ratios.append((time.perf_counter() - between) / (between - start))
        return median(ratios)
