"""A normalization as a node of PyTorch's graph: our kernels forward and backward, PyTorch for gradients of gradients.

A norm knows how to compute itself by our kernels and by PyTorch. `normalize` makes a node of it, which keeps x, gamma
and beta. ReLU, if it follows, is part of the node and is computed again from x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import bncpu
from bncpu import _kernels
from bncpu._passes import Pass
from bncpu.moments import BackwardSums, fold_saved, merge_blocks, move, saved_statistics, variance
from bncpu.saved import SavedStatistics
from bncpu.torch._plain import odd, what_runs

# Given numbers of a part of a batch, of shape (k, C), returns those of all parts, of shape (k, parts, C).
Gather = Callable[[Any], Any]


def array(t: Tensor | None) -> Any:
    """The memory of a tensor as a NumPy array; None stays None."""
    return None if t is None else t.detach().numpy()


@dataclass
class Running:
    """Running statistics of a layer, which move towards those of each batch, in place.

    Attributes
    ----------
    mean, var : Tensor of shape (C,)
    momentum : float
        PyTorch's: the weight of the new value.
    """

    mean: Tensor
    var: Tensor
    momentum: float


@dataclass
class Norm:
    """What all norms have.

    Attributes
    ----------
    eps : float
    activation : {None, "relu"}
    """

    eps: float
    activation: str | None

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of all our functions; by default these use idle processors only, and PyTorch's threads spin."""
        return {"activation": self.activation, "n_threads": torch.get_num_threads()}

    def forward(self, x: Any, gamma: Any, beta: Any) -> tuple[Any, SavedStatistics]:
        """The result, and what `backward` needs."""
        raise NotImplementedError

    def backward(self, dy: Any, x: Any, saved: SavedStatistics, gamma: Any, beta: Any) -> tuple[Any, ...]:
        """Gradients of x, gamma and beta."""
        raise NotImplementedError

    def by_torch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The result by PyTorch, without the activation, of which gradients of gradients can be asked."""
        raise NotImplementedError


@dataclass
class Batch(Norm):
    """Batch normalization with the statistics of the batch; `running` moves towards them.

    Attributes
    ----------
    running : Running or None
    gather : callable or None
        Exchanges numbers with the other parts, where x is a part of a batch.
    """

    running: Running | None
    gather: Gather | None = None

    def forward(self, x: Any, gamma: Any, beta: Any) -> tuple[Any, SavedStatistics]:
        """As above."""
        y, saved, var = self._short(x, gamma, beta) or self._long(x, gamma, beta)
        if self.running is not None:
            kept, weight = (self.running.mean.numpy(), self.running.var.numpy()), 1 - self.running.momentum
            # Their version stays, as in PyTorch's batch norm: a call of PyTorch's that saved them may yet go backward.
            move(*kept, saved.mean, var, weight)
        return y, saved

    def _short(self, x: Any, gamma: Any, beta: Any) -> Any:
        """Result, statistics and unbiased variance in the fastest way, or None."""
        if self.gather is not None:
            return None
        x, last = _in_c_order(x)
        relu = self.activation is not None
        found = _kernels.forward_plain(x, last, gamma, beta, self.eps, None, None, relu, self.how["n_threads"])
        if found is None:
            return None
        y, mean, invstd, mean_lo, m2, n = found
        return _channels_second(y, last), SavedStatistics(mean, invstd, mean_lo, n), m2 / (n - 1)

    def _long(self, x: Any, gamma: Any, beta: Any) -> Any:
        """The same for all arrays, and of a part."""
        scale, shift = (None if a is None else a.astype(np.float64) for a in (gamma, beta))
        arrays = Pass(x, ((1,),), relu=self.activation is not None, n_threads=self.how["n_threads"])
        if self.gather is None:
            moments, saved = arrays.whole.forward(scale, shift, self.eps)
        else:
            moments = merge_blocks(self.gather(np.stack(arrays.whole.moments())))
            if moments.count.max() <= 1:
                raise ValueError("Expected more than 1 value per channel when training, got 1 in the whole batch")
            saved = saved_statistics(moments, self.eps)
            arrays.whole.apply(fold_saved(saved, scale, shift))
        return arrays.result(), saved._replace(count=moments.count), variance(moments, ddof=1)

    def backward(self, dy: Any, x: Any, saved: SavedStatistics, gamma: Any, beta: Any) -> tuple[Any, ...]:
        """As above; gradients of the parameters are those of this part of the batch."""
        beta = beta if self.activation else None  # without ReLU it has no effect, and is not in the short way
        if self.gather is None:
            x, last = _in_c_order(x)
            dy, axis = _channels_last(dy) if last else dy, -1 if last else 1
            found = bncpu.batch_norm_backward(dy, x, saved, gamma, beta=beta, channel_axis=axis, **self.how)
            return _channels_second(found[0], last), *found[1:]
        part = bncpu.batch_norm_backward_sums(dy, x, saved, gamma, beta=beta, **self.how)
        whole = BackwardSums(*self.gather(np.stack(part)).sum(axis=1))
        dx, *_ = bncpu.batch_norm_backward(dy, x, saved, gamma, beta=beta, sums=whole, **self.how)
        return dx, part.dgamma, part.dbeta

    def by_torch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """As above."""
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)


@dataclass
class Frozen(Norm):
    """Batch normalization with given statistics.

    Attributes
    ----------
    mean, var : Tensor of shape (C,)
        Copies, as training may go on before the backward pass.
    """

    mean: Tensor
    var: Tensor

    def forward(self, x: Any, gamma: Any, beta: Any) -> tuple[Any, SavedStatistics]:
        """As above."""
        x, last = _in_c_order(x)
        mean, var, axis = array(self.mean), array(self.var), -1 if last else 1
        y = bncpu.batch_norm(x, mean, var, gamma, beta, eps=self.eps, channel_axis=axis, **self.how)
        return _channels_second(y, last), SavedStatistics.from_variance(mean, var, eps=self.eps)

    def backward(self, dy: Any, x: Any, saved: SavedStatistics, gamma: Any, beta: Any) -> tuple[Any, ...]:
        """As above."""
        return bncpu.batch_norm_backward_frozen(dy, x, saved, gamma, beta=beta, **self.how)

    def by_torch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """As above."""
        return F.batch_norm(x, self.mean, self.var, weight, bias, False, 0.0, self.eps)


@dataclass
class Instance(Norm):
    """Instance normalization; `running` moves towards the mean of the samples' statistics.

    Attributes
    ----------
    running : Running or None
    """

    running: Running | None

    def forward(self, x: Any, gamma: Any, beta: Any) -> tuple[Any, SavedStatistics]:
        """As above."""
        kept: dict[str, Any] = {}
        if self.running is not None:
            kept |= {"running_mean": self.running.mean.numpy(), "running_var": self.running.var.numpy()}
            kept |= {"momentum": 1 - self.running.momentum, "ddof": 1}
        y, saved = bncpu.instance_norm_forward(x, gamma, beta, eps=self.eps, **kept, **self.how)
        if self.running is not None:
            torch.autograd.graph.increment_version((self.running.mean, self.running.var))  # as PyTorch's does
        return np.ascontiguousarray(y), saved  # as PyTorch's, whatever the strides of x

    def backward(self, dy: Any, x: Any, saved: SavedStatistics, gamma: Any, beta: Any) -> tuple[Any, ...]:
        """As above."""
        return bncpu.instance_norm_backward(dy, x, saved, gamma, beta=beta, **self.how)

    def by_torch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """As above."""
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, self.eps)


@dataclass
class Group(Norm):
    """Group normalization.

    Attributes
    ----------
    n_groups : int
    """

    n_groups: int

    def forward(self, x: Any, gamma: Any, beta: Any) -> tuple[Any, SavedStatistics]:
        """As above."""
        return bncpu.group_norm_forward(x, self.n_groups, gamma, beta, eps=self.eps, **self.how)

    def backward(self, dy: Any, x: Any, saved: SavedStatistics, gamma: Any, beta: Any) -> tuple[Any, ...]:
        """As above."""
        return bncpu.group_norm_backward(dy, x, saved, gamma, beta=beta, **self.how)

    def by_torch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """As above."""
        return F.group_norm(x, self.n_groups, weight, bias, self.eps)


@dataclass
class Layer(Norm):
    """Layer normalization.

    Attributes
    ----------
    normalized_shape : tuple of int
    """

    normalized_shape: tuple[int, ...]

    def forward(self, x: Any, gamma: Any, beta: Any) -> tuple[Any, SavedStatistics]:
        """As above."""
        return bncpu.layer_norm_forward(x, self.normalized_shape, gamma, beta, eps=self.eps, **self.how)

    def backward(self, dy: Any, x: Any, saved: SavedStatistics, gamma: Any, beta: Any) -> tuple[Any, ...]:
        """As above."""
        return bncpu.layer_norm_backward(dy, x, saved, gamma, beta=beta, **self.how)

    def by_torch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """As above."""
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def _in_c_order(x: Any) -> tuple[Any, bool]:
    """An array of channels_last memory with its channels last, and whether it is one; others as they are."""
    last = not x.flags.c_contiguous
    return (_channels_last(x) if last else x), last


def _channels_last(x: Any) -> Any:
    return x.transpose(0, *range(2, x.ndim), 1)


def _channels_second(y: Any, last: bool) -> Any:
    """What was computed in the order of `_in_c_order` with the channels on axis 1."""
    return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1)) if last else y


def normalize(norm: Norm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The result of a norm, with a node of the graph if a gradient may be asked for."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Node.apply(norm, x, weight, bias)
    y, _ = norm.forward(array(x), array(weight), array(bias))
    return torch.from_numpy(y)


class _Node(torch.autograd.Function):
    """One normalization, and the ReLU that follows."""

    @staticmethod
    def forward(ctx: Any, norm: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y, ctx.saved = norm.forward(array(x), array(weight), array(bias))
        ctx.norm, ctx.bias = norm, None if bias is None else bias.detach().clone()  # which may change, as with PyTorch
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        given, wanted = (*ctx.saved_tensors, ctx.bias), ctx.needs_input_grad[1:]
        in_parts = getattr(ctx.norm, "gather", None) is not None
        if dy is None and not in_parts:
            return None, None, None, None
        dy = torch.zeros_like(given[0]) if dy is None else dy  # the other parts wait for its sums
        # create_graph=True, for example
        if torch.is_grad_enabled() or odd(dy) or odd(given[0]) or what_runs(but_autocast=True):
            if in_parts:
                raise NotImplementedError("gradients of gradients through the statistics of a batch in parts")
            return None, *_by_torch(ctx.norm, dy, given, wanted)
        found = ctx.norm.backward(array(dy), array(given[0]), ctx.saved, *map(array, given[1:]))
        return None, *(
            torch.from_numpy(a).to(t.dtype) if asked else None for a, t, asked in zip(found, given, wanted, strict=True)
        )


def _by_torch(norm: Any, dy: Tensor, given: Any, wanted: Any) -> list[Tensor | None]:
    """Gradients that have gradients: those of the same operation of PyTorch."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [_view(t) if w else t for t, w in zip(given, wanted, strict=True)]
        y = norm.by_torch(*own)
        y = y if norm.activation is None else torch.relu(y)
        asked = [t for t, w in zip(own, wanted, strict=True) if w]
        found = iter(torch.autograd.grad(y, asked, dy, create_graph=create))
    return [next(found) if w else None for w in wanted]


def _view(t: Tensor) -> Tensor:
    """A view to differentiate by: autograd stops there, and does not go on into what `t` was computed from."""
    view = t.view_as(t)
    return view if view.requires_grad else view.requires_grad_()
