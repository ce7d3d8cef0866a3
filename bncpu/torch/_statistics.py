"""The statistics of a whole data set, or of the batches of all processes: merged, where PyTorch averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
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
    variances of the batches, which leaves out how much their means differ: of sorted rows in batches of 4 it finds a
    variance of 0.0002 where 0.996 is right. This merges moments [1]_: batches may be of any size, in any order.

    Parameters
    ----------
    loader : iterable of batches
        Each a tensor, or a list or tuple whose first item is what the model is given.
    model : torch.nn.Module
        Converted or not. Afterwards every module is in the mode it was in.
    device : torch.device, int or str, optional
        Where to move what the model is given.
    layer_by_layer : bool, default=False
        By default the data is read once, with the model in training: behind the first batch norm each layer sees what
        those before it made of a batch with the statistics of that batch. If true, it is read once for each layer, with
        the model in evaluation, and all layers before have their statistics already: these are exactly the statistics
        of what the layer will see, whatever the batches. All this together takes as long as half as many epochs,
        without gradients, as there are batch norms.

    Raises
    ------
    TypeError
        If `loader` can be read only once, with `layer_by_layer`.
    ValueError
        If it gives no batch, or a channel a single value. Every buffer is as before then, as it is after any other
        exception.

    Notes
    -----
    ``running_mean`` is the mean of all values, ``running_var`` their unbiased variance, and ``num_batches_tracked`` how
    often the layer was called; `momentum` is not used. Layers that were not called, or keep no running statistics, stay
    as they are. A `SyncBatchNorm` gets those of all processes, which may have different numbers of batches.

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
    before = [[b.clone() for b in m.buffers(recurse=False)] for m in norms]
    modes = [(m, m.training) for m in model.modules()]
    collect = _layer_by_layer if layer_by_layer else _in_one_pass
    try:
        with torch.no_grad():
            collect(partial(_inputs, loader, device), model, norms)
    except BaseException:
        for m, old in zip(norms, before, strict=True):
            for b, value in zip(m.buffers(recurse=False), old, strict=True):
                b.copy_(value)
        raise
    finally:
        for m, mode in modes:
            m.training = mode


def _inputs(loader: Iterable[Any], device: Any) -> Iterator[Any]:
    """What the model is given of each batch."""
    for batch in loader:
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        yield x if device is None else x.to(device)


class _Seen:
    """Moments of all that a layer is given, and how often."""

    def __init__(self) -> None:
        self.parts: list[Moments] = []

    def __call__(self, layer: Any, args: Any, kwargs: Any) -> None:
        x = (args[0] if args else kwargs["input"]).detach().cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if x.numel():
            self.parts.append(bncpu.batch_norm_moments(x.numpy()))
            if len(self.parts) % 64 == 0:
                self.parts[-64:] = [bncpu.merge(*self.parts[-64:])]

    def give(self, layer: Any, n_calls: int) -> None:
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
            layer.num_batches_tracked.fill_(n_calls)


def _in_one_pass(inputs: Any, model: nn.Module, norms: list[Any]) -> None:
    """Statistics of all layers, each behind layers that normalize with those of the batch."""
    model.train()
    seen = {m: _Seen() for m in norms}
    alone = ALONE.set(True)
    try:
        calls = _calls(inputs(), model, seen)
    finally:
        ALONE.reset(alone)
    if not calls:
        raise ValueError("loader must give at least one batch, got none")
    for m, found in seen.items():
        found.give(m, calls.count(m))


def _layer_by_layer(inputs: Any, model: nn.Module, norms: list[Any]) -> None:
    """Statistics of one layer after the other, behind layers that have theirs already."""
    model.eval()
    order = _calls(inputs(), model, {m: _Seen() for m in norms}, at_most=1)
    if not order:
        raise ValueError("loader must give at least one batch, got none")
    for m in dict.fromkeys(order):  # by their first calls
        found = _Seen()
        found.give(m, len(_calls(inputs(), model, {m: found}, until=order.count(m))))


class _Enough(Exception):
    """The layer has seen its input: the rest of the network need not be computed."""


def _calls(inputs: Any, model: nn.Module, seen: dict[Any, _Seen], at_most: int = -1, until: int = 0) -> list[Any]:
    """Run the model on all inputs, and let layers see theirs; the layers in the order of their calls.

    At most so many inputs are used. With `until` each run ends after so many calls.
    """
    calls: list[Any] = []

    def look(layer: Any, args: Any, kwargs: Any) -> None:
        seen[layer](layer, args, kwargs)
        calls.append(layer)
        if until and len(calls) % until == 0:
            raise _Enough

    hooks = [m.register_forward_pre_hook(look, with_kwargs=True) for m in seen]
    try:
        for i, x in enumerate(inputs):
            if i == at_most:
                break
            with suppress(_Enough):
                model(x)
    finally:
        for hook in hooks:
            hook.remove()
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
    if not (isinstance(layer, nn.SyncBatchNorm) and distributed.is_available() and distributed.is_initialized()):
        return None
    group = layer.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


class SyncBatchNorm(OurBatchNorm, nn.SyncBatchNorm):
    """Batch normalization over the batches of all processes, on the CPU, which ``torch.nn.SyncBatchNorm`` refuses.

    Takes PyTorch's arguments. In training processes exchange the moments of their batches, merge them [1]_, and
    backward exchange two sums a channel: two processes give what one gives with the whole batch, of whatever sizes
    their shares are. Gradients of weight and bias are those of the own share, which ``DistributedDataParallel`` brings
    together. Without ``torch.distributed``, in one process and in evaluation it is batch normalization.

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

    def _gather(self, x: Tensor) -> Gather | None:
        """As above."""
        group = _group_of(self) if x.device.type == "cpu" and not ALONE.get() else None
        return super()._gather(x) if group is None else partial(gathered, group=group)

    def _by_torch(self, x: Any) -> Any:
        """As above: of the CPU PyTorch's own layer takes nothing, even in one process."""
        return _BatchNorm.forward(self, x) if x.device.type == "cpu" else super()._by_torch(x)

    @classmethod
    def convert_sync_batchnorm(cls, module: Any, process_group: Any = None) -> Any:
        """Make every batch norm of a model one of these, as PyTorch's method of that name does."""
        for m in module.modules():
            if isinstance(m, _BatchNorm):
                m.__class__ = cls
                m.process_group = process_group
        return module
