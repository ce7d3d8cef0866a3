"""How fast the CUDA kernels are here, beside a copy on the device and PyTorch with and without cuDNN.

    python -m gpu.bench --log gpu-bench.json          # from the root of the repository; nothing need be built

First, results on hostile data are compared with float64; if one is wrong, the program stops. Then all candidates of a
row take turns in random order, timed by events on the device. A figure is the median over the rounds. Data smaller than
the L2 cache stay there, for all candidates. In the simulator, with --smallest, all parts run, but times mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from . import _compat
from ._functional import batch_norm, batch_norm_backward, batch_norm_forward
from ._norms import group_backward, group_forward, layer_backward, layer_forward

try:
    import torch
except ImportError:
    torch = None
if torch is not None and (_compat.SIMULATED or not torch.cuda.is_available()):
    torch = None  # it has no device: a build for the CPU, or the simulator's arrays

EPS = 1e-5
ROUNDS = 40
WARM_UP = 5
SHAPES = (
    ("NCHW", (256, 64, 56, 56)),
    ("NCHW", (64, 256, 56, 56)),
    ("NHWC", (256, 56, 56, 64)),
    ("NHWC", (64, 56, 56, 256)),
    ("rows", (1024, 2048)),
    ("rows", (1_000_000, 256)),
    ("rows", (1_000_000, 255)),
    ("layer", (65536, 768)),
    ("layer", (8192, 8192)),
    ("group", (64, 256, 56, 56)),
)
N_GROUPS = 32
SMALL = ("rows", (32, 64))
# The least number of reads and writes of the data: statistics read it once before it is normalized.
# A row of layer norm stays in the cache from its statistics to its result; a group does not.
PASSES = {"batch_norm": 2, "batch_norm_forward": 3, "batch_norm_backward": 5}
PASSES |= {"layer_norm_forward": 2, "layer_norm_backward": 5, "group_norm_forward": 3, "group_norm_backward": 5}

Call = Callable[[], Any]


class Data(NamedTuple):
    """Arguments of one row, on the device."""

    layout: str  # of a batch norm; or "layer" or "group"
    axis: int
    x: Any
    dy: Any
    out: Any
    parameters: dict[str, Any]  # gamma, beta, mean, var: float32, or float64 for float64


# ---- arrays ----


def send(a: Any) -> Any:
    """Copy an array to the device: as a tensor of PyTorch if that can use it, else as an array of Numba."""
    a = np.ascontiguousarray(a)
    return cuda.to_device(a) if torch is None else torch.from_numpy(a).cuda()


def fetch(a: Any) -> Any:
    """Copy an array from the device."""
    return a.copy_to_host() if torch is None else a.cpu().numpy()


def copied(a: Any) -> Any:
    """A copy of a device array."""
    return send(fetch(a))


def data(layout: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> Data:
    """Random values, made on the device if PyTorch can use it."""
    axis = len(shape) - 1 if layout in ("NHWC", "layer") else 1
    rng = np.random.default_rng(seed)
    wide = "float64" if dtype == "float64" else "float32"
    host = {"gamma": rng.random(shape[axis]) + 0.5, "beta": rng.random(shape[axis])}
    host |= {"mean": np.full(shape[axis], 0.1), "var": np.full(shape[axis], 1.2)}
    parameters = {name: send(a.astype(wide)) for name, a in host.items()}
    if torch is None:
        x, dy = (send(rng.standard_normal(shape, np.float32).astype(dtype)) for _ in range(2))
        return Data(layout, axis, x, dy, cuda.device_array_like(x), parameters)
    torch.manual_seed(seed)
    kind = getattr(torch, dtype)
    x, dy = (torch.randn(shape, device="cuda", dtype=torch.float32).to(kind) for _ in range(2))
    return Data(layout, axis, x, dy, torch.empty_like(x), parameters)


# ---- correctness ----


def hostile(shape: tuple[int, ...], axis: int, dtype: str) -> Any:
    """Four kinds of channels: mean far from 0; an outlier as first value; tiny scale; constant."""
    rng = np.random.default_rng(1)
    x = np.moveaxis(rng.standard_normal(shape), axis, 0).copy()
    limit = 1e4 if dtype == "float16" else 1e9
    x[0::4] += limit / 10
    x[1::4].reshape(len(x[1::4]), -1)[:, 0] = limit
    x[2::4] *= 1e-3
    x[3::4] = 7.0
    return np.moveaxis(x, 0, axis).astype(dtype)


def faults(layout: str, shape: tuple[int, ...], dtype: str) -> list[str]:
    """Results that differ from float64 by more than one rounding, and a few roundings of float64 itself."""
    axis = {"NHWC": len(shape) - 1, "layer": 0}.get(layout, 1)
    host = hostile(shape, axis, dtype)
    dy = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    others = tuple(i for i in range(len(shape)) if i != axis)
    # Subtract the first value of each channel: even the longest floats have too few digits for a mean far from 0.
    first = host[tuple(slice(None) if i == axis else slice(1) for i in range(len(shape)))].astype(np.longdouble)
    wide, dy_ = host.astype(np.longdouble) - first, dy.astype(np.longdouble)
    mean = wide.mean(others, keepdims=True)
    var = ((wide - mean) ** 2).mean(others, keepdims=True)
    x_hat = (wide - mean) / np.sqrt(var + EPS)
    dgamma, dbeta = (dy_ * x_hat).sum(others, keepdims=True), dy_.sum(others, keepdims=True)
    n = host.size // shape[axis]
    dx = (dy_ - dbeta / n - x_hat * dgamma / n) / np.sqrt(var + EPS)
    x = send(host)
    given = (mean + first).astype(float), var.astype(float)
    at_once = (wide - (given[0] - first)) / np.sqrt(given[1].astype(np.longdouble) + EPS)
    if layout == "layer":
        calls = of_layers(x, send(dy))
        results = {name: (calls[name]()[0], a) for name, a in zip(calls, (x_hat, dx), strict=True)}
    else:
        y, saved = batch_norm_forward(x, channel_axis=axis)
        results = {
            "batch_norm": (batch_norm(x, *(send(a.reshape(-1)) for a in given), channel_axis=axis), at_once),
            "batch_norm_forward": (y, x_hat),
            "batch_norm_backward": (batch_norm_backward(send(dy), x, saved, channel_axis=axis)[0], dx),
        }
    # For float64 the rounding is that of the distance of values from the mean, in standard deviations.
    eps, own = np.finfo(dtype).eps, 64 * np.finfo(float).eps
    found = []
    for name, (got, expected) in results.items():
        scale = np.abs(expected) + np.abs(expected).max(others, keepdims=True) * own / eps + np.finfo(dtype).tiny
        worst = float(np.max(np.abs(fetch(got) - expected) / scale / eps))
        if not worst <= 1:
            found.append(f"{name} {layout} {shape} {dtype}: off by {worst:.3g} units in the last place")
    return found


# ---- candidates ----


def of_layers(x: Any, dy: Any, gamma: Any = None, beta: Any = None) -> dict[str, Call]:
    """Our layer norm over the last axis."""
    size = tuple(x.shape)[-1:]
    more: dict[str, Any] = {"channel_axis": None, "activation": None, "residual": None, "out": None, "centred": True}
    saved = layer_forward(x, size, gamma, beta, eps=EPS, **more)[1]
    return {
        "layer_norm_forward": lambda: layer_forward(x, size, gamma, beta, eps=EPS, **more),
        "layer_norm_backward": lambda: layer_backward(dy, x, saved, size, gamma, beta, **more),
    }


def of_groups(x: Any, dy: Any, gamma: Any, beta: Any, n_groups: int) -> dict[str, Call]:
    """Our group norm."""
    more: dict[str, Any] = {"channel_axis": 1, "activation": None, "residual": None, "out": None}
    saved = group_forward(x, n_groups, gamma, beta, eps=EPS, **more)[1]
    return {
        "group_norm_forward": lambda: group_forward(x, n_groups, gamma, beta, eps=EPS, **more),
        "group_norm_backward": lambda: group_backward(dy, x, saved, n_groups, gamma, beta, **more),
    }


def n_groups_of(d: Data) -> int:
    """`N_GROUPS`, or as many as there are channels."""
    return min(N_GROUPS, int(d.x.shape[1]))


def ours(d: Data) -> dict[str, Call]:
    """Our functions. Like those of PyTorch they allocate results, and training updates running statistics."""
    p = d.parameters
    if d.layout == "layer":
        return of_layers(d.x, d.dy, p["gamma"], p["beta"])
    if d.layout == "group":
        return of_groups(d.x, d.dy, p["gamma"], p["beta"], n_groups_of(d))
    affine = {"gamma": p["gamma"], "beta": p["beta"], "channel_axis": d.axis}
    running = dict(zip(("running_mean", "running_var"), map(copied, (p["mean"], p["var"])), strict=True))
    saved = batch_norm_forward(d.x, **affine)[1]
    return {
        "batch_norm": lambda: batch_norm(d.x, p["mean"], p["var"], **affine),
        "batch_norm_forward": lambda: batch_norm_forward(d.x, **affine, **running, ddof=1),
        "batch_norm_backward": lambda: batch_norm_backward(d.dy, d.x, saved, **affine),
    }


def of_torch(d: Data) -> dict[str, Call]:
    """PyTorch's own kernels, without autograd."""
    p = d.parameters
    if d.layout in ("layer", "group"):
        return of_torchs_samples(d)
    x, dy = (a.permute(0, 3, 1, 2) if d.layout == "NHWC" else a for a in (d.x, d.dy))
    given = (x, p["gamma"], p["beta"], copied(p["mean"]), copied(p["var"]))
    _, mean, invstd = torch.native_batch_norm(*given, True, 0.1, EPS)
    backward = torch.ops.aten.native_batch_norm_backward.default
    return {
        "batch_norm": lambda: torch.native_batch_norm(*given, False, 0.1, EPS),
        "batch_norm_forward": lambda: torch.native_batch_norm(*given, True, 0.1, EPS),
        "batch_norm_backward": lambda: backward(
            dy, x, given[1], given[3], given[4], mean, invstd, True, EPS, [True, True, True]
        ),
    }


