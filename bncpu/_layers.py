"""Batch norm layers of PyTorch, Keras, Flax and ONNX as arrays, and some of them back; none is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bncpu._scalars import shown
from bncpu.state import State

Float64 = NDArray[np.float64]


class Layer(NamedTuple):
    """The parameters and statistics of a layer, per channel, as used at inference."""

    mean: Float64
    var: Float64
    gamma: Float64 | None
    beta: Float64 | None
    n_batches: int | None = None  # None if the layer does not tell


def from_torch(state_dict: Any, prefix: Any) -> Layer:
    """The layer under `prefix` of a module's state."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}")
    odd = [key for key in state_dict if not isinstance(key, str)]
    if odd:
        raise TypeError(f"state_dict must have names for keys, got {shown(odd[0])}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, got {type(prefix).__name__}")
    missing = [name for name in ("running_mean", "running_var") if state_dict.get(prefix + name) is None]
    if missing:
        found = [key.removesuffix("running_mean") for key in state_dict if key.endswith("running_mean")]
        raise ValueError(f"state_dict has no {shown(prefix + missing[0])}; prefix may be one of {shown(found)}")
    values = {name: _array(name, state_dict.get(prefix + name)) for name in ("weight", "bias", *STATISTICS)}
    tracked = _n_batches(_array("num_batches_tracked", state_dict.get(prefix + "num_batches_tracked")))
    return _checked(Layer(values["running_mean"], values["running_var"], values["weight"], values["bias"], tracked))


def _n_batches(n: Any) -> int | None:
    if n is None:
        return None
    if n.shape not in ((), (1,)) or not 0 <= n.item() < 2**53 or n.item() % 1:
        raise ValueError(f"num_batches_tracked must be a number of batches, got {n.tolist()}")
    return int(n.item())


def of(state: State) -> Layer:
    """The layer that computes what `transform` computes."""
    p = state.parameters
    if p.clip is not None:
        raise ValueError(f"a layer cannot limit its results as clip={p.clip:g} does; use a transformer without it")
    mean, var, divisor = state.derived[:3].copy()
    divisor = divisor if p.with_std else np.ones_like(divisor)
    other = (divisor != np.sqrt(var + p.eps)) & ~np.isnan(var)
    var[other] = np.maximum(divisor[other] ** 2 - p.eps, 0)
    gamma = p.gamma
    if np.any(other):
        gamma = np.ones_like(var) if gamma is None else gamma.copy()
        gamma[other] *= np.sqrt(var[other] + p.eps) / divisor[other]
    mean = mean if p.with_mean else np.where(np.isnan(mean), np.nan, 0.0)
    return Layer(mean, var, gamma, p.beta, state.n_batches + state.n_tracked)


def to_torch(layer: Layer) -> dict[str, NDArray[Any]]:
    """The `state_dict` of a layer."""
    return {
        "weight": np.ones_like(layer.mean) if layer.gamma is None else layer.gamma.copy(),
        "bias": np.zeros_like(layer.mean) if layer.beta is None else layer.beta.copy(),
        "running_mean": layer.mean,
        "running_var": layer.var,
        "num_batches_tracked": np.array(layer.n_batches, np.int64),
    }


STATISTICS = ("running_mean", "running_var")


def from_keras(weights: Any, *, center: bool, scale: bool) -> Layer:
    """The layer with the weights that `get_weights` of Keras returned."""
    for name, value in (("center", center), ("scale", scale)):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {shown(value)}")
    names = [*["gamma"] * int(scale), *["beta"] * int(center), "moving_mean", "moving_variance"]
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != len(names):
        got = f"{len(weights)} of them" if isinstance(weights, Sequence) else type(weights).__name__
        raise ValueError(f"weights must be those of a layer, {', '.join(names)}; got {got}. See center and scale")
    values = {name: _array(name, a) for name, a in zip(names, weights, strict=True)}
    mean, var = values["moving_mean"], values["moving_variance"]
    return _checked(Layer(mean, var, values.get("gamma"), values.get("beta")))


def to_keras(layer: Layer) -> list[NDArray[Any]]:
    """The weights that `set_weights` of Keras takes."""
    state = to_torch(layer)
    return [state[name] for name in ("weight", "bias", *STATISTICS)]


def from_flax(params: Any, batch_stats: Any, prefix: Any) -> Layer:
    """The layer under `prefix`, names joined by "/", of the variables of Flax."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, got {type(prefix).__name__}")
    without = params is None or (isinstance(params, Mapping) and not params)
    affine = {} if without else _module("params", params, prefix)
    statistics = _module("batch_stats", batch_stats, prefix)
    values = {name: _array(name, getattr(a, "value", a)) for name, a in {**affine, **statistics}.items()}
    if not {"mean", "var"} <= values.keys():
        raise ValueError(f"batch_stats must hold mean and var of the layer, got {sorted(statistics)}")
    return _checked(Layer(values["mean"], values["var"], values.get("scale"), values.get("bias")))


def _module(name: str, tree: Any, prefix: str) -> Any:
    """What is under `prefix` in a tree of mappings, which must be the arrays of one layer."""
    if not isinstance(tree, Mapping):
        raise TypeError(f"{name} must be a mapping of names to arrays, got {type(tree).__name__}")
    module: Any = tree
    for key in prefix.split("/") if prefix else ():
        module = module.get(key) if isinstance(module, Mapping) else None
    if not isinstance(module, Mapping) or not module or not FLAX.issuperset(module):
        layers = sorted(_layers_of(tree, ""))
        raise ValueError(f"{name} must hold the arrays of a layer under {prefix!r}; prefix may be one of {layers}")
    return module


FLAX = {"scale", "bias", "mean", "var"}


def _layers_of(tree: Mapping[Any, Any], path: str) -> set[str]:
    """Where in a tree of mappings arrays of batch norm layers are."""
    found = {path} if tree and FLAX.issuperset(tree) else set()
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _layers_of(value, f"{path}/{key}" if path else str(key))
    return found


def from_onnx(scale: Any, B: Any, mean: Any, var: Any) -> Layer:
    """The layer with the inputs of ONNX's operator."""
    given = {"scale": scale, "B": B, "mean": mean, "var": var}
    missing = [name for name, a in given.items() if a is None]
    if missing:
        raise TypeError(f"{missing[0]} must be an array of shape (n_features,), got None")
    scale, B, mean, var = (_array(name, a) for name, a in given.items())
    return _checked(Layer(mean, var, scale, B))


def _array(name: str, a: Any) -> Any:
    """A float64 array in CPU memory. Tensors of PyTorch may be on a device, and of a type that NumPy lacks."""
    if a is None:
        return None
    try:
        a = a.detach().cpu().double().numpy() if hasattr(a, "detach") else a
        if np.iscomplexobj(a):
            raise TypeError("they are complex")
        return np.array(a, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold real numbers, got {type(a).__name__}: {error!s:.100}") from None


def _checked(layer: Layer) -> Layer:
    shape = np.shape(layer.mean)
    for name, a in zip(Layer._fields, layer[:4], strict=False):
        if a is not None and (a.shape != shape or a.ndim != 1 or not a.size):
            raise ValueError(f"{name} must have shape (n_features,), as the mean has; got {a.shape} and {shape}")
    return layer
