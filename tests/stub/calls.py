"""Calls functions of `bncpu.gpu` on the stub driver; prints what was launched for each, as JSON. For test_gpu_host.py.

    gcc -shared -fPIC -o libcuda.so.1 tests/stub/libcuda.c -ldl
    LD_LIBRARY_PATH=. python tests/stub/calls.py --times         # how long calls take on the host, instead

A launch is two sizes of the grid, two of the block, the stream, and the first arguments.
"""

import functools
import itertools
import json
import math
import os
import sys
import timeit
import types
from pathlib import Path

import numpy as np
from numba import cuda

import bncpu
from bncpu import gpu

LOG = Path(os.environ.get("CUDA_STUB_LOG", os.devnull))
STREAMS = (0, 0x7770, 0x7780)


@functools.cache
def strides(shape):
    """Those of a C-contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class Tensor:
    """What the backend asks a tensor of PyTorch for. There is no memory at its address, as nothing reads it."""

    __module__ = "torch"
    is_cuda, requires_grad = True, False
    device = types.SimpleNamespace(index=0)
    addresses = itertools.count(1 << 20, 1 << 36)

    def __init__(self, shape, dtype="torch.float32"):
        self.shape, self.dtype, self.address = shape, dtype, next(self.addresses)

    def stride(self):
        return strides(self.shape)

    def data_ptr(self):
        return self.address


def empty(shape, dtype, device=None):
    """A tensor."""
    return Tensor(shape if isinstance(shape, tuple) else (shape,), dtype)


torch = types.ModuleType("torch")
torch.float64, torch.int32 = "torch.float64", "torch.int32"
torch.empty = torch.zeros = empty
torch.empty_like = lambda t: Tensor(t.shape, t.dtype)
torch.is_grad_enabled = lambda: True
torch.autograd = types.SimpleNamespace(graph=types.SimpleNamespace(increment_version=lambda tensor: None))
current = types.SimpleNamespace(cuda_stream=0)
torch.cuda = types.SimpleNamespace(current_stream=lambda device: current)
sys.modules["torch"] = torch


def launched(call):
    """The launches of a call, and what it returned."""
    LOG.write_text("")
    result = call()
    return [[int(n) for n in line.split()] for line in LOG.read_text().splitlines()], result


def main():
    """Make the calls."""
    found = {}
    shapes = {"rows": (100_000, 30), "planes": (64, 8, 56, 56), "small": (32, 64), "joined rows": (200_003, 33)}
    for name, shape in shapes.items():
        x = cuda.to_device(np.ones(shape, np.float32))
        given = [cuda.to_device(np.ones(shape[1], np.float32)) for _ in range(2)]
        found[name] = {"shape": shape, "x": x.device_ctypes_pointer.value}
        found[name]["inference"], _ = launched(lambda x=x, given=given: gpu.batch_norm(x, *given))
        found[name]["forward"], (_, saved) = launched(lambda x=x: gpu.batch_norm_forward(x))
        found[name]["backward"], _ = launched(lambda x=x, saved=saved: gpu.batch_norm_backward(x, x, saved))
    for name, shape in (("layer", (4096, 768)), ("group", (64, 8, 56, 56)), ("instance", (64, 64, 7, 8))):
        x = cuda.to_device(np.ones(shape, np.float32))
        given = x, {"layer": 768, "group": 2, "instance": 64}[name]
        norm = "layer_norm" if name == "layer" else "group_norm"
        forward, backward = (getattr(bncpu, f"{norm}_{way}") for way in ("forward", "backward"))
        found[name] = {"shape": shape}
        found[name]["forward"], (_, saved) = launched(lambda given=given, forward=forward: forward(*given))
        found[name]["backward"], _ = launched(lambda x=x, saved=saved, backward=backward: backward(x, x, saved))
    tensor = Tensor((32, 64))
    for current.cuda_stream in STREAMS:
        found[f"stream {current.cuda_stream}"], _ = launched(lambda: gpu.batch_norm_forward(tensor))
    print(json.dumps(found))


def times():
    """Microseconds until a call of a tensor returns: the least of some runs."""
    mean, var, gamma, beta = (Tensor((64,)) for _ in range(4))
    for name, shape in (("one launch", (32, 64)), ("two launches", (64, 64, 56, 56))):
        x = Tensor(shape)
        _, saved = gpu.batch_norm_forward(x, gamma, beta)
        calls = {
            "inference": lambda x=x: gpu.batch_norm(x, mean, var, gamma, beta),
            "forward": lambda x=x: gpu.batch_norm_forward(x, gamma, beta),
            "backward": lambda x=x, saved=saved: gpu.batch_norm_backward(x, x, saved, gamma),
        }
        taken = {n: min(timeit.repeat(call, number=2000, repeat=7)) / 2000 * 1e6 for n, call in calls.items()}
        print(name, ", ".join(f"{n} {t:.1f}" for n, t in taken.items()))


if __name__ == "__main__":
    times() if "--times" in sys.argv else main()