def of_torchs_samples(d: Data) -> dict[str, Call]:
    """PyTorch's layer and group norm, which want parameters of the type of the data."""
    x, dy, aten, all_three = d.x, d.dy, torch.ops.aten, [True, True, True]
    gamma, beta = (d.parameters[name].to(x.dtype) for name in ("gamma", "beta"))
    if d.layout == "layer":
        size = [x.shape[-1]]
        _, mean, invstd = torch.native_layer_norm(x, size, gamma, beta, EPS)
        backward = aten.native_layer_norm_backward.default
        return {
            "layer_norm_forward": lambda: torch.native_layer_norm(x, size, gamma, beta, EPS),
            "layer_norm_backward": lambda: backward(dy, x, size, mean, invstd, gamma, beta, all_three),
        }
    about = *x.shape[:2], prod(x.shape[2:]), n_groups_of(d)
    _, mean, invstd = torch.native_group_norm(x, gamma, beta, *about, EPS)
    backward = aten.native_group_norm_backward.default
    return {
        "group_norm_forward": lambda: torch.native_group_norm(x, gamma, beta, *about, EPS),
        "group_norm_backward": lambda: backward(dy, x, mean, invstd, gamma, *about, all_three),
    }


def of_cudnn(d: Data) -> dict[str, Call]:
    """The kernels of cuDNN, called by PyTorch."""
    p = d.parameters
    if d.layout in ("layer", "group"):
        return {}  # it has no such norm here
    x, dy = (a.permute(0, 3, 1, 2) if d.layout == "NHWC" else a for a in (d.x, d.dy))
    x, dy = (a if a.ndim == 4 else a[:, :, None, None] for a in (x, dy))
    given = (x, p["gamma"], p["beta"], copied(p["mean"]), copied(p["var"]))
    _, mean, invstd, reserve = torch.cudnn_batch_norm(*given, True, 0.1, EPS)
    backward = torch.ops.aten.cudnn_batch_norm_backward.default
    return {
        "batch_norm": lambda: torch.cudnn_batch_norm(*given, False, 0.1, EPS),
        "batch_norm_forward": lambda: torch.cudnn_batch_norm(*given, True, 0.1, EPS),
        "batch_norm_backward": lambda: backward(x, dy, given[1], given[3], given[4], mean, invstd, EPS, reserve),
    }


