"""Layers that are PyTorch's, but for how they compute; and which calls PyTorch computes nevertheless."""

import logging
import math
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from bncpu.torch._nodes import Batch, Frozen, Gather, Group, Instance, Layer, Norm, Running, normalize
from bncpu.torch._plain import odd, odd_parameter, odd_statistics, what_runs

log = logging.getLogger("bncpu.torch")

Model = TypeVar("Model", bound=nn.Module)

# The number of values from which our kernels are faster than PyTorch's. Pairs: for contiguous (N, C, H, W), and for
# (N, C) or channels_last. Measured on an AMD EPYC (Zen 4) by `python comparisons/torch_training.py --layers`.
SMALLEST = {
    "batch": (1 << 18, 1 << 20),
    "instance": (1 << 20, 1 << 19),
    "group": (1 << 23, 1 << 23),
    "layer": (1 << 24, 1 << 24),
}
SMALLEST_AT_INFERENCE = {
    "batch": (1 << 22, 1 << 22),
    "instance": (1 << 18, 1 << 18),
    "group": (1 << 24, 1 << 24),
    "layer": (1 << 24, 1 << 24),
}


class Ours(nn.Module):
    """What a layer of ours adds to PyTorch's layer of the same name, before which it stands among the base classes.

    Attributes
    ----------
    _always : bool
        Whether our kernels also compute what PyTorch is faster at: small calls.
    """

    _always = False
    _kind: str  # in SMALLEST

    def forward(self, input, *, activation=None):  # type: ignore[no-untyped-def]  # torch.fx keeps annotations
        """Normalize `input`, then apply the activation."""
        if torch.compiler.is_compiling():
            why: str | None = "it is compiled"
        elif isinstance(input, Proxy) and input.tracer.path_of_module(self):
            # torch.fx: one node of the graph, as PyTorch's own layer is
            return input.tracer.create_proxy("call_module", input.tracer.path_of_module(self), (input,), {})
        else:
            why = self._why_not(input)
            if why is None:
                return normalize(self._norm(activation), input, self.weight, self.bias)
            log.info("%s: PyTorch, because %s", type(self).__name__, why)
        y = self._by_torch(input)
        return torch.relu_(y) if isinstance(activation, str) else y  # torch.fx gives a Proxy for all arguments

    def _by_torch(self, x: Any) -> Any:
        """What PyTorch's layer gives."""
        theirs: Any = super()
        return theirs.forward(x)

    def _norm(self, activation: str | None) -> Norm:
        """What this call computes. Counts the call, where PyTorch's layer does."""
        raise NotImplementedError

    def _why_not(self, x: Any) -> str | None:
        """Why PyTorch has to compute a call, or to refuse it; or None."""
        learns = self.training or torch.is_grad_enabled()
        smallest = (SMALLEST if learns else SMALLEST_AT_INFERENCE)[self._kind]
        if not self._always and type(x) is Tensor and x.numel() < min(smallest):  # asked first: it must cost nothing
            return f"x has {x.numel()} values only"
        why = odd(x)
        if why is not None:
            return f"x is {why}"
        rows = x.ndim == 2 or self._kind == "layer"
        if not x.is_contiguous():
            rows = _is_channels_last(x)
            if not rows or self._kind == "layer":
                return f"x of shape {tuple(x.shape)} has strides {x.stride()}"
        if not self._always and x.numel() < smallest[rows]:
            return f"x has {x.numel()} values only"
        if type(self.eps) is not float or not 0 < self.eps < math.inf:
            return f"eps is {self.eps}"
        if not self._fits(x):
            return f"x has shape {tuple(x.shape)}"
        return self._odd_parameters(x) or what_runs()

    def _parameter_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of weight and bias: a value for each channel."""
        return tuple(x.shape[1:2])

    def _fits(self, x: Tensor) -> bool:
        """Whether the shape is one that our function takes; others are refused by PyTorch, or done in its way."""
        raise NotImplementedError

    def _odd_parameters(self, x: Tensor) -> str | None:
        """Why parameters or statistics are none that our function takes, or None."""
        for name in ("weight", "bias"):
            why = odd_parameter(getattr(self, name), x, self._parameter_shape(x))
            if why is not None:
                return f"{name} is {why}"
        return None


def _is_channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.ndim in formats and x.is_contiguous(memory_format=formats[x.ndim])


class WithStatistics(Ours):
    """A norm that may keep running statistics."""

    def _odd_parameters(self, x: Tensor) -> str | None:
        """As above."""
        mean, var = self.running_mean, self.running_var
        why = odd_statistics(mean, var, x, self._parameter_shape(x))
        if why is not None:
            return f"running_mean or running_var is {why}"
        if self.momentum is not None and (type(self.momentum) is not float or not 0 <= self.momentum <= 1):
            return f"momentum is {self.momentum}"
        if var is not None and not self._uses_batch() and not bool((var >= 0).all()):
            return "running_var is negative"
        return super()._odd_parameters(x)

    def _uses_batch(self) -> bool:
        """Whether it normalizes with statistics of x, not with running ones."""
        raise NotImplementedError

    def _frozen(self, activation: str | None) -> Norm:
        return Frozen(self.eps, activation, self.running_mean.clone(), self.running_var.clone())


# Of a thread of `accumulate`: given a layer, what exchanges its statistics with the other parts of the batch.
PART: ContextVar[Any] = ContextVar("PART", default=None)


class OurBatchNorm(WithStatistics):
    """Batch normalization."""

    _kind = "batch"

    def forward(self, input, *, activation=None):  # type: ignore[no-untyped-def]  # as above
        """As `Ours.forward`, but a part of a batch always by our kernels: PyTorch has none for it."""
        gather = None
        if not torch.compiler.is_compiling() and not isinstance(input, Proxy) and self._uses_batch():
            gather = self._gather(input)
        if gather is None:
            return super().forward(input, activation=activation)
        self._check_input_dim(input)
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"x must have {self.num_features} channels on axis 1, got shape {tuple(input.shape)}")
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input  # of autocast, for example
        why = f"x is {odd(x)}" if odd(x) else self._odd_parameters(x) or what_runs(but_autocast=True)
        if why is not None:
            raise TypeError(f"{type(self).__name__} cannot take its statistics over parts or processes, because {why}")
        x = x if _is_channels_last(x) else x.contiguous()
        running = _counted(self) if getattr(gather, "keeps_running_statistics", True) else None
        y = normalize(Batch(self.eps, activation, running, gather), x, self.weight, self.bias)
        return y.to(input.dtype)

    def _gather(self, x: Tensor) -> Gather | None:
        """What exchanges statistics, if `x` is a part of a batch."""
        part = PART.get()
        return None if part is None else part(self)

    def _norm(self, activation: str | None) -> Norm:
        """As above."""
        return Batch(self.eps, activation, _counted(self)) if self._uses_batch() else self._frozen(activation)

    def _uses_batch(self) -> bool:
        """As above."""
        return self.training or (self.running_mean is None and self.running_var is None)

    def _fits(self, x: Tensor) -> bool:
        """As above."""
        self._check_input_dim(x)
        return x.ndim > 1 and x.shape[1] == self.num_features and x.numel() > x.shape[1]


def _counted(layer: Any) -> Running | None:
    """Count this call of a layer; the running statistics that it has to move, or None."""
    if not (layer.training and layer.track_running_stats):
        return None
    momentum = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        momentum = 1 / float(layer.num_batches_tracked) if momentum is None else momentum
    if layer.running_mean is None or layer.running_var is None:
        return None
    return Running(layer.running_mean, layer.running_var, momentum or 0.0)


class OurInstanceNorm(WithStatistics):
    """Instance normalization."""

    _kind = "instance"

    def _norm(self, activation: str | None) -> Norm:
        """As above."""
        if not self._uses_batch():
            return self._frozen(activation)
        running = None
        if self.running_mean is not None:
            running = Running(self.running_mean, self.running_var, self.momentum)
        return Instance(self.eps, activation, running)

    def _uses_batch(self) -> bool:
        """As above."""
        return self.training or not self.track_running_stats or self.running_mean is None

    def _fits(self, x: Tensor) -> bool:
        """As above."""
        self._check_input_dim(x)
        batched = x.ndim > self._get_no_batch_dim() and x.shape[1] == self.num_features
        # Our function's momentum is 1 minus this one. It warns where that is below 0.5 and looks like PyTorch's.
        kept = self.running_mean is None or (self.momentum is not None and self.momentum <= 0.5)
        return batched and kept and x.numel() > x.shape[0] * x.shape[1] > 0


class BatchNorm1d(OurBatchNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` by our kernels."""


