"""The candidates of the benchmarks: our functions and other libraries, each as a call on the same arrays.

Every function below takes `Data`. It returns the call to time, or None if the library cannot do the operation, and
raises ImportError if the library is not installed. Libraries are imported only there. Each call returns its result, so
that results can be compared.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

import bncpu

Array = NDArray[Any]
Call = Callable[[], Any]

EPS = float(np.float32(1e-5))  # some libraries keep eps in float32
SMALL_BYTES = 1 << 17  # below this size of x, a row shows microseconds: the cost of a call
LARGE_BYTES = 128_000_000  # smaller arrays may stay in a cache from call to call
N_BATCHES = 10

# What another library must compute to be compared with our operation.
TASKS = {
    "transform": "inference",
    "batch_norm": "inference",
    "batch_norm_moments": "statistics",
    "fit": "statistics",
    "partial_fit": "stream",
    "batch_norm_forward": "training",
    "batch_norm_backward": "gradients",
}


class Case(NamedTuple):
    """One operation on one array: a row of the tables."""

    operation: str  # a key of TASKS
    shape: tuple[int, ...]
    layout: str = "rows"  # or NCHW, NHWC
    dtype: str = "float32"
    fresh: bool = False  # results are new arrays; else they are written to `out`

    @property
    def task(self) -> str:
        """What is computed."""
        return TASKS[self.operation]

    @property
    def n_bytes(self) -> int:
        """The size of x."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def unit(self) -> str:
        """In which unit: "limit", multiples of what memory takes; "us", microseconds, if the call costs more."""
        return "us" if self.n_bytes < SMALL_BYTES else "limit"

    @property
    def is_large(self) -> bool:
        """Whether x is read from memory at every call. A stream of it then comes in batches."""
        return self.n_bytes >= LARGE_BYTES

    @property
    def makes_new(self) -> bool:
        """Whether our result is a new array: if the case says so, and in small calls of `transform`, as in real use."""
        return self.fresh or (self.operation == "transform" and self.unit == "us")

    @property
    def channel_axis(self) -> int:
        """The axis of the channels, counted from 0."""
        return len(self.shape) - 1 if self.layout == "NHWC" else 1

    @property
    def name(self) -> str:
        """As `label`, with the dtype: no two cases have the same."""
        return f"{self.label} {self.dtype}"

    @property
    def label(self) -> str:
        """The row's name."""
        sizes = [f"{n // 10**6}M" if n >= 10**6 else f"{n // 1000}k" if n >= 10_000 else str(n) for n in self.shape]
        layout = "" if self.layout == "rows" else f"{self.layout} "
        without = ", no out=" if self.fresh else ""
        return f"{self.operation} {layout}{' x '.join(sizes)}{without}"

    def smallest(self) -> Case:
        """The same case with a few values, to check that it runs."""
        shape = (16, 4) if self.layout == "rows" else {"NCHW": (4, 3, 2, 2), "NHWC": (4, 2, 2, 3)}[self.layout]
        return self._replace(shape=shape)


class Data:
    """The arrays of a case. All are written once beforehand, so that no timing includes their first use.

    Attributes
    ----------
    x, out, dy : ndarray of the case's shape and dtype
        Standard normal numbers, repeated; times do not depend on the values.
    mean, var, gamma, beta : ndarray of shape (C,), of the case's dtype
    batches : list of ndarray
        Parts of x, for `partial_fit`.
    """

    def __init__(self, case: Case, n_threads: int | None = 1) -> None:
        self.case, self.n_threads = case, n_threads
        some = np.random.default_rng(0).standard_normal(min(math.prod(case.shape), 999_983)).astype(case.dtype)
        self.x = np.resize(some, case.shape)
        self.dy = np.resize(some[::-1], case.shape) if case.task == "gradients" else self.x
        self.out = self.x.copy()
        n_channels = case.shape[case.channel_axis]
        self.axes = tuple(axis for axis in range(len(case.shape)) if axis != case.channel_axis)
        self.along = tuple(-1 if axis == case.channel_axis else 1 for axis in range(len(case.shape)))
        self.mean, self.var, self.gamma, self.beta = (
            np.linspace(low, high, n_channels, dtype=case.dtype)
            for low, high in ((-0.1, 0.1), (0.5, 2), (0.5, 2), (-1, 1))
        )
        self.batches = np.array_split(self.x, N_BATCHES) if case.is_large else [self.x]

    def parameters(self) -> tuple[Array, ...]:
        """Mean, var, gamma and beta, shaped to broadcast against x."""
        return tuple(p.reshape(self.along) for p in (self.mean, self.var, self.gamma, self.beta))