def candidates(d: Data) -> dict[str, dict[str, Call]]:
    """Calls by operation, then by candidate. Operations that a peer lacks are left out."""
    found = {operation: {"bncpu": call} for operation, call in ours(d).items()}
    for name, make in (("PyTorch", of_torch), ("cuDNN", of_cudnn)) if torch is not None else ():
        try:
            calls = make(d)
        except RuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        for operation, call in calls.items():
            try:
                call()
                found[operation][name] = call
            except RuntimeError as error:
                print(f"{name} {operation}: {str(error).splitlines()[0]}", file=sys.stderr)
    return found


# ---- timing ----


@cuda.jit
def busy(a, n):
    """Keep one thread busy for about `4 * n` cycles."""
    s = a[0]
    for _ in range(n):
        s = s * 0.5 + 1.0
    a[0] = s


def on_device(call: Call) -> float:
    """Seconds between two events around a call. The device is kept busy first, until the host has queued all of it."""
    start, end, a = cuda.event(), cuda.event(), cuda.device_array(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grid size 1 ")  # numba's advice against launches of few blocks
        busy[1, 1](a, 1 if _compat.SIMULATED else 200_000)
    start.record()
    kept = call()  # kept until the end: freeing it would wait for the device
    end.record()
    end.synchronize()
    del kept
    return float(start.elapsed_time(end)) / 1e3


def on_host(call: Call, repeat: int) -> float:
    """Seconds until a call returns. The device gets time to finish afterwards."""
    cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    seconds = time.perf_counter() - start
    cuda.synchronize()
    return seconds / repeat


def in_turn(calls: dict[str, Call], rounds: int, timed: Callable[[Call], float]) -> dict[str, list[float]]:
    """Seconds of each call in every round, called in random order."""
    order, found = list(calls), {name: [] for name in calls}
    for done in range(rounds + WARM_UP):
        random.shuffle(order)
        for name in order:
            seconds = timed(calls[name])
            if done >= WARM_UP:
                found[name].append(seconds)
    return found


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows)])


