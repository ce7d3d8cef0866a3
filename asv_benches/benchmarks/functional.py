"""Forward and backward passes of the functions, on activations of convolutional networks and of transformers."""

import numpy as np

from .common import bncpu, channel_axis, data

NORMS = ("batch", "layer", "rms", "instance", "group")


class _Passes:
    """What is measured; `setup` makes `forward` and `backward`."""

    def passes(self, norm, shape, dtype="float32", **options):
        self.x, self.dy, self.out = (data(shape, dtype) for _ in range(3))
        if norm == "instance" and self.x.ndim == 2:
            raise NotImplementedError("one value per channel and sample")
        forward, backward = (getattr(bncpu, f"{norm}_norm_{name}") for name in ("forward", "backward"))
        options |= {"channel_axis": channel_axis(shape)}
        n_channels = self.x.shape[options["channel_axis"]]
        groups = 16 if n_channels % 16 == 0 else n_channels
        arguments = {"layer": [n_channels], "rms": [n_channels], "group": [groups]}.get(norm, [])
        gamma = [1.5] * n_channels
        _, saved = forward(self.x, *arguments, gamma, **options)
        self.forward = lambda: forward(self.x, *arguments, gamma, out=self.out, **options)
        self.backward = lambda: backward(self.dy, self.x, saved, gamma, out=self.out, **options)

    def time_forward(self, *_):
        self.forward()

    def time_backward(self, *_):
        self.backward()


class Norms(_Passes):
    """Every norm in every layout: one layer of a network in training."""

    params = (list(NORMS), ["NCHW", "NHWC", "small planes", "wide rows"])
    param_names = ("norm", "shape")

    def setup(self, norm, shape):
        self.passes(norm, shape)


class Small(_Passes):
    """A layer of a small network: what a call costs, not what the data costs."""

    params = (["batch", "layer"],)
    param_names = ("norm",)

    def setup(self, norm):
        self.passes(norm, "small")


class Fused(_Passes):
    """ReLU and a residual within batch norm, as in a residual network."""

    params = (["NCHW", "NHWC"], ["relu", "residual and relu"])
    param_names = ("shape", "fused")

    def setup(self, shape, fused):
        residual = {"residual": data(shape)} if "residual" in fused else {}
        self.passes("batch", shape, activation="relu", **residual)


class Padded(_Passes):
    """Four fifths of each sample count, the rest is padding, as in batches of sequences of several lengths."""

    params = (["batch", "instance", "group", "layer"], ["NCHW", "NHWC"])
    param_names = ("norm", "shape")

    def setup(self, norm, shape):
        positions = np.delete(data(shape).shape, channel_axis(shape))
        n = int(np.prod(positions[1:]))
        where = np.arange(n).reshape(positions[1:]) < max(2, 4 * n // 5)
        self.passes(norm, shape, where=np.broadcast_to(where, positions))


class Memory(_Passes):
    """What a backward pass needs beside its arrays."""

    time_forward = time_backward = None
    params = (["batch", "layer", "group"],)
    param_names = ("norm",)

    def setup(self, norm):
        self.passes(norm, "NCHW")

    def peakmem_backward(self, *_):
        self.backward()