def ours(d: Data) -> Call | None:
    """Prepare our own call for the case."""
    x, case = d.x, d.case
    options: dict[str, Any] = {"channel_axis": case.channel_axis, "n_threads": d.n_threads}
    to: dict[str, Any] = {} if case.makes_new else {"out": d.out}
    match case.operation:
        case "batch_norm":
            return lambda: bncpu.batch_norm(x, d.mean, d.var, d.gamma, d.beta, eps=EPS, **to, **options)
        case "batch_norm_moments":
            return lambda: bncpu.batch_norm_moments(x, **options)
        case "batch_norm_forward":
            return lambda: bncpu.batch_norm_forward(x, d.gamma, d.beta, eps=EPS, **to, **options)[0]
        case "batch_norm_backward":
            _, saved = bncpu.batch_norm_forward(x, d.gamma, eps=EPS, **options)
            return lambda: bncpu.batch_norm_backward(d.dy, x, saved, d.gamma, **to, **options)[0]
    if case.layout == "rows":
        options["channel_axis"] = None
    estimator = bncpu.BatchNormTransformer(eps=EPS, **options)
    if case.operation == "fit":
        return lambda: estimator.fit(x)
    if case.operation == "partial_fit":
        return _each(d.batches, estimator.partial_fit)
    estimator = type(estimator).from_statistics(d.mean, d.var, len(x), eps=EPS, **options)
    return lambda: estimator.transform(x, **to)


def standard_scaler(d: Data) -> Call | None:
    """Call scikit-learn; its results are always new arrays."""
    if d.case.layout != "rows":
        return None
    scaler = StandardScaler()
    match d.case.task:
        case "inference" if d.case.operation == "transform":
            scaler.fit(d.x)
            scaler.mean_, scaler.scale_ = d.mean.astype(np.float64), np.sqrt(d.var.astype(np.float64) + EPS)
            return lambda: scaler.transform(d.x)
        case "statistics":
            return lambda: scaler.fit(d.x)
        case "stream":
            return _each(d.batches, scaler.partial_fit)
    return None


def numpy(d: Data) -> Call | None:
    """Compute the formulas of a textbook, in place where that saves memory."""
    x, out = d.x, d.out
    mean, var, gamma, beta = d.parameters()
    scale = (gamma if d.case.operation == "batch_norm" else 1) / np.sqrt(var + x.dtype.type(EPS))
    shift = beta if d.case.operation == "batch_norm" else None

    def inference() -> Array:
        y = np.subtract(x, mean, out=None if d.case.fresh else out)
        np.multiply(y, scale, out=y)
        return y if shift is None else np.add(y, shift, out=y)

    def statistics() -> tuple[Array, Array]:
        return x.mean(axis=d.axes), x.var(axis=d.axes)

    def training() -> Array:
        m, v = x.mean(axis=d.axes, keepdims=True), x.var(axis=d.axes, keepdims=True)
        y = np.subtract(x, m, out=None if d.case.fresh else out)
        np.multiply(y, gamma / np.sqrt(v + x.dtype.type(EPS)), out=y)
        return np.add(y, beta, out=y)

    m, v = x.mean(axis=d.axes, keepdims=True), x.var(axis=d.axes, keepdims=True)
    invstd, n = 1 / np.sqrt(v + x.dtype.type(EPS)), x.size // mean.size

    def gradients() -> Array:
        x_hat = np.subtract(x, m)
        np.multiply(x_hat, invstd, out=x_hat)
        dbeta = d.dy.sum(axis=d.axes, keepdims=True)
        dgamma = (d.dy * x_hat).sum(axis=d.axes, keepdims=True)
        dx = np.subtract(d.dy, dbeta / n, out=None if d.case.fresh else out)
        np.multiply(x_hat, dgamma / n, out=x_hat)
        np.subtract(dx, x_hat, out=dx)
        return np.multiply(dx, gamma * invstd, out=dx)

    calls = {"inference": inference, "statistics": statistics, "training": training, "gradients": gradients}
    return calls.get(d.case.task)


