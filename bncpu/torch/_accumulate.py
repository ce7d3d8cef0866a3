"""Batches too large for memory: their parts go through the network together, each in its thread, one at a time."""

from __future__ import annotations

import contextvars
import ctypes
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

import bncpu
from bncpu.torch._layers import OURS, PART, THEIRS, OurBatchNorm
from bncpu.torch._statistics import restored_on_failure

# Tensors of at least so many bytes wait in files.
LARGE = 1 << 16


def accumulate(
    model: nn.Module,
    micro_batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    folder: Any = None,
) -> Tensor:
    """Compute statistics and gradients of a batch from its parts, as if it had been one.

    Gradient accumulation as usual normalizes every part with its own statistics. Here the parts go through the network
    together: each in a thread of its own, one at a time, up to the next batch norm, where their moments are merged
    [1]_, and backward their sums. So there is one forward and one backward pass, and parts may be of any size.

    Parameters
    ----------
    model : torch.nn.Module
        Converted or not.
    micro_batches : iterable of pairs
        What the model and `loss` are given of each part: inputs and targets.
    loss : callable
        ``loss(model(inputs), targets)`` is a part's share of the loss of the whole batch: for a mean over N samples
        ``cross_entropy(y, t, reduction="sum") / N``.
    folder : str or path, optional
        Where tensors that the backward pass needs wait in files, each written and read once, so that memory holds only
        what the parts have between two batch norms. By default they stay in memory.

    Returns
    -------
    torch.Tensor
        The loss of the whole batch. Gradients have been added to those of the parameters, and running statistics of
        batch norms have moved once.

    Raises
    ------
    TypeError
        If the model has a batch norm of another class than PyTorch's own or ours, or one over processes, or is
        distributed or scripted.
    RuntimeError
        If parts go through different batch norms. Gradients and buffers are as before then, as they are after any
        exception of `loss` or of the model.

    Notes
    -----
    Each part has a copy of the modules, with the same parameters and buffers: what a forward pass keeps in an attribute
    is gone afterwards. Hooks of parameters see the gradient of one part after the other. Random numbers are other ones
    than those of the whole batch.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1,
       The American Statistician 37(3), 242-247.

    Examples
    --------
    >>> import torch
    >>> from bncpu.torch import accumulate
    >>> x, t = torch.randn(96, 3, 8, 8), torch.randint(10, (96,))
    >>> flat = torch.nn.Flatten()
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), flat, torch.nn.Linear(288, 10))
    >>> def loss(y, t):
    ...     return torch.nn.functional.cross_entropy(y, t, reduction="sum") / 96
    >>> whole = accumulate(model, zip(x.split(32), t.split(32)), loss)
    """
    _check(model, loss)
    parts: list[Any] = list(micro_batches)
    if not parts or not all(isinstance(part, (tuple, list)) and len(part) == 2 for part in parts):
        raise ValueError(f"micro_batches must give pairs of inputs and targets, at least one; got {len(parts)} items")
    losses: list[Any] = [None] * len(parts)
    replicas = [_replica(model) for _ in parts]
    of_parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def work(index: int) -> None:
        x, target = parts[index]
        with _in_files(folder, of_parameters):
            value = loss(replicas[index](x), target)
            if not isinstance(value, Tensor):
                raise TypeError(f"loss must give a tensor, got a {type(value).__name__}")
            value.backward()
        losses[index] = value.detach()

    with restored_on_failure(model), _own_gradients(model), _only_in_copies(model):
        _Together(len(parts), _give_back if folder is not None else lambda: None).run(work)
    originals = {id(m): m for m in model.modules()}
    for copy in replicas[0].modules():
        originals[vars(copy)["_original"]]._buffers.update(copy._buffers)  # a forward pass may have replaced one
    total: Tensor = torch.stack(losses).sum()
    return total


def _check(model: Any, loss: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"loss must be a function of outputs and targets, got a {type(loss).__name__}")
    for m in model.modules():
        if isinstance(m, (torch.jit.ScriptModule, DistributedDataParallel, nn.DataParallel)):
            raise TypeError(f"model must not have a {type(m).__name__} in it: pass what that wraps")
        known = (type(m) in OURS or type(m) in THEIRS) and "forward" not in vars(m)
        if isinstance(m, _BatchNorm) and OurBatchNorm._uses_batch(m) and not known:
            raise TypeError(f"model must have batch norms that know of parts of a batch, got a {type(m).__name__}")


def _replica(model: nn.Module) -> nn.Module:
    """The model in other modules, batch norms of our classes, with the same parameters and buffers."""
    copies: dict[int, nn.Module] = {}

    def copied(m: nn.Module) -> nn.Module:
        if id(m) in copies:
            return copies[id(m)]
        compiled = vars(m)["_modules"].get("_orig_mod")
        if compiled is not None:  # what torch.compile made is of the original
            return copied(compiled)
        cls: Any = OURS.get(type(m), type(m))
        cls = cls if issubclass(cls, OurBatchNorm) else type(m)
        copy: nn.Module = cls.__new__(cls)
        copies[id(m)] = copy
        vars(copy).update(vars(m), _compiled_call_impl=None, _original=id(m))
        # The hooks of `_only_in_copies` stay with the original.
        for name in ("_parameters", "_buffers", "_forward_pre_hooks"):
            vars(copy)[name] = vars(m)[name].copy()
        vars(copy)["_modules"] = {n: None if c is None else copied(c) for n, c in vars(m)["_modules"].items()}
        return copy

    return copied(model)