class BatchNorm2d(OurBatchNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` by our kernels."""


class BatchNorm3d(OurBatchNorm, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` by our kernels."""


class InstanceNorm1d(OurInstanceNorm, nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` by our kernels."""


class InstanceNorm2d(OurInstanceNorm, nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` by our kernels."""


class InstanceNorm3d(OurInstanceNorm, nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` by our kernels."""


class GroupNorm(Ours, nn.GroupNorm):
    """``torch.nn.GroupNorm`` by our kernels."""

    _kind = "group"

    def _norm(self, activation: str | None) -> Norm:
        """As above."""
        return Group(self.eps, activation, self.num_groups)

    def _fits(self, x: Tensor) -> bool:
        """As above."""
        return x.ndim > 1 and x.shape[1] == self.num_channels and x.numel() > x.shape[0] * self.num_groups > 0


class LayerNorm(Ours, nn.LayerNorm):
    """``torch.nn.LayerNorm`` by our kernels."""

    _kind = "layer"

    def _norm(self, activation: str | None) -> Norm:
        """As above."""
        return Layer(self.eps, activation, self.normalized_shape)

    def _fits(self, x: Tensor) -> bool:
        """As above."""
        k = len(self.normalized_shape)
        fits = 0 < k <= x.ndim and tuple(x.shape[x.ndim - k :]) == self.normalized_shape
        return fits and x.numel() > 0

    def _parameter_shape(self, x: Tensor) -> tuple[int, ...]:
        """As above: `normalized_shape`."""
        return self.normalized_shape


class Sequential(nn.Sequential):
    """``torch.nn.Sequential`` that computes one of our layers and the ReLU after it in one step."""

    def forward(self, input):  # type: ignore[no-untyped-def]  # as above
        """As PyTorch's."""
        if torch.compiler.is_compiling() or isinstance(input, Proxy):
            return super().forward(input)
        layers, x, done = list(self._modules.values()), input, False
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if done:  # in one step with the layer before
                done = False
                continue
            done = _are_one_step(layer, following)
            x = layer(x, activation="relu") if done else layer(x)
        return x


def _are_one_step(layer: Any, following: Any) -> bool:
    """Whether ReLU follows one of our layers, and nobody looks at what is between."""
    if type(following) is not nn.ReLU or not isinstance(layer, Ours) or type(layer) not in THEIRS:
        return False
    return not (_has_more(layer) or _has_more(following) or nn.modules.module._has_any_global_hook())


def _has_more(layer: Any) -> bool:
    """Whether a layer has hooks, or a forward pass of its own."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
    )


THEIRS = {
    cls: getattr(nn, cls.__name__)
    for cls in (
        *(BatchNorm1d, BatchNorm2d, BatchNorm3d, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d),
        *(GroupNorm, LayerNorm, Sequential),
    )
}
OURS = {theirs: ours for ours, theirs in THEIRS.items()}


def convert(model: Model, *, fuse: bool = True, always: bool = False) -> Model:
    """Let a model's normalization layers compute by our kernels, in place.

    ``BatchNorm1d``, ``2d`` and ``3d``, ``InstanceNorm1d``, ``2d`` and ``3d``, ``GroupNorm`` and ``LayerNorm`` become
    the classes of `bncpu.torch` with these names, which derive from PyTorch's, as ``Sequential`` does: parameters,
    buffers, hooks and ``state_dict`` stay, and results differ by rounding. Formulas are those of `batch_norm_forward`
    and its relatives, for batch normalization [1]_.

    Parameters
    ----------
    model : torch.nn.Module
        Layers of classes derived from PyTorch's stay as they are.
    fuse : bool, default=True
        Compute a layer and the ``ReLU`` right after it in a ``Sequential`` in one step, which saves reading and writing
        the data once more in each direction. Not where a hook looks at one of the two.
    always : bool, default=False
        Use our kernels also where PyTorch's are faster: for small calls, whose statistics are more exact then, too.

    Returns
    -------
    torch.nn.Module
        `model` itself. If it is a normalization layer it has another class now.

    See Also
    --------
    revert : Undo it, before ``torch.jit.script`` for example.

    Notes
    -----
    PyTorch computes what our kernels cannot: on other devices than the CPU and in other types than float32 and float64,
    under autocast, ``torch.compile``, ``torch.jit.trace`` and ``torch.func``, gradients of gradients, and, unless
    `always` is set, what it is faster at. The logger ``bncpu.torch`` names each forward call that PyTorch computes, at
    the level INFO.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from bncpu.torch import BatchNorm2d, convert
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.ReLU())
    >>> model = convert(model)
    >>> type(model[1]) is BatchNorm2d
    True
    """
    for module in model.modules():
        ours: Any = OURS.get(type(module))
        if ours is not None:
            module.__class__ = ours
        if type(module) is Sequential and not fuse:
            module.__class__ = nn.Sequential
        if isinstance(module, Ours):
            module._always = always
    return model


def revert(model: Model) -> Model:
    """Undo `convert`, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        `model` itself, with PyTorch's classes.

    Examples
    --------
    >>> import torch
    >>> from bncpu.torch import convert, revert
    >>> type(revert(convert(torch.nn.BatchNorm2d(64)))) is torch.nn.BatchNorm2d
    True
    """
    for module in model.modules():
        theirs: Any = THEIRS.get(type(module))
        if theirs is not None:
            module.__class__ = theirs
            module.__dict__.pop("_always", None)
    return model
