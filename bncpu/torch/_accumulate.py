"""Batches too large for memory: their parts go through the network together, each in its thread, one at a time."""

from __future__ import annotations

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

import bncpu
from bncpu.torch._layers import OURS, PART, THEIRS, OurBatchNorm

# Tensors of so many bytes wait in files.
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
        what the parts have between two layers. By default they stay in memory.

    Returns
    -------
    torch.Tensor
        The loss of the whole batch. Gradients have been added to those of the parameters, and running statistics have
        moved once.

    Raises
    ------
    TypeError
        If the model has a batch norm of another class than PyTorch's own or ours, or one over processes.
    RuntimeError
        If parts go through different layers. Gradients and running statistics are as before then, as they are after
        any exception of `loss` or of the model.

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
    parts = list(micro_batches)
    if not parts:
        raise ValueError("micro_batches must give at least one pair of inputs and targets, got none")
    losses: list[Any] = [None] * len(parts)

    def work(index: int) -> None:
        x, target = parts[index]
        with _in_files(folder):
            value = loss(model(x), target)
            value.backward()
        losses[index] = value.detach()

    with ExitStack() as undone, _with_our_norms(model) as norms:
        for m in norms:
            undone.callback(_restore, [(b, b.clone()) for b in m.buffers(recurse=False)])
        before = [(p, p.grad) for p in model.parameters()]
        undone.callback(_put_back, before)
        for p, _ in before:
            p.grad = None
        _Together(len(parts), _given_back if folder is not None else int).run(work)
        undone.pop_all()
        for p, old in before:
            p.grad = old if p.grad is None else p.grad if old is None else old.add_(p.grad)
    total: Tensor = torch.stack(losses).sum()
    return total


def _restore(old: list[tuple[Tensor, Tensor]]) -> None:
    for b, value in old:
        b.copy_(value)


def _put_back(before: list[tuple[Any, Any]]) -> None:
    for p, grad in before:
        p.grad = grad


@contextmanager
def _with_our_norms(model: nn.Module) -> Iterator[list[Any]]:
    """Let all batch norms in training be ours, which can exchange statistics."""
    theirs = [m for m in model.modules() if issubclass(OURS.get(type(m), nn.Module), OurBatchNorm)]
    for m in theirs:
        m.__class__ = OURS[type(m)]
    try:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        for m in norms:
            if not isinstance(m, OurBatchNorm) or isinstance(m, nn.SyncBatchNorm):
                raise TypeError(f"model must have batch norms that know of parts of a batch, got a {type(m).__name__}")
        yield norms
    finally:
        for m in theirs:
            m.__class__ = THEIRS[type(m)]


@contextmanager
def _in_files(folder: Any) -> Iterator[None]:
    """Let what the backward pass needs wait in files of a folder; in memory, if that is None."""
    if folder is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="bncpu-", dir=folder) as own:
        n_files = 0

        def pack(t: Tensor) -> Any:
            nonlocal n_files
            if isinstance(t, nn.Parameter) or t.numel() * t.element_size() < LARGE:
                return t
            n_files += 1
            path = Path(own, str(n_files))
            torch.save(t.detach(), path)
            return path

        def unpack(kept: Any) -> Tensor:
            t: Tensor = torch.load(kept, weights_only=True) if isinstance(kept, Path) else kept
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield


def _given_back() -> None:
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
    n : int
        How many.
    turn : int
        Which one runs.
    numbers : list of pairs
        What each has given to the exchange that they are at: of which layer, and numbers.
    together : ndarray
        What all have given to the last one.
    """

    def __init__(self, n: int, between: Callable[[], Any]) -> None:
        self.between = between
        self.n, self.turn, self.n_ended = n, 0, 0
        self.numbers: list[Any] = [None] * n
        self.together: Any = None
        self.changed = threading.Condition()
        self.failure: BaseException | None = None

    def run(self, work: Callable[[int], None]) -> None:
        """Run ``work(0)`` to ``work(n - 1)``; raise what the first of them has raised."""

        def main(index: int) -> None:
            try:
                self._wait(index)
                PART.set(lambda layer: _Exchange(self, index, layer))
                work(index)
                self.n_ended += 1
                self._next(index)
            except BaseException as error:
                with self.changed:
                    self.failure = self.failure or error
                    self.changed.notify_all()

        threads = [threading.Thread(target=main, args=(i,), name=f"part {i}") for i in range(self.n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def exchange(self, index: int, layer: Any, numbers: Any) -> Any:
        """Numbers of shape (k, C) of every part, of shape (k, parts, C)."""
        self.numbers[index] = (layer, len(numbers)), numbers
        self._next(index)
        self._wait(index)
        return self.together.copy()  # those who merge overwrite it

    def _next(self, index: int) -> None:
        """The turn of the next one."""
        with self.changed:
            if index == self.n - 1 and self.n_ended != self.n:
                if self.n_ended or any(of != self.numbers[0][0] for of, _ in self.numbers):
                    raise RuntimeError("micro_batches must all go through the same batch norms in the same order")
                self.together = np.stack([numbers for _, numbers in self.numbers], axis=1)
            self.between()
            self.turn = (index + 1) % self.n
            self.changed.notify_all()

    def _wait(self, index: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == index or self.failure is not None)
            if self.failure is not None:
                raise _Stopped


class _Exchange:
    """What exchanges the statistics of a layer, of one part with the others."""

    def __init__(self, together: _Together, index: int, layer: Any) -> None:
        self.together, self.index, self.layer = together, index, layer
        self.keeps_running_statistics = index == 0

    def __call__(self, numbers: Any) -> Any:
        return self.together.exchange(self.index, self.layer, numbers)
