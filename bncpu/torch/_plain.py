"""What our kernels can be given: plain tensors in CPU memory, while nothing watches or changes PyTorch's operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode
from torch.utils._device import DeviceContext


def odd(t: Any) -> str | None:
    """Why the memory of a tensor cannot be read as an array of numbers, or None."""
    if type(t) is not Tensor and type(t) is not nn.Parameter:
        return f"a {type(t).__name__}"
    if t.dtype not in (torch.float32, torch.float64):
        return f"of {t.dtype}"
    if t.device.type != "cpu" or t.layout is not torch.strided or t.is_nested or t.is_mkldnn:
        return f"{t.layout} on {t.device}"
    if t.is_neg() or t._is_zerotensor() or torch._C._functorch.is_legacy_batchedtensor(t):
        return "a view that computes its values"
    if t.is_inference() and torch.is_grad_enabled():
        return "of inference mode"
    return None


def odd_parameter(t: Any, like: Tensor, shape: tuple[int, ...]) -> str | None:
    """Why a parameter cannot be used with such data; None if nothing is against it, or there is no parameter."""
    if t is None:
        return None
    why = odd(t)
    if why is None and (t.dtype != like.dtype or tuple(t.shape) != shape):
        why = f"of {t.dtype} and shape {tuple(t.shape)}"
    return why


def odd_statistics(mean: Any, var: Any, like: Tensor, shape: tuple[int, ...]) -> str | None:
    """The same of running statistics, which may be written."""
    if (mean is None) != (var is None):
        return "only one of them"
    for t in (mean, var):
        why = odd_parameter(t, like, shape)
        if why is None and t is not None and (t.requires_grad or not t.is_contiguous()):
            why = "not to be written"
        if why is not None:
            return why
    return None


def what_runs(*, but_autocast: bool = False) -> str | None:
    """What of PyTorch watches each of its operations now, or changes it."""
    if torch.is_autocast_enabled("cpu") and not but_autocast:
        return "of autocast"
    if torch.jit.is_tracing():
        return "it is traced"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "of torch.func"
    if torch._C._len_torch_dispatch_stack():
        return "of a dispatch mode"
    n_modes = torch._C._len_torch_function_stack()
    if n_modes > 1 or (n_modes and type(_get_current_function_mode()) is not DeviceContext):
        return "of a function mode"
    return None