def running_mean_std(d: Data) -> Call | None:
    """Update running statistics by the formula of gymnasium's RunningMeanStd."""
    if d.case.task != "stream" or d.case.layout != "rows":
        return None
    mean, var, count = np.zeros(len(d.mean)), np.ones(len(d.mean)), 1e-4

    def update(x: Array) -> None:
        nonlocal mean, var, count
        delta, n, total = x.mean(axis=0) - mean, len(x), count + len(x)
        m2 = var * count + x.var(axis=0) * n + delta**2 * (count * n / total)
        mean, var, count = mean + delta * (n / total), m2 / total, total

    return _each(d.batches, update)


def numba(d: Data) -> Call | None:
    """Compile the obvious loops, as a user of Numba would write them: float64 sums about the first value."""
    import_module("numba")
    if d.case.layout == "NCHW":
        shape = (*d.x.shape[:2], -1)
        sums, apply, gradient_sums = _plane_sums, _plane_apply, _plane_gradient_sums
    else:
        shape = (-1, len(d.mean))
        sums, apply, gradient_sums = _row_sums, _row_apply, _row_gradient_sums
    x, dy, out = (a.reshape(shape) for a in (d.x, d.dy, d.out))
    n = x.size // len(d.mean)
    zeros = np.zeros((2, len(d.mean)))
    sums, apply, gradient_sums = _compiled(sums), _compiled(apply), _compiled(gradient_sums)

    def statistics() -> tuple[Array, Array]:
        first = x[0] if x.ndim == 2 else x[0, :, 0]
        s, s2 = sums(x, first, *zeros.copy())
        return first + s / n, (s2 - s * s / n) / n

    def applied(mean: Array, scale: Array, shift: Array) -> Array:
        y = np.empty_like(x) if d.case.fresh else out
        # y = 0*x + scale*(x - mean) + shift: one loop serves forward and backward.
        apply(x, x, y, zeros[0].astype(x.dtype), mean.astype(x.dtype), scale.astype(x.dtype), shift.astype(x.dtype))
        return y.reshape(d.x.shape)

    def inference() -> Array:
        plain = d.case.operation == "transform"
        gamma, beta = (np.ones_like(d.gamma), np.zeros_like(d.beta)) if plain else (d.gamma, d.beta)
        return applied(d.mean, gamma / np.sqrt(d.var + EPS), beta)

    def training() -> Array:
        mean, var = statistics()
        return applied(mean, d.gamma / np.sqrt(var + EPS), d.beta)

    mean, var = statistics()
    invstd = 1 / np.sqrt(var + EPS)

    def gradients() -> Array:
        dbeta, products = gradient_sums(dy, x, mean, *zeros.copy())
        dgamma, a = products * invstd, d.gamma * invstd
        b, c = -a * invstd * dgamma / n, -a * dbeta / n
        apply(dy, x, out, *(p.astype(x.dtype) for p in (a, mean, b, c)))
        return d.out

    calls = {"inference": inference, "statistics": statistics, "training": training, "gradients": gradients}
    return calls.get(d.case.task)


@cache
def _compiled(loops: Callable[..., Any]) -> Any:
    """Compile each function once, for all types of arrays."""
    return import_module("numba").njit(loops, fastmath=True, nogil=True, error_model="numpy")


def _row_sums(x: Array, first: Array, s: Array, s2: Array) -> tuple[Array, Array]:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            d = np.float64(x[i, c]) - first[c]
            s[c] += d
            s2[c] += d * d
    return s, s2


def _plane_sums(x: Array, first: Array, s: Array, s2: Array) -> tuple[Array, Array]:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            a = b = 0.0
            for k in range(x.shape[2]):
                d = np.float64(x[i, c, k]) - first[c]
                a += d
                b += d * d
            s[c] += a
            s2[c] += b
    return s, s2


def _row_apply(dy: Array, x: Array, y: Array, a: Array, mean: Array, b: Array, c: Array) -> None:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = a[j] * dy[i, j] + b[j] * (x[i, j] - mean[j]) + c[j]


