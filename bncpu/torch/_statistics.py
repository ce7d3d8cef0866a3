"""The statistics of a whole data set, or of the batches of all processes: merged, where PyTorch averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bncpu
from bncpu.moments import Moments, merge_blocks, variance
from bncpu.torch._layers import OurBatchNorm
from bncpu.torch._nodes import Gather


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    device: torch.device | int | str | None = None,
    *,
    layer_by_layer: bool = False,
) -> None:
    """Compute the running statistics of all batch norms of a model from a data set.

    What ``torch.optim.swa_utils.update_bn`` is for, after weights were averaged for example. That averages the
    variances of the batches, which leaves out how much their means differ: of 5,000 sorted normal rows in batches of 4
    it finds a variance of 0.0001 where 1 is right. This merges moments [1]_: the batches' sizes and order do not
    matter.

    Parameters
    ----------
    loader : iterable of batches
        Each a tensor, or a list or tuple whose first item is what the model is given.
    model : torch.nn.Module
        Converted or not. Afterwards every module is in the mode it was in.
    device : torch.device, int or str, optional
        Where to move what the model is given.
    layer_by_layer : bool, default=False
        By default the data is read once, with the model in training: behind the first batch norm each sees what those
        before it made of a batch with the statistics of that batch. If true, the data is read once for each batch norm,
        and once before, with the model in evaluation, and all batch norms before it have their statistics already:
        these are exactly the statistics of what it will see, whatever the batches. With n batch norms this takes about
        as long as n / 2 + 1 forward passes over the data.

    Raises
    ------
    TypeError
        If `loader` can be read only once, with `layer_by_layer`.
    ValueError
        If it gives no batch, or only one value for a channel; with one pass, also if a single batch has only one value
        for a channel. Every buffer is as before then, as it is after any other exception.

    Notes
    -----
    ``running_mean`` is the mean of all values, ``running_var`` their unbiased variance, and ``num_batches_tracked`` how
    often the batch norm was called; `momentum` is not used. Batch norms that were not called, or keep no running
    statistics, stay as they are. A `SyncBatchNorm` gets those of all processes, which may have different numbers of
    batches. If a batch norm is called twice for one input, with `layer_by_layer` its second call sees what the first
    made with the old statistics.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1,
       The American Statistician 37(3), 242-247.

    Examples
    --------
    >>> import torch
    >>> from bncpu.torch import update_bn
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    >>> update_bn(torch.arange(100.0).reshape(25, 4, 1), model)
    >>> model[0].running_mean, model[0].running_var
    (tensor([49.5000]), tensor([841.6667]))
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    if layer_by_layer and iter(loader) is loader:
        raise TypeError("loader must be iterable again and again with layer_by_layer=True; got an iterator")
    modes = [(m, m.training) for m in model.modules()]
    collect = _layer_by_layer if layer_by_layer else _in_one_pass
    try:
        with torch.no_grad(), restored_on_failure(model):
            collect(partial(_inputs, loader, device), model, norms)
    finally:
        for m, mode in modes:
            m.training = mode


@contextmanager
def restored_on_failure(model: nn.Module) -> Iterator[None]:
    """After an exception, all buffers of a model are as before."""
    before = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for m, name, b, value in before:
                b.copy_(value)
                m._buffers[name] = b  # which a forward pass may have replaced
        raise


def _inputs(loader: Iterable[Any], device: Any) -> Iterator[Any]:
    """What the model is given of each batch."""
    for batch in loader:
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        yield x if device is None else x.to(device)


class _Seen:
    """Moments of all that a layer is given, and how often."""

    def __init__(self) -> None:
        self.parts: list[Moments] = []
        self.n_calls = 0

    def see(self, x: Tensor) -> None:
        """Learn from the input of a call."""
        x = x.detach().cpu().resolve_neg()
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        self.n_calls += 1
        if x.numel():
            self.parts.append(bncpu.batch_norm_moments(x.numpy()))
            if len(self.parts) == 64:
                self.parts = [bncpu.merge(*self.parts)]

    def give(self, layer: Any) -> None:
        """Make them, and those of other processes, the running statistics of the layer."""
        moments = bncpu.merge(Moments.empty(layer.num_features), *self.parts)
        group = _group_of(layer)
        if group is not None:
            moments = merge_blocks(gathered(np.stack(moments), group))
        if not moments.count.any():
            return
        if moments.count.min() < 2:
            raise ValueError("loader must give at least 2 values per channel, got 1")
        layer.running_mean.copy_(torch.from_numpy(moments.mean))
        layer.running_var.copy_(torch.from_numpy(variance(moments, ddof=1)))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(self.n_calls)


def _in_one_pass(inputs: Any, model: nn.Module, norms: list[Any]) -> None:
    """Statistics of all layers, each behind layers that normalize with those of the batch."""
    model.train()
    seen = {m: _Seen() for m in norms}
    alone = ALONE.set(True)
    try:
        _run(inputs(), model, seen, norms)
    finally:
        ALONE.reset(alone)
    for m, found in seen.items():
        found.give(m)


