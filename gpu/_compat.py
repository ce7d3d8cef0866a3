"""Vectors of values, by private parts of numba-cuda, and by NumPy in the simulator.

Kernels compute on vectors of float64, whatever the type in memory: 16 bytes of values are read, widened, computed lane
by lane with ``+ - *``, and rounded once when they are written. By the data sheets, data-center GPUs do these operations
in less time than memory takes for the values, so no other precision is needed.

An address is an integer on a device, and an array in the simulator. numba-cuda is in maintenance mode: all that one of
its releases may break is in this file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numba import config, cuda

from ._arguments import Kind
from ._plan import STORAGE

SIMULATED = bool(config.ENABLE_CUDASIM)


class Access(NamedTuple):
    """How kernels read and write vectors of `n` adjacent values of one type. Indices count vectors."""

    load: Any  # (address, index) -> vector
    store: Any  # (address, index, vector)


@cuda.jit(device=True)
def block_meets():
    """Wait for the other threads of the block, and for what they have written."""
    cuda.syncthreads()


if SIMULATED:

    def kernel(kind: Kind) -> Any:
        """The decorator of a kernel."""
        return cuda.jit

    def launcher(kernel: Any, grid: tuple[int, int], block: tuple[int, int], stream: Any) -> Callable[..., None]:
        """A function that starts a kernel with arguments."""
        # Not before it is called, as the simulator's kernel keeps only the last configuration.
        return lambda *arguments: kernel[grid, block, stream](*arguments)

    class Words:
        """The values of an array in memory order, in place of an address."""

        def __init__(self, values: Any) -> None:
            values = values.reshape(-1)
            self.values = values.view(np.uint16) if values.dtype.name == "bfloat16" else values

    def address(a: Any, axis: int | None = None) -> Words:
        """The values of an array whose channels, on `axis`, lie last in memory."""
        return Words(a._ary if axis is None else np.moveaxis(a._ary, axis, -1))

    def further(address: Words, n_bytes: int) -> Words:
        """The address so many bytes behind another."""
        return Words(address.values[n_bytes // address.values.itemsize :])

    def current_device() -> int:
        return 0

    def device_of(a: Any) -> int:
        return 0

    def is_writeable(a: Any) -> bool:
        return bool(a._ary.flags.writeable)

    def _narrowed(v: Any, storage: str) -> Any:
        with np.errstate(all="ignore"):
            if storage != "bfloat16":
                return np.asarray(v).astype(storage)
            bits = np.asarray(v).astype(np.float32).view(np.uint32)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            return np.where(np.isnan(v), np.uint16(0x7FC0), rounded)

    def access(storage: str, n: int, *, aligned: bool = True) -> Access:
        """Vectors of `n` values of a type in memory."""

        def load(address: Any, index: int) -> Any:
            v = address.values[n * index : n * index + n]
            assert len(v) == n, "read beyond an array"
            if storage == "bfloat16":
                v = (v.astype(np.uint32) << 16).view(np.float32)
            return v.astype(np.float64)

        def store(address: Any, index: int, v: Any) -> None:
            assert n * index + n <= len(address.values), "write beyond an array"
            address.values[n * index : n * index + n] = _narrowed(v, storage)

        return Access(load, store)

    def filled(n: int) -> Any:
        return lambda value: np.full(n, value)

    def total(v: Any) -> float:
        while len(v) > 1:
            v = v[: len(v) // 2] + v[len(v) // 2 :]
        return float(v[0])

    def lane(v: Any, k: int) -> float:
        return float(v[k])

    def with_lane(v: Any, k: int, value: float) -> Any:
        return np.where(np.arange(len(v)) == k, value, v)

    def relu(v: Any) -> Any:
        return np.where(v < 0, 0.0, v)

    def where_above_0(y: Any, v: Any) -> Any:
        return np.where(y <= 0, 0.0, v)

    def not_negative(v: Any) -> Any:
        return np.where(v < 0, np.nan, v)

    def present(v: Any) -> Any:
        return np.where(np.isnan(v), 0.0, 1.0)

    def where_0(count: Any, a: Any, b: Any) -> Any:
        return np.where(count == 0, a, b)

    def any_above(a: Any, b: Any) -> bool:
        return bool(np.any(a > b))

    def inverse_std(var: Any, eps: float) -> Any:
        std = np.sqrt(var + eps)
        return np.where(std == 0, 0.0, 1 / np.where(std == 0, 1.0, std))

    @cuda.jit(device=True)
    def warp_meets():
        cuda.syncthreads()  # the simulator has no warps

    def ticket(address: Any, index: int) -> int:
        address.values[index] += 1
        return int(address.values[index]) - 1

    def reset(address: Any, index: int) -> None:
        address.values[index] = 0

else:

    def address(a: Any, axis: int | None = None) -> int:
        """Where an array of CuPy or Numba starts."""
        # Not by Numba's array interface, which would also ask for the stream on which the array was made.
        pointer = getattr(a, "device_ctypes_pointer", None)
        return a.__cuda_array_interface__["data"][0] if pointer is None else int(pointer.value)

    def further(address: int, n_bytes: int) -> int:
        """The address so many bytes behind another."""
        return address + n_bytes

    def current_device() -> int:
        """The device on which kernels run."""
        error, device = driver.cuCtxGetDevice()  # numba would look for much more, and take ten times as long
        return int(cuda.current_context().device.id) if error else int(device)

    def device_of(a: Any) -> int:
        """The device of an array of Numba."""
        return int(a.gpu_data.context.device.id)

    def is_writeable(a: Any) -> bool:
        """Whether an array of CuPy or Numba may be written."""
        return not a.__cuda_array_interface__["data"][1]

    from cuda.bindings import driver
    from cuda.core import LaunchConfig, Stream, launch
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import core_models, intrinsic, overload, register_model
    from numba.cuda.typing.templates import signature

    def kernel(kind: Kind) -> Any:
        """The decorator of a kernel."""
        return cuda.jit(launch_bounds=(kind.threads, kind.blocks_at_once))

    def signature_of(kernel: Any) -> tuple[Any, ...]:
        """The types of a kernel's arguments, by their annotations: a group, a float, or an integer or address."""

        def numba_type(annotation: Any) -> Any:
            if fields := getattr(annotation, "_fields", ()):
                hints = get_type_hints(annotation)
                return types.BaseTuple.from_types([numba_type(hints[field]) for field in fields], annotation)
            return types.float64 if annotation is float else types.int64

        return tuple(map(numba_type, get_type_hints(kernel.py_func).values()))

    def launcher(kernel: Any, grid: tuple[int, int], block: tuple[int, int], stream: Any) -> Callable[..., None]:
        """A function that starts a kernel with arguments, on the device that is current now.

        It passes the numbers in groups one by one. numba would do so, too, but takes longer to look at their types than
        all else takes.
        """
        function = kernel.compile(signature_of(kernel))._codelibrary.get_cufunc().kernel
        config, on = LaunchConfig(grid=grid, block=block), Stream.from_handle(stream.__cuda_stream__()[1])

        def start(*arguments: Any) -> None:
            numbers: list[Any] = []
            for a in arguments:
                if isinstance(a, tuple):
                    numbers += a
                else:
                    numbers.append(a)
            launch(on, config, function, *numbers)

        return start

    class Vector(types.Type):
        """`n` float64 values in registers."""

        def __init__(self, n: int) -> None:
            self.n = n
            super().__init__(f"Vector({n})")

    @register_model(Vector)
    class _VectorModel(core_models.PrimitiveModel):
        def __init__(self, dmm: Any, fe_type: Vector) -> None:
            super().__init__(dmm, fe_type, ir.VectorType(ir.DoubleType(), fe_type.n))

    # Not every numba has bfloat16, so its words are read as integers.
    _WORDS = {
        "float16": ir.HalfType(),
        "bfloat16": ir.IntType(16),
        "float32": ir.FloatType(),
        "float64": ir.DoubleType(),
    }

    def _int(value: int, bits: int = 32) -> Any:
        return ir.Constant(ir.IntType(bits), value)

    def _whole(value: Any, n: int, ty: Any = None) -> Any:
        return ir.Constant(ir.VectorType(ty or ir.IntType(32), n), [value] * n)

    def _pointer(builder: Any, address: Any, index: Any, ty: Any) -> Any:
        return builder.gep(builder.inttoptr(address, ty.as_pointer(addrspace=1)), [index])

    def _halves(builder: Any, v: Any, n: int, words: Any) -> Any:
        """Split words of two values each, by arithmetic. A cast would be moved into the load, and make it narrower."""
        apart = ir.Constant(ir.VectorType(ir.IntType(16), n), ir.Undefined)
        for k in range(n):
            word = builder.extract_element(v, _int(k // 2))
            word = builder.lshr(word, _int(16)) if k % 2 else word
            apart = builder.insert_element(apart, builder.trunc(word, ir.IntType(16)), _int(k))
        return builder.bitcast(apart, words)

    def _from_bfloat16(builder: Any, v: Any, n: int) -> Any:
        words = builder.zext(v, ir.VectorType(ir.IntType(32), n))
        return builder.bitcast(builder.shl(words, _whole(16, n)), ir.VectorType(ir.FloatType(), n))

    def _to_bfloat16(builder: Any, v: Any, n: int) -> Any:
        """Round float32 to the nearest bfloat16, ties to even; each result is in the lower half of a word."""
        words = builder.bitcast(v, ir.VectorType(ir.IntType(32), n))
        odd = builder.and_(builder.lshr(words, _whole(16, n)), _whole(1, n))
        rounded = builder.lshr(builder.add(words, builder.add(odd, _whole(0x7FFF, n))), _whole(16, n))
        return builder.select(builder.fcmp_unordered("uno", v, v), _whole(0x7FC0, n), rounded)

    def _in_pairs(builder: Any, v: Any, n: int) -> Any:
        """Undo `_halves`."""
        words = ir.Constant(ir.VectorType(ir.IntType(32), n // 2), ir.Undefined)
        for k in range(0, n, 2):
            low, high = (builder.extract_element(v, _int(i)) for i in (k, k + 1))
            words = builder.insert_element(words, builder.or_(low, builder.shl(high, _int(16))), _int(k // 2))
        return words

    def _in_parts(builder: Any, first: Any, part: Any, n_parts: int, align: int) -> Any:
        """What lies in so many adjacent vectors, as one."""
        first = builder.bitcast(first, part.as_pointer(addrspace=1))
        parts = [builder.load(builder.gep(first, [_int(k)]), align=align) for k in range(n_parts)]
        while len(parts) > 1:
            n = 2 * parts[0].type.count
            both = ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(n)))
            parts = [builder.shuffle_vector(a, b, both) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def access(storage: str, n: int, *, aligned: bool = True) -> Access:
        """Vectors of `n` values of a type in memory, at addresses that are multiples of 16 bytes if `aligned`."""
        words = ir.VectorType(_WORDS[storage], n)
        # Pairs of two-byte values are read as one word: four words are read at once, eight halves only in pairs.
        pairs = aligned and STORAGE[storage] == 2 and n > 1
        moved = ir.VectorType(ir.IntType(32), n // 2) if pairs else words
        singles, doubles = ir.VectorType(ir.FloatType(), n), ir.VectorType(ir.DoubleType(), n)
        align = min(16, n * STORAGE[storage]) if aligned else STORAGE[storage]
        # No device before sm_100 reads more at once, and ptxas refuses what would.
        n_reads = max(1, n * STORAGE[storage] // 16)

        @intrinsic
        def load(typingctx: Any, address: Any, index: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                first = _pointer(builder, *args, moved)
                if n_reads == 1:
                    v = builder.load(first, align=align)
                else:
                    v = _in_parts(builder, first, ir.VectorType(moved.element, moved.count // n_reads), n_reads, align)
                v = _halves(builder, v, n, words) if pairs else v
                if storage == "bfloat16":
                    v = _from_bfloat16(builder, v, n)
                return v if storage == "float64" else builder.fpext(v, doubles)

            return signature(Vector(n), types.uint64, types.int64), codegen

        @intrinsic
        def store(typingctx: Any, address: Any, index: Any, v: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                v = args[2]
                if storage == "bfloat16":
                    v = _to_bfloat16(builder, builder.fptrunc(v, singles), n)
                    v = _in_pairs(builder, v, n) if pairs else builder.trunc(v, words)
                elif storage != "float64":
                    v = builder.bitcast(builder.fptrunc(v, words), moved)
                builder.store(v, _pointer(builder, *args[:2], moved), align=align)
                return context.get_dummy_value()

            return signature(types.none, types.uint64, types.int64, Vector(n)), codegen

        return Access(load, store)

    def _operator(op: Any, name: str) -> None:
        @intrinsic
        def compute(typingctx: Any, a: Any, b: Any) -> Any:
            n = (a if isinstance(a, Vector) else b).n

            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                return getattr(builder, name)(*(_spread(builder, v, n) for v in args))

            return signature(Vector(n), *(t if isinstance(t, Vector) else types.float64 for t in (a, b))), codegen

        @overload(op)
        def of_vectors(a, b):  # numba compares the signatures
            if isinstance(a, Vector) or isinstance(b, Vector):
                return lambda a, b: compute(a, b)
            return None

    def _spread(builder: Any, v: Any, n: int) -> Any:
        """A number in every lane."""
        ty = ir.VectorType(ir.DoubleType(), n)
        if v.type == ty:
            return v
        first = builder.insert_element(ir.Constant(ty, ir.Undefined), v, _int(0))
        return builder.shuffle_vector(first, ir.Constant(ty, ir.Undefined), _whole(0, n))

    for _op, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
        _operator(_op, _name)

    def filled(n: int) -> Any:
        """A function that puts a number into each of `n` lanes."""

        @intrinsic
        def fill(typingctx: Any, value: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                return _spread(builder, args[0], n)

            return signature(Vector(n), types.float64), codegen

        return fill

    @intrinsic
    def total(typingctx: Any, v: Any) -> Any:
        """The sum of the lanes, pairwise."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            parts = [builder.extract_element(args[0], _int(k)) for k in range(v.n)]
            while len(parts) > 1:
                half = len(parts) // 2
                parts = [builder.fadd(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
            return parts[0]

        return signature(types.float64, v), codegen

    @intrinsic
    def lane(typingctx: Any, v: Any, k: Any) -> Any:
        """One value of a vector."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.extract_element(*args)

        return signature(types.float64, v, types.int64), codegen

    @intrinsic
    def with_lane(typingctx: Any, v: Any, k: Any, value: Any) -> Any:
        """The vector with another value in one lane."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            v, k, value = args
            return builder.insert_element(v, value, k)

        return signature(v, v, types.int64, types.float64), codegen

    @intrinsic
    def relu(typingctx: Any, v: Any) -> Any:
        """0 where the value is below it; NaN stays."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            zero = _whole(0.0, v.n, ir.DoubleType())
            return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

        return signature(v, v), codegen

    @intrinsic
    def where_above_0(typingctx: Any, y: Any, v: Any) -> Any:
        """The gradient `v` where the result `y` is above 0, or NaN."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            zero = _whole(0.0, v.n, ir.DoubleType())
            return builder.select(builder.fcmp_ordered("<=", args[0], zero), zero, args[1])

        return signature(v, y, v), codegen

    @intrinsic
    def not_negative(typingctx: Any, v: Any) -> Any:
        """NaN where the value is negative."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            zero, nan = (_whole(value, v.n, ir.DoubleType()) for value in (0.0, float("nan")))
            return builder.select(builder.fcmp_ordered("<", args[0], zero), nan, args[0])

        return signature(v, v), codegen

    @intrinsic
    def present(typingctx: Any, v: Any) -> Any:
        """1 for a number, 0 for NaN."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            zero, one = (_whole(value, v.n, ir.DoubleType()) for value in (0.0, 1.0))
            return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), zero, one)

        return signature(v, v), codegen

    @intrinsic
    def where_0(typingctx: Any, count: Any, a: Any, b: Any) -> Any:
        """`a` where the count is 0, `b` elsewhere."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            zero = _whole(0.0, count.n, ir.DoubleType())
            return builder.select(builder.fcmp_ordered("==", args[0], zero), args[1], args[2])

        return signature(a, count, a, b), codegen

    @intrinsic
    def any_above(typingctx: Any, a: Any, b: Any) -> Any:
        """Whether any value of one vector is above that of the other."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            above = builder.fcmp_ordered(">", *args)
            found = builder.extract_element(above, _int(0))
            for k in range(1, a.n):
                found = builder.or_(found, builder.extract_element(above, _int(k)))
            return found

        return signature(types.boolean, a, b), codegen

    @intrinsic
    def inverse_std(typingctx: Any, var: Any, eps: Any) -> Any:
        """``1 / sqrt(var + eps)``, and 0 where that would divide by 0."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            double, result = ir.DoubleType(), args[0]
            root = builder.module.declare_intrinsic("llvm.nvvm.sqrt.rn.d", fnty=ir.FunctionType(double, [double]))
            for k in range(var.n):
                std = builder.call(root, [builder.fadd(builder.extract_element(args[0], _int(k)), args[1])])
                zero = builder.fcmp_ordered("==", std, ir.Constant(double, 0.0))
                inverse = builder.fdiv(ir.Constant(double, 1.0), std)
                inverse = builder.select(zero, ir.Constant(double, 0.0), inverse)
                result = builder.insert_element(result, inverse, _int(k))
            return result

        return signature(var, var, types.float64), codegen

    @cuda.jit(device=True)
    def warp_meets():
        """Wait for the other threads of the warp, and for what they have written."""
        cuda.syncwarp()

    @intrinsic
    def ticket(typingctx: Any, address: Any, index: Any) -> Any:
        """Count up, atomically; returns the count before."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _pointer(builder, *args, ir.IntType(32))
            return builder.atomic_rmw("add", pointer, _int(1), "monotonic")

        return signature(types.int32, types.uint64, types.int64), codegen

    @intrinsic
    def reset(typingctx: Any, address: Any, index: Any) -> Any:
        """Set a count to 0."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(_int(0), _pointer(builder, *args, ir.IntType(32)))
            return context.get_dummy_value()

        return signature(types.none, types.uint64, types.int64), codegen
