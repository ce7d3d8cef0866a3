"""Calls functions of `bncpu.gpu` on the stub driver; prints what was launched for each, as JSON. For test_gpu_host.py.

A launch is two sizes of the grid, two of the block, the stream, and the first arguments.
"""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
from numba import cuda

from bncpu import gpu

LOG = Path(os.environ["CUDA_STUB_LOG"])
STREAMS = (0, 0x7770, 0x7780)


class Tensor:
    """What the backend asks a tensor of PyTorch for; its memory is an array of Numba."""

    __module__ = "torch"
    is_cuda, requires_grad = True, False
    device = types.SimpleNamespace(index=0)

    def __init__(self, a):
        self.a, self.shape, self.dtype = a, a.shape, f"torch.{a.dtype}"

    def stride(self):
        return tuple(n // self.a.dtype.itemsize for n in self.a.strides)

    def data_ptr(self):
        return self.a.device_ctypes_pointer.value


def empty(shape, dtype, device=None):
    """A tensor of unknown values."""
    return Tensor(cuda.device_array(shape, dtype))


torch = types.ModuleType("torch")
torch.float64, torch.int32 = np.dtype(np.float64), np.dtype(np.int32)
torch.empty = torch.zeros = empty
torch.empty_like = lambda t: empty(t.shape, t.a.dtype)
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
    for name, shape in (("rows", (100_000, 30)), ("planes", (64, 8, 56, 56)), ("small", (32, 64))):
        x = cuda.to_device(np.ones(shape, np.float32))
        given = [cuda.to_device(np.ones(shape[1], np.float32)) for _ in range(2)]
        found[name] = {"shape": shape, "x": x.device_ctypes_pointer.value}
        found[name]["inference"], _ = launched(lambda x=x, given=given: gpu.batch_norm(x, *given))
        found[name]["forward"], (_, saved) = launched(lambda x=x: gpu.batch_norm_forward(x))
        found[name]["backward"], _ = launched(lambda x=x, saved=saved: gpu.batch_norm_backward(x, x, saved))
    tensor = Tensor(x)
    for current.cuda_stream in STREAMS:
        found[f"stream {current.cuda_stream}"], _ = launched(lambda: gpu.batch_norm_forward(tensor))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