def timed_rows(shapes: Any, dtypes: Any, rounds: int, log: list[Any]) -> list[dict[str, Any]]:
    """A row for each shape, type and operation."""
    rows = []
    for (layout, shape), dtype in ((s, t) for s in shapes for t in dtypes):
        d = data(layout, shape, dtype)
        copy = (lambda d=d: d.out.copy_to_device(d.x)) if torch is None else (lambda d=d: d.out.copy_(d.x))
        by_operation = candidates(d)
        for operation, passes in ((name, n) for name, n in PASSES.items() if name in by_operation):
            seconds = in_turn({"copy": copy, **by_operation[operation]}, rounds, on_device)
            log.append({"layout": layout, "shape": shape, "dtype": dtype, "operation": operation, "seconds": seconds})
            median = {name: statistics.median(values) for name, values in seconds.items()}
            size = prod(shape) * np.dtype(dtype).itemsize
            floor = median["copy"] * passes / 2
            row = {"operation": operation, "data": f"{layout} {'x'.join(map(str, shape))} {dtype}"}
            row |= {f"{name}, us": f"{1e6 * t:.1f}" for name, t in median.items()}
            row |= {"GB/s": f"{passes * size / median['bncpu'] / 1e9:.0f}", "of copy": f"{floor / median['bncpu']:.2f}"}
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def environment() -> dict[str, str]:
    """The versions and the device that the figures depend on."""
    found = {"date": datetime.date.today().isoformat(), "python": platform.python_version()}
    for name in ("numba-cuda", "numba", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    commands = {
        "commit": ["git", "rev-parse", "HEAD"],
        "device, driver": ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
    }
    for name, command in commands.items():
        try:
            found[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            found[name] = "unknown"
    if _compat.SIMULATED:
        found["device, driver"] = "simulator: no figure is a speed"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(prog="python -m gpu.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--log", help="a file for every single time, as JSON")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float16", "float32", "float64"), default=["float32", "float16"]
    )
    parser.add_argument("--smallest", action="store_true", help="tiny shapes, one round: to try the program")
    asked = parser.parse_args(arguments)
    shapes, small, rounds, calls = SHAPES, SMALL, asked.rounds, 1000
    if asked.smallest:
        shapes, small = (("NCHW", (4, 4, 2, 2)), ("NHWC", (4, 2, 2, 4)), ("rows", (257, 4))), ("rows", (4, 4))
        shapes += (("layer", (8, 20)), ("group", (2, 4, 2, 2)))
        rounds = calls = 1
    about, log = environment(), []
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    checked = (("NCHW", (16, 8, 28, 28)), ("NHWC", (16, 28, 28, 8)), ("rows", (4099, 12)), ("layer", (64, 1000)))
    checked += (("rows", (400_003, 21)),)  # some rows are taken as one, and some are left
    checked = shapes[:-1] if asked.smallest else checked
    wrong = [fault for shape in checked for dtype in (*asked.dtypes, "float64") for fault in faults(*shape, dtype)]
    print("\n".join(wrong) or "results on hostile data: right")
    if wrong:
        return 1
    rows = timed_rows(shapes, asked.dtypes, rounds, log)
    names = ["copy", *(["bncpu"] if torch is None else ["bncpu", "PyTorch", "cuDNN"])]
    print(table(rows, ["operation", "data", *(f"{name}, us" for name in names), "GB/s", "of copy"]))
    d = data(*small, "float32")
    print("\nuntil a call returns, us:")
    for operation, by_name in candidates(d).items():
        seconds = in_turn(by_name, min(rounds, 7), lambda call: on_host(call, calls))
        log.append({"operation": operation, "on host": seconds})
        print(operation, {name: round(1e6 * statistics.median(values), 1) for name, values in seconds.items()})
    if asked.log:
        with open(asked.log, "w", encoding="utf-8") as file:
            json.dump({"about": about, "log": log}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