def _plane_apply(dy: Array, x: Array, y: Array, a: Array, mean: Array, b: Array, c: Array) -> None:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for k in range(x.shape[2]):
                y[i, j, k] = a[j] * dy[i, j, k] + b[j] * (x[i, j, k] - mean[j]) + c[j]


def _row_gradient_sums(dy: Array, x: Array, mean: Array, s: Array, p: Array) -> tuple[Array, Array]:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            s[c] += dy[i, c]
            p[c] += np.float64(dy[i, c]) * (x[i, c] - mean[c])
    return s, p


def _plane_gradient_sums(dy: Array, x: Array, mean: Array, s: Array, p: Array) -> tuple[Array, Array]:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            a = b = 0.0
            for k in range(x.shape[2]):
                a += np.float64(dy[i, c, k])
                b += np.float64(dy[i, c, k]) * (x[i, c, k] - mean[c])
            s[c] += a
            p[c] += b
    return s, p


def pytorch(d: Data) -> Call | None:
    """Call PyTorch's own functions; its results are new tensors."""
    calls, _ = _torch_calls(d)
    return calls.get(d.case.task)


def pytorch_out(d: Data) -> Call | None:
    """Call the variant of PyTorch's operator that writes into given tensors."""
    if d.case.fresh or d.case.task not in ("inference", "training"):
        return None
    _, into = _torch_calls(d)
    return into


def pytorch_compile(d: Data) -> Call | None:
    """Compile PyTorch's functions for this shape; that needs a C++ compiler."""
    torch: Any = import_module("torch")
    calls, _ = _torch_calls(d)
    x = torch.from_numpy(d.x)
    calls["statistics"] = lambda: torch.var_mean(x, d.axes, correction=0)[::-1]  # an operator that it can compile
    call = calls.get(d.case.task)
    torch.compiler.reset()  # otherwise it stops compiling at the ninth shape
    return None if call is None else torch.compile(call, dynamic=False)


def _torch_calls(d: Data) -> tuple[dict[str, Call], Call]:
    """Calls by task, and the call with out= ."""
    torch: Any = import_module("torch")
    aten, batch_norm = torch.ops.aten, torch.nn.functional.batch_norm
    torch.set_grad_enabled(False)
    x, dy, out = (torch.from_numpy(a) for a in (d.x, d.dy, d.out))
    if d.case.layout == "NHWC":
        x, dy, out = (a.permute(0, 3, 1, 2) for a in (x, dy, out))
    mean, var, gamma, beta = (torch.from_numpy(p) for p in (d.mean, d.var, d.gamma, d.beta))
    if d.case.operation == "transform":
        gamma = beta = None
    training = d.case.task == "training"
    empty, other = torch.empty(0, dtype=x.dtype), torch.empty(0, dtype=x.dtype)
    _, saved_mean, saved_invstd = aten.native_batch_norm(x, gamma, beta, None, None, True, 0.1, EPS)

    def back(y: Any) -> Any:
        return y.permute(0, 2, 3, 1) if d.case.layout == "NHWC" else y

    calls = {
        "inference": lambda: back(batch_norm(x, mean, var, gamma, beta, False, 0.1, EPS)),
        "statistics": lambda: torch.batch_norm_update_stats(x, None, None, 0.1),
        "training": lambda: back(batch_norm(x, None, None, gamma, beta, True, 0.1, EPS)),
        "gradients": lambda: back(
            aten.native_batch_norm_backward(
                dy, x, gamma, None, None, saved_mean, saved_invstd, True, EPS, [True, True, True]
            )[0]
        ),
    }
    running = (None, None) if training else (mean, var)

    def into() -> Any:
        arguments = (x, gamma, beta, *running, training, 0.1, EPS)
        return back(aten.native_batch_norm.out(*arguments, out=out, save_mean=empty, save_invstd=other)[0])

    return calls, into