def _layer_by_layer(inputs: Any, model: nn.Module, norms: list[Any]) -> None:
    """Statistics of one layer after the other, behind layers that have theirs already."""
    model.eval()
    calls = _run(inputs(), model, dict.fromkeys(norms), norms)
    is_regular = all(some == calls[0] for some in calls)
    for m in dict.fromkeys(layer for some in calls for layer in some):  # by their first calls
        found = _Seen()
        _run(inputs(), model, {m: found}, norms, until=calls[0].count(m) if is_regular else 0)
        found.give(m)


class _Enough(Exception):
    """The layer has seen its input: the rest of the network need not be computed."""


def _run(inputs: Any, model: nn.Module, seen: dict[Any, Any], norms: list[Any], until: int = 0) -> list[list[Any]]:
    """Run the model on all inputs, and let layers see theirs; for each input the layers in the order of their calls.

    With `until` a run ends after so many calls. A failure is one in all processes whose statistics are merged.
    """
    calls: list[list[Any]] = []

    def look(layer: Any, args: Any, kwargs: Any) -> None:
        if seen[layer] is not None:
            seen[layer].see(args[0] if args else kwargs["input"])
        calls[-1].append(layer)
        if len(calls[-1]) == until:
            raise _Enough

    hooks = [m.register_forward_pre_hook(look, with_kwargs=True) for m in seen]
    failure: BaseException | None = None
    try:
        for x in inputs:
            calls.append([])
            with suppress(_Enough):
                model(x)
        if not calls:
            raise ValueError("loader must give at least one batch each time that it is read, got none")
    except BaseException as error:
        failure = error
    finally:
        for hook in hooks:
            hook.remove()
    group = next((g for g in map(_group_of, norms) if g is not None), None)
    others = None if group is None else gathered(np.array([[failure is not None]], dtype=float), group)
    if failure is not None:
        raise failure
    if others is not None and others.any():
        raise RuntimeError("update_bn failed in another process")
    return calls


# ---- processes ----

# Whether processes do not exchange the statistics of batches: they may have different numbers of them.
ALONE: ContextVar[bool] = ContextVar("ALONE", default=False)


def gathered(numbers: Any, group: Any) -> Any:
    """Numbers of each process, of shape (k, C), as an array of shape (k, processes, C), the same in all processes."""
    own = torch.from_numpy(np.ascontiguousarray(numbers))
    all_ = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(all_, own, group=group)
    return np.stack([a.numpy() for a in all_], axis=1)


def _group_of(layer: Any) -> Any:
    """The processes whose batches are one batch for a layer; None if it is this one alone."""
    over_processes = isinstance(layer, (SyncBatchNorm, nn.SyncBatchNorm))
    if not (over_processes and distributed.is_available() and distributed.is_initialized()):
        return None
    group = layer.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


class SyncBatchNorm(OurBatchNorm, _BatchNorm):
    """Batch normalization over the batches of all processes, on the CPU, which ``torch.nn.SyncBatchNorm`` refuses.

    In training processes exchange the moments of their batches, merge them [1]_, and backward exchange two sums a
    channel: two processes give what one gives with the whole batch, of whatever sizes their shares are. Gradients of
    weight and bias are those of the own share; ``DistributedDataParallel`` averages them. Without
    ``torch.distributed``, in one process and in evaluation it is batch normalization.

    Parameters
    ----------
    num_features : int
        Number of channels.
    eps, momentum, affine, track_running_stats, device, dtype
        As of ``torch.nn.SyncBatchNorm``.
    process_group : torch.distributed.ProcessGroup, optional
        The processes; by default all.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1,
       The American Statistician 37(3), 242-247.

    Examples
    --------
    >>> import torch
    >>> from bncpu.torch import SyncBatchNorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64))
    >>> model = SyncBatchNorm.convert_sync_batchnorm(model)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {x.dim()}D input)")

    def _gather(self, x: Tensor) -> Gather | None:
        """As above."""
        group = _group_of(self) if self.training and not ALONE.get() else None
        if group is None:
            return super()._gather(x)
        if x.device.type != "cpu":
            raise ValueError(f"SyncBatchNorm of bncpu.torch is for the CPU, got x on {x.device}")
        return partial(gathered, group=group)

    @classmethod
    def convert_sync_batchnorm(cls, module: Any, process_group: Any = None) -> Any:
        """Make every batch norm of a model one of these, in place.

        Parameters
        ----------
        module : torch.nn.Module
        process_group : torch.distributed.ProcessGroup, optional
            The processes; by default all.

        Returns
        -------
        torch.nn.Module
            `module` itself.
        """
        for m in module.modules():
            if isinstance(m, _BatchNorm):
                m.__class__ = cls
                m.process_group = process_group
        return module