@contextmanager
def _own_gradients(model: nn.Module) -> Iterator[None]:
    """Gradients start at none, and are added to those of before in the end; after an exception these are back."""
    before: list[tuple[Any, Any]] = [(p, p.grad) for p in model.parameters()]
    for p, _ in before:
        p.grad = None
    try:
        yield
    except BaseException:
        for p, old in before:
            p.grad = old
        raise
    for p, old in before:
        if old is not None:
            p.grad = old if p.grad is None else old.add_(p.grad)


@contextmanager
def _only_in_copies(model: nn.Module) -> Iterator[None]:
    """Refuse calls of the model's own batch norms, through a reference that its copies share."""
    norms = {m for m in model.modules() if isinstance(m, _BatchNorm)}

    def refuse(m: Any, _: Any) -> None:
        if m in norms and OurBatchNorm._uses_batch(m):
            raise RuntimeError("model must call its batch norms as submodules; one was called otherwise")

    hooks = [m.register_forward_pre_hook(refuse) for m in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _in_files(folder: Any, of_parameters: set[int]) -> Iterator[None]:
    """Let what the backward pass needs wait in files of a folder; in memory, if that is None."""
    if folder is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="bncpu-", dir=folder) as own:
        n_files = 0

        def pack(t: Tensor) -> Any:
            nonlocal n_files
            n_bytes = t.numel() * t.element_size()
            if n_bytes < LARGE or t.untyped_storage().data_ptr() in of_parameters:
                return t
            n_files += 1
            path = Path(own, str(n_files))
            # Of a view the whole storage would be written.
            torch.save(t.detach() if t.untyped_storage().nbytes() <= n_bytes else t.detach().clone(), path)
            return path

        def unpack(kept: Any) -> Tensor:
            t: Tensor = torch.load(kept, weights_only=True) if isinstance(kept, Path) else kept
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield


def _give_back() -> None:
    """Give the system what was freed: the C library keeps small pieces, for each thread apart."""
    bncpu.release_buffers()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


class _Stopped(Exception):
    """Another part has failed."""


class _Together:
    """Threads that run in turn, from one exchange of numbers to the next.

    Attributes
    ----------
    turns : list of Semaphore
        Part i runs when it has got semaphore i.
    numbers : list of pairs
        For each part what it has given to the current exchange: of which layer, and numbers.
    gathered : ndarray
        The numbers of all parts in the last exchange.
    """

    def __init__(self, n: int, between: Callable[[], Any]) -> None:
        self.n, self.between, self.n_ended = n, between, 0
        self.turns = [threading.Semaphore(0) for _ in range(n)]
        self.numbers: list[Any] = [None] * n
        self.gathered: Any = None
        self.failure: BaseException | None = None
        # Random numbers of each, as if no other drew any in between.
        seeds = torch.empty(n, dtype=torch.int64).random_().tolist()
        self.random = [torch.Generator().manual_seed(seed).get_state() for seed in seeds]

    def run(self, work: Callable[[int], None]) -> None:
        """Run ``work(0)`` to ``work(n - 1)``; raise what the first of them has raised."""
        state, started = torch.default_generator.get_state(), []
        threads = [_thread(self._main, i, work) for i in range(self.n)]
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            self.turns[0].release()
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C, or no more threads
            self._fail(error)
            raise
        finally:
            for thread in started:
                thread.join()
            torch.default_generator.set_state(state)
        if self.failure is not None:
            raise self.failure

    def _main(self, index: int, work: Callable[[int], None]) -> None:
        try:
            self._wait(index)
            PART.set(lambda layer: _Exchange(self, index, layer))
            work(index)
            self.n_ended += 1
            self._next(index)
        except BaseException as error:
            self._fail(error)

    def exchange(self, index: int, of: Any, numbers: Any) -> Any:
        """Numbers of shape (k, C) of every part, of shape (k, parts, C)."""
        self.numbers[index] = of, numbers
        self._next(index)
        self._wait(index)
        return self.gathered.copy()  # those who merge overwrite it

    def _next(self, index: int) -> None:
        """The turn of the next one."""
        if index == self.n - 1 and self.n_ended != self.n:
            if self.n_ended or any(of != self.numbers[0][0] for of, _ in self.numbers):
                raise RuntimeError("micro_batches must all go through the same batch norms in the same order")
            self.gathered = np.stack([numbers for _, numbers in self.numbers], axis=1)
        self.between()
        self.random[index] = torch.default_generator.get_state()
        self.turns[(index + 1) % self.n].release()

    def _wait(self, index: int) -> None:
        self.turns[index].acquire()
        if self.failure is not None:
            raise _Stopped
        torch.default_generator.set_state(self.random[index])

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        for turn in self.turns:
            turn.release()


def _thread(main: Callable[..., None], *given: Any) -> threading.Thread:
    """A thread that starts as this one is: with its context, autocast and default device."""
    context, device = contextvars.copy_context(), torch.get_default_device()
    low, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    is_set = torch._C._len_torch_function_stack() > 0

    def run() -> None:
        with ExitStack() as stack:
            if low:
                stack.enter_context(torch.autocast("cpu", dtype=dtype))
            if is_set:
                stack.enter_context(device)
            context.run(main, *given)

    return threading.Thread(target=run, name=f"part {given[0]}", daemon=True)


class _Exchange:
    """What exchanges the statistics of a layer, of one part with the others; forward first, then backward."""

    def __init__(self, parts: _Together, index: int, layer: Any) -> None:
        self.parts, self.index = parts, index
        self.of = vars(layer)["_original"]
        self.keeps_running_statistics = index == 0

    def __call__(self, numbers: Any) -> Any:
        return self.parts.exchange(self.index, (self.of, len(numbers)), numbers)