def onnxruntime(d: Data) -> Call | None:
    """Run ONNX Runtime's BatchNormalization, bound to given arrays; it has no training on the CPU."""
    ort: Any = import_module("onnxruntime")
    onnx: Any = import_module("onnx")
    if d.case.task != "inference" or d.case.layout == "NHWC":
        return None
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(d.x.dtype)
    node = helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["y"], epsilon=EPS)
    plain = d.case.operation == "transform"
    gamma, beta = (np.ones_like(d.gamma), np.zeros_like(d.beta)) if plain else (d.gamma, d.beta)
    constants = {"gamma": gamma, "beta": beta, "mean": d.mean, "var": d.var}
    graph = helper.make_graph(
        [node],
        "batch_norm",
        [helper.make_tensor_value_info("x", kind, d.x.shape)],
        [helper.make_tensor_value_info("y", kind, d.x.shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = d.n_threads or 0
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    if d.case.fresh:
        return lambda: session.run(None, {"x": d.x})[0]
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(d.x))
    # The only way to make it write into our memory.
    binding.bind_output("y", "cpu", 0, d.x.dtype.type, d.out.shape, d.out.ctypes.data)

    def run() -> Array:
        session.run_with_iobinding(binding)
        return d.out

    return run


def onednn(d: Data) -> Call | None:
    """Run oneDNN's primitives by its C interface, version 3, float32."""
    library = _onednn_library()
    if d.case.dtype != "float32" or d.case.fresh or d.case.task not in ("inference", "training", "gradients"):
        return None
    order = [0, 3, 1, 2] if d.case.layout == "NHWC" else list(range(d.x.ndim))
    dims = (ctypes.c_int64 * 12)(*(d.x.shape[k] for k in order))
    strides = (ctypes.c_int64 * 12)(*(d.x.strides[k] // 4 for k in order))
    f32, cpu, in_order = 3, 1, 1
    inference, training, backward = 96, 64, 128
    global_statistics, use_scale, use_shift = 1, 2, 4

    def made(name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        if status := getattr(library, f"dnnl_{name}")(ctypes.byref(handle), *arguments):
            raise OSError(f"oneDNN's {name} returned status {status}")
        return handle

    engine = made("engine_create", cpu, ctypes.c_size_t(0))
    stream = made("stream_create", engine, in_order)
    desc = made("memory_desc_create_with_strides", d.x.ndim, dims, f32, strides)
    one_dim, one_stride = (ctypes.c_int64 * 12)(len(d.mean)), (ctypes.c_int64 * 12)(1)
    vector = made("memory_desc_create_with_strides", 1, one_dim, f32, one_stride)

    class Argument(ctypes.Structure):
        _fields_ = (("number", ctypes.c_int), ("memory", ctypes.c_void_p))

    def execute(primitive: ctypes.c_void_p, arrays: dict[int, Array]) -> Call:
        arguments = (Argument * len(arrays))(
            *(
                Argument(
                    number,
                    made("memory_create", desc if a.ndim > 1 else vector, engine, ctypes.c_void_p(a.ctypes.data)),
                )
                for number, a in arrays.items()
            )
        )

        def run() -> Array:
            library.dnnl_primitive_execute(primitive, stream, len(arrays), arguments)
            library.dnnl_stream_wait(stream)
            return d.out

        run.arrays = arrays  # type: ignore[attr-defined]  # keeps them alive
        return run

    plain = d.case.operation == "transform"
    forward_kind = inference if d.case.task == "inference" else training
    flags = (0 if plain else use_scale | use_shift) | (global_statistics if d.case.task == "inference" else 0)
    eps = ctypes.c_float(EPS)
    create = "batch_normalization_forward_primitive_desc_create"
    forward_desc = made(create, engine, forward_kind, desc, desc, eps, flags, None)
    # Training writes the statistics.
    arrays = {1: d.x, 17: d.out, 49: d.mean.copy(), 50: d.var.copy()} | ({} if plain else {51: d.gamma, 52: d.beta})
    forward = execute(made("primitive_create", forward_desc), arrays)
    if d.case.task != "gradients":
        return forward
    forward()
    create = "batch_normalization_backward_primitive_desc_create"
    backward_desc = made(create, engine, backward, desc, desc, desc, eps, flags, forward_desc, None)
    given = {1: d.x, 49: arrays[49], 50: arrays[50], 51: d.gamma, 145: d.dy}
    results = {129: d.out, 255: np.empty_like(d.gamma), 256: np.empty_like(d.beta)}
    return execute(made("primitive_create", backward_desc), given | results)


def _onednn_library() -> Any:
    """The library of PyPI's onednn-cpu-gomp, or one that the system finds."""
    names = {"darwin": "libdnnl.3.dylib", "win32": "dnnl.dll"}
    name = names.get(sys.platform, "libdnnl.so.3")
    installed = Path(sys.prefix) / "lib" / name
    try:
        return ctypes.CDLL(str(installed) if installed.exists() else name)
    except OSError as error:
        raise ImportError(str(error)) from None


def sklearnex(d: Data) -> Call | None:
    """Collect scikit-learn-intelex's statistics."""
    module: Any = import_module("sklearnex.basic_statistics")
    if d.case.task not in ("statistics", "stream") or d.case.layout != "rows":
        return None
    if d.n_threads is not None:
        import_module("daal4py").daalinit(d.n_threads)
    learn = module.IncrementalBasicStatistics(result_options=["mean", "variance"], batch_size=len(d.x))
    if d.case.task == "stream":
        return _each(d.batches, learn.partial_fit)
    return lambda: learn.fit(d.x).mean_


def river(d: Data) -> Call | None:
    """Give river a dict for a single row, else DataFrames. Making these is not timed."""
    scaler = import_module("river.preprocessing").StandardScaler()
    pandas: Any = import_module("pandas")
    if d.case.operation not in ("partial_fit", "transform") or d.case.layout != "rows":
        return None
    if len(d.x) == 1:
        row = dict(enumerate(d.x[0].tolist()))
        scaler.learn_one(row)
        return lambda: (scaler.learn_one if d.case.task == "stream" else scaler.transform_one)(row)
    frames = [pandas.DataFrame(batch).add_prefix("x") for batch in d.batches]
    scaler.learn_many(frames[0])
    if d.case.task == "inference":
        scaler.means |= zip(frames[0].columns, d.mean, strict=True)
        scaler.vars |= zip(frames[0].columns, d.var + EPS, strict=True)
    return _each(frames, scaler.learn_many if d.case.task == "stream" else scaler.transform_many)


def dask_ml(d: Data) -> Call | None:
    """Run dask-ml's StandardScaler on an array in memory, in chunks."""
    preprocessing: Any = import_module("dask_ml.preprocessing")
    da: Any = import_module("dask.array")
    if d.case.operation not in ("fit", "batch_norm_moments", "transform") or d.case.layout != "rows":
        return None
    x = da.from_array(d.x, chunks=(max(1, -(-len(d.x) // N_BATCHES)), d.x.shape[1]))
    how = {"scheduler": "synchronous"} if d.n_threads == 1 else {"scheduler": "threads", "num_workers": d.n_threads}
    config: Any = import_module("dask").config
    scaler = preprocessing.StandardScaler()

    def fit() -> Any:
        with config.set(**how):
            return scaler.fit(x)

    if d.case.task == "statistics":
        return fit
    fit()
    scaler.mean_, scaler.scale_ = d.mean, np.sqrt(d.var + EPS)
    return lambda: scaler.transform(x).compute(**how)


def _each(batches: list[Any], function: Callable[[Any], object]) -> Call:
    """A call that calls the function with each batch."""
    if len(batches) == 1:
        batch = batches[0]
        return lambda: function(batch)

    def run() -> None:
        for batch in batches:
            function(batch)

    return run


OURS = "bncpu"
PEERS: dict[str, Callable[[Data], Call | None]] = {
    "StandardScaler": standard_scaler,
    "NumPy": numpy,
    "RunningMeanStd": running_mean_std,
    "Numba": numba,
    "PyTorch": pytorch,
    "PyTorch out=": pytorch_out,
    "PyTorch compile": pytorch_compile,
    "ONNX Runtime": onnxruntime,
    "oneDNN": onednn,
    "sklearnex": sklearnex,
    "river": river,
    "dask-ml": dask_ml,
}
PACKAGES = {
    "StandardScaler": "scikit-learn",
    "NumPy": "numpy",
    "Numba": "numba",
    "PyTorch": "torch",
    "ONNX Runtime": "onnxruntime",
    "oneDNN": "onednn-cpu-gomp",
    "sklearnex": "scikit-learn-intelex",
    "river": "river",
    "dask-ml": "dask-ml",
}
SLOW_TO_PREPARE = {"PyTorch compile"}  # tens of seconds


def limit_threads(n_threads: int | None) -> None:
    """Set the number of threads of libraries that threadpoolctl does not reach."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and n_threads is not None:
        torch.set_num_threads(n_threads)
