"""`bncpu.torch`: PyTorch's own samples and checks, converted against not, and statistics against float64."""

import copy
import io
import logging
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.datasets import load_digits

torch = pytest.importorskip("torch", reason="pip install 'bncpu[torch]' expecttest")

import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.optim import swa_utils
from torch.overrides import TorchFunctionMode
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import bncpu.torch
from bncpu.torch import SyncBatchNorm, accumulate, convert, revert, update_bn

NORMS = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm,
         nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d]  # fmt: skip
DTYPES = {"float32": torch.float32, "float64": torch.float64}

# Both round sums and results; PyTorch's sums are in float32 there.
TOLERANCE = {torch.float32: dict(rtol=3e-5, atol=3e-5), torch.float64: dict(rtol=1e-9, atol=1e-9)}

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def ours(model, **how):
    """A converted copy, which never hands back what is small."""
    return convert(copy.deepcopy(model), always=True, **how)


def everything(model, x, dy=None, wants_dx=True):
    """The result, all gradients and all buffers after a forward and a backward pass; or the error."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(wants_dx)
    model.zero_grad()
    try:
        y = model(x)
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)
    if y.requires_grad:
        y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape).sin() if dy is None else dy)
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


def assert_same(got, expected, dtype):
    if isinstance(expected, tuple):
        assert got[0] is expected[0]
        assert got[1] == expected[1]
        return
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            torch.testing.assert_close(a, b, equal_nan=True, **TOLERANCE[dtype])


def assert_converted_is_the_same(model, x, **how):
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-2, 2)
    converted = ours(model, **how)
    for mode in (True, True, False):
        model.train(mode)
        converted.train(mode)
        assert_same(everything(converted, x), everything(model, x), x.dtype)


class Handed:
    """What was handed back to PyTorch, from the log."""

    def __init__(self, caplog):
        caplog.set_level(logging.INFO, logger="bncpu.torch")
        self.caplog = caplog

    def said(self):
        lines = [record.getMessage() for record in self.caplog.records if record.name == "bncpu.torch"]
        self.caplog.clear()
        return lines


@pytest.fixture
def handed(caplog):
    return Handed(caplog)


# ---- PyTorch's samples ----


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls", NORMS, ids=lambda cls: cls.__name__)
def test_samples_of_pytorchs_modules(cls, training, dtype):
    (info,) = [info for info in module_db if info.module_cls is cls]
    found = 0
    for sample in info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training):
        if sample.forward_input is None:
            continue
        given = sample.constructor_input
        model = cls(*given.args, **given.kwargs).to(dtype).train(training)
        assert_same(
            everything(ours(model), *sample.forward_input.args),
            everything(model, *sample.forward_input.args),
            dtype,
        )
        found += 1
    assert found


def of_sample(name, x, args, kwargs):
    """The module that computes a sample of a functional norm, or None."""
    names = {
        "batch_norm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        "instance_norm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
        "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
        "group_norm": ("num_groups", "weight", "bias", "eps"),
    }[name]
    given = dict(zip(names, args, strict=False)) | kwargs
    eps, n = given.get("eps", 1e-5), x.shape[1] if x.ndim > 1 else 0
    if name == "layer_norm":
        model = nn.LayerNorm(given["normalized_shape"], eps)
    elif name == "group_norm":
        model = nn.GroupNorm(given["num_groups"], n, eps)
    else:
        kind = "BatchNorm" if name == "batch_norm" else "InstanceNorm"
        kinds = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}
        if x.ndim not in kinds or (name == "instance_norm" and x.ndim < 3):
            return None
        tracked = given.get("running_mean") is not None
        model = getattr(nn, kind + kinds[x.ndim])(n, eps, given.get("momentum", 0.1), True, tracked)
        model.train(given.get("training", given.get("use_input_stats", name == "instance_norm")))
        if tracked:
            model.running_mean, model.running_var = (given[key].clone() for key in ("running_mean", "running_var"))
    for key in ("weight", "bias"):
        setattr(model, key, None if given.get(key) is None else nn.Parameter(given[key].detach().clone()))
    return model.to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "layer_norm", "group_norm"])
def test_samples_of_pytorchs_functions(name, dtype):
    (op,) = [op for op in op_db if (op.name, op.variant_test_name) == (f"nn.functional.{name}", "")]
    found = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        x = sample.input.detach()
        model = of_sample(name, x, sample.args, sample.kwargs)
        # The gradient of a single value is the difference of two equal numbers some hundred times as large.
        single = name == "layer_norm" and sample.args[0] == (1,) and dtype == torch.float32
        if model is not None and not single:
            assert_same(everything(ours(model), x), everything(model, x), dtype)
            found += 1
    assert found > 3


LAYERS = {
    "rows": (lambda: nn.BatchNorm1d(6), (8, 6)),
    "sequences": (lambda: nn.BatchNorm1d(6), (8, 6, 5)),
    "images": (lambda: nn.BatchNorm2d(6), (8, 6, 3, 4)),
    "volumes without parameters": (lambda: nn.BatchNorm3d(6, affine=False), (2, 6, 3, 4, 2)),
    "cumulative": (lambda: nn.BatchNorm2d(6, momentum=None), (8, 6, 3, 4)),
    "other momentum": (lambda: nn.BatchNorm2d(6, momentum=0.9), (8, 6, 3, 4)),
    "never the old": (lambda: nn.BatchNorm2d(6, momentum=1.0), (8, 6, 3, 4)),
    "no running statistics": (lambda: nn.BatchNorm2d(6, track_running_stats=False), (8, 6, 3, 4)),
    "single positions": (lambda: nn.BatchNorm2d(6), (8, 6, 1, 1)),
    "one channel": (lambda: nn.BatchNorm2d(1), (8, 1, 3, 3)),
    "layer": (lambda: nn.LayerNorm((3, 4)), (8, 6, 3, 4)),
    "layer without bias": (lambda: nn.LayerNorm(6, bias=False), (8, 6)),
    "groups": (lambda: nn.GroupNorm(3, 6), (8, 6, 3, 4)),
    "instances": (lambda: nn.InstanceNorm2d(6, affine=True), (8, 6, 3, 4)),
    "instances, tracked": (lambda: nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (8, 6, 3)),
    "instances, no longer tracked": (
        lambda: changed(nn.InstanceNorm1d(6, track_running_stats=True), track_running_stats=False), (8, 6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_converted_layer_gives_the_same(name, layout, relu, dtype, handed):
    make, shape = LAYERS[name]
    x = 3 * torch.randn(shape, dtype=dtype) + 2
    if layout == "channels_last":
        if len(shape) < 4:
            return
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    assert_converted_is_the_same(nn.Sequential(make(), nn.ReLU()).to(dtype) if relu else make().to(dtype), x)
    assert bool(handed.said()) == (name == "layer" and layout == "channels_last")


@pytest.mark.parametrize("dy", ["expanded", "transposed", "channels_last", "of zero strides"])
def test_gradients_come_in_any_layout(dy):
    model, x = nn.BatchNorm2d(6).double(), torch.randn(8, 6, 4, 4, dtype=torch.float64)
    some = {
        "expanded": torch.randn(8, 6, 1, 1).expand(8, 6, 4, 4),
        "transposed": torch.randn(8, 6, 4, 4).transpose(2, 3),
        "channels_last": torch.randn(8, 6, 4, 4).to(memory_format=torch.channels_last),
        "of zero strides": torch.tensor(2.0).expand(8, 6, 4, 4),
    }[dy].double()
    for layout in (torch.contiguous_format, torch.channels_last):
        z = x.to(memory_format=layout)
        assert_same(everything(ours(model), z, some), everything(copy.deepcopy(model), z, some), torch.float64)


@pytest.mark.parametrize("frozen", ["weight", "bias", "x"])
def test_what_needs_no_gradient_gets_none(frozen):
    model, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    if frozen != "x":
        getattr(model, frozen).requires_grad_(False)
    got = everything(ours(model), x, wants_dx=frozen != "x")
    assert_same(got, everything(model, x, wants_dx=frozen != "x"), torch.float32)


def test_results_are_more_exact_far_from_zero():
    x = torch.randn(64, 8, 8, 8) + 1e4
    exact = F.batch_norm(x.double(), None, None, training=True)
    models = ours(nn.BatchNorm2d(8)), nn.BatchNorm2d(8)
    errors = [float((m(x).detach().double() - exact).abs().max()) for m in models]
    assert errors[0] < 1e-6
    assert errors[1] > 3e-4


# ---- gradients ----


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(name, training):
    make, shape = LAYERS[name]
    model = nn.Sequential(make(), nn.ReLU()).double().train(training)
    converted, x = ours(model), (5 * torch.rand(shape, dtype=torch.float64) - 2).requires_grad_()
    for parameter in converted.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    buffers = [b.clone() for b in converted.buffers()]

    def call(x, *parameters):
        for b, value in zip(converted.buffers(), buffers, strict=True):
            b.copy_(value)
        return converted(x)

    assert torch.autograd.gradcheck(call, (x, *converted.parameters()), fast_mode=True)


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(3), lambda: nn.GroupNorm(1, 3), lambda: nn.LayerNorm(4),
                                  lambda: nn.InstanceNorm2d(3, affine=True)])  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_gradients_are_pytorchs(make, training):
    converted = ours(nn.Sequential(make(), nn.ReLU()).double().train(training))
    x = (torch.rand(4, 3, 4, 4, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, *_: converted(x), (x, *converted.parameters()), fast_mode=True)


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(4), lambda: nn.GroupNorm(1, 4), lambda: nn.LayerNorm(4)])
def test_gradients_of_gradients_of_a_layer_used_again(make):
    """The way back of one use does not go on through the use before it, nor from a weight to itself as a bias."""
    model, x = make().double(), torch.randn(5, 4, dtype=torch.float64)
    model.bias = model.weight
    found = []
    for m in (model, ours(model)):
        h = x
        for _ in range(3):
            h = m(torch.tanh(h))
        (first,) = torch.autograd.grad(h.pow(3).sum(), m.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), m.weight)
        found.append((first.detach(), second))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(3), lambda: nn.GroupNorm(1, 3), lambda: nn.LayerNorm(4),
                                  lambda: nn.InstanceNorm2d(3, affine=True)])  # fmt: skip
def test_many_gradients_at_once(make):
    model, x = make(), torch.randn(4, 3, 4, 4, requires_grad=True)
    dys = torch.randn(2, 4, 3, 4, 4)
    a, b = (torch.autograd.grad(m(x), (x, m.weight), dys, is_grads_batched=True) for m in (ours(model), model))
    for got, expected in zip(a, b, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    y = ours(model)(x)
    (dx,) = torch.autograd.grad(y, x, torch.complex(dys[0], dys[0]).conj().imag)
    torch.testing.assert_close(dx, torch.autograd.grad(model(x), x, -dys[0])[0], rtol=1e-4, atol=1e-4)


def test_a_backward_pass_with_tangents_keeps_them():
    tangents = []
    for model in (nn.BatchNorm2d(3).eval(), ours(nn.BatchNorm2d(3)).eval()):
        x = torch.ones(4, 3, 5, 5, requires_grad=True)
        y = model(x)
        with forward_ad.dual_level():
            (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), 3 * torch.ones_like(y)))
            tangents.append(forward_ad.unpack_dual(dx).tangent)
    torch.testing.assert_close(*tangents)


def test_calls_of_both_kinds_share_a_backward_pass():
    model = convert(nn.BatchNorm2d(3))
    small, large = model(torch.randn(4, 3, 8, 8)), model(torch.randn(8, 3, 200, 200))
    (small.sum() + large.sum()).backward()
    assert int(model.num_batches_tracked) == 2


def test_a_bias_may_change_before_the_backward_pass():
    model = ours(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    x = torch.randn(4, 3, 5, 5)
    expected = everything(copy.deepcopy(model), x)
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    with torch.no_grad():
        model[0].bias.add_(100)
    y.backward(torch.linspace(-1, 2, y.numel()).reshape(y.shape).sin())
    torch.testing.assert_close(x.grad, expected[1])


def test_what_no_gradient_comes_to_gets_none():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, dy):
            return None

    for model in (nn.BatchNorm2d(3), ours(nn.BatchNorm2d(3))):
        Nothing.apply(model(torch.randn(4, 3, 5, 5))).sum().backward()
        assert model.weight.grad is None


def test_results_have_the_strides_of_pytorchs():
    x = torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last)
    for layer in (nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6)):
        assert ours(layer)(x).stride() == layer(x).stride()


def test_an_input_that_was_overwritten_is_refused_backward_as_by_pytorch():
    for model in (nn.BatchNorm2d(3), ours(nn.BatchNorm2d(3))):
        x = torch.randn(4, 3, 5, 5, requires_grad=True) * 1
        y = model(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_frozen_statistics_that_move_before_the_backward_pass_do_not_change_it():
    model = ours(nn.BatchNorm2d(3)).eval()
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = model(x)
    model.running_var.fill_(100)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, (1 + 1e-5) ** -0.5))


# ---- ReLU in the same step ----


def network():
    """A small network with every place for a ReLU."""
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Sequential(nn.GroupNorm(2, 6), nn.ReLU())),
        *(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), relu, nn.Flatten(), nn.Linear(54, 10), relu),
    )


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_network_gives_the_same(dtype, fuse):
    assert_converted_is_the_same(network().to(dtype), torch.randn(5, 3, 7, 7, dtype=dtype), fuse=fuse)


def test_relu_is_one_step_with_its_norm(monkeypatch):
    calls = []
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: calls.append(x) or F.relu(x))
    ours(network())(torch.randn(5, 3, 7, 7))
    assert len(calls) == 1  # the one behind a linear layer
    ours(network(), fuse=False)(torch.randn(5, 3, 7, 7))
    assert len(calls) == 5


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_see_what_is_between(at, hook):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    x, seen = torch.randn(4, 3, 5, 5), []
    for m in (model, ours(model)):
        getattr(m[at], hook)(lambda *given: seen.append([t.detach().clone() for t in given[-1] if t is not None]))
        everything(m, x)
    assert len(seen) == 2
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)


def test_a_hook_that_goes_and_a_forward_of_ones_own_are_heeded():
    x = torch.randn(4, 3, 5, 5)
    model = ours(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    hook = model[0].register_forward_hook(lambda *_: hook.remove())
    assert model(x).min() == 0
    assert model(x).min() == 0
    model[1].forward = lambda y: y - 7
    assert model(x).min() < -7
    del model[1].forward
    own = model[0].forward
    model[0].forward = lambda y: own(y) + 7
    assert model(x).max() > 7


def test_a_part_of_a_sequence_is_not_fused_beyond_its_end():
    model, x = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), torch.randn(4, 3, 5, 5)
    converted = ours(model)
    for m in (converted[:1], converted[0]):
        torch.testing.assert_close(m(x), model[0](x))
    assert type(converted[:1]) is bncpu.torch.Sequential


def test_an_activation_less_is_kept_for_the_backward_pass():
    def kept(model):
        n = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: n.append(t.numel() > 100) or t, lambda t: t):
            model(torch.randn(4, 3, 5, 5, requires_grad=True))
        return sum(n)

    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    assert (kept(model), kept(ours(model, fuse=False)), kept(ours(model))) == (2, 2, 1)


# ---- handed back to PyTorch ----


def test_small_calls_are_handed_back(handed):
    model, x = convert(nn.BatchNorm2d(3)), torch.randn(4, 3, 5, 5)
    assert same_bits(model(x), nn.BatchNorm2d(3)(x))
    assert handed.said() == ["BatchNorm2d: PyTorch, because x has 300 values only"]
    model(torch.randn(4, 3, 200, 200))
    assert handed.said() == []


def same_bits(a, b):
    return torch.equal(a, b)


@pytest.mark.parametrize(
    ("why", "call"),
    [
        ("bfloat16", lambda m, x: m.bfloat16()(x.bfloat16())),
        ("autocast", lambda m, x: torch.autocast("cpu")(m)(x)),
        ("torch.func", lambda m, x: torch.func.grad(lambda x: m(x).sin().sum())(x)),
        ("Tensor", lambda m, x: torch.func.jvp(m, (x,), (x,))[0]),
        ("strides", lambda m, x: m(x.transpose(2, 3))),
        ("torch.strided on meta", lambda m, x: m.to("meta")(x.to("meta"))),
        ("of torch.float64", lambda m, x: m.double()(x)),
        ("eps", lambda m, x: changed(m, eps=-1e-3)(x)),
        ("eps", lambda m, x: changed(m.train(), eps=0.0)(x)),
        ("momentum", lambda m, x: changed(m.train(), momentum=-1.0)(x)),
        ("running_var is negative", lambda m, x: changed(m, running_var=torch.full((3,), -1e-7))(x)),
        ("running_mean or running_var", lambda m, x: changed(m.train(), running_mean=None)(x)),
        ("bias is of", lambda m, x: changed(m.train(), bias=nn.Parameter(torch.ones(1)))(x)),
        ("a function mode", lambda m, x: in_mode(m, x)),
        ("a dispatch mode", lambda m, x: counted(m, x)),
        ("a view that computes its values", lambda m, x: m(torch.complex(x, x).conj().imag)),
    ],
)
def test_what_our_kernels_cannot_compute_is_handed_back(why, call, handed):
    model, x = nn.BatchNorm2d(3).eval(), torch.randn(4, 3, 6, 5)
    converted = ours(model)
    outcomes = []
    for m in (model, converted):
        try:
            outcomes.append(call(m, x))
        except (RuntimeError, ValueError) as error:
            outcomes.append(str(error))
    if isinstance(outcomes[0], str):
        assert outcomes[0] == outcomes[1]
    else:
        torch.testing.assert_close(outcomes[1], outcomes[0], rtol=0, atol=0)
    assert any(why in line or "torch.func" in line for line in handed.said())


def changed(model, **attributes):
    """The model with other attributes."""
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def counted(model, x):
    with FlopCounterMode(display=False):
        return model(x)


class Doubling(TorchFunctionMode):
    """Doubles what batch norms give."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        return 2 * y if func is F.batch_norm else y


def in_mode(model, x):
    with Doubling():
        return model(x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_models_are_pytorchs(backend):
    model, x = network(), torch.randn(5, 3, 7, 7)
    compiled = torch.compile(ours(model), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_exported_and_traced_models_are_pytorchs():
    model, x = network().eval(), torch.randn(5, 3, 7, 7)
    converted = ours(model)
    assert "batch_norm" in str(torch.export.export(converted, (x,)).graph)
    traced = torch.jit.trace(converted, x)
    graph = torch.fx.symbolic_trace(converted)
    assert sum(node.op == "call_module" for node in graph.graph.nodes) == 11
    graph = pickle.loads(pickle.dumps(graph))
    alone = torch.fx.symbolic_trace(ours(nn.GroupNorm(1, 3)))
    torch.testing.assert_close(alone(x), nn.GroupNorm(1, 3)(x))
    for z in (x, x + 1):
        torch.testing.assert_close(traced(z), model(z))
        torch.testing.assert_close(graph(z), model(z))
    scripted = torch.jit.script(revert(converted))
    torch.testing.assert_close(scripted(x), model(x))


def test_reverted_models_are_as_they_were():
    model = network()
    before = [type(m) for m in model.modules()]
    assert revert(convert(model, always=True)) is model
    assert [type(m) for m in model.modules()] == before
    assert all("_always" not in vars(m) for m in model.modules())


@pytest.mark.parametrize("shape", [(1, 6), (0, 6), (8, 5), (8,), (8, 6, 3, 3)], ids=str)
def test_what_pytorch_refuses_is_refused_in_its_words(shape):
    model = nn.BatchNorm1d(6)
    converted = ours(model)
    assert_same(everything(converted, torch.randn(shape)), everything(model, torch.randn(shape)), torch.float32)
    assert converted.state_dict().keys() == model.state_dict().keys()
    for a, b in zip(converted.buffers(), model.buffers(), strict=True):
        assert torch.equal(a, b)


# ---- copies, pickles, threads, workers ----


def test_state_dicts_go_both_ways():
    model, x = network(), torch.randn(5, 3, 7, 7)
    converted = ours(network())
    converted.load_state_dict(model.state_dict(), strict=True)
    everything(converted, x)
    model.load_state_dict(converted.state_dict(), strict=True)
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))
    assert list(converted.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch"])
def test_copies_are_converted_models_of_their_own(again):
    model, x = ours(network()), torch.randn(5, 3, 7, 7)
    if again == "torch":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = again(model)
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    assert_same(everything(other, x), everything(model, x), torch.float32)
    everything(other, x + 1)
    assert not torch.equal(other[1].running_mean, model[1].running_mean)


def test_threads_share_a_model():
    model = ours(network()).eval()
    batches = torch.randn(40, 5, 3, 7, 7)
    expected = [model(x).detach() for x in batches]

    def gradient(x):
        x = x.clone().requires_grad_()
        y = model(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        return y.detach(), dx

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(gradient, batches))
    for (y, dx), z, x in zip(results, expected, batches, strict=True):
        assert torch.equal(y, z)
        assert torch.equal(dx, gradient(x)[1])


class Normalized(torch.utils.data.Dataset):
    """Images that a converted layer normalizes in the worker."""

    def __init__(self):
        self.layer = convert(nn.InstanceNorm2d(3), always=True)

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return self.layer(torch.full((1, 3, 4, 4), float(i)) + torch.arange(16.0).reshape(4, 4))[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_data_loader(context):
    data = Normalized()
    expected = torch.stack([data[i] for i in range(8)])
    ours(nn.BatchNorm2d(3))(torch.randn(32, 3, 64, 64))  # starts threads, which a fork has not
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=context)
    torch.testing.assert_close(torch.cat(list(loader)), expected)


# ---- training ----


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_small_network_learns_digits_with_the_same_losses(dtype):
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=dtype)
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * 8 * 8, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10)),
    ).to(dtype)
    losses = []
    for m in (model, ours(model)):
        optimizer = torch.optim.SGD(m.parameters(), 0.05, momentum=0.9)
        losses.append([])
        for start in range(0, 30 * 50, 50):
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x[start : start + 50]), labels[start : start + 50])
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    # Roundings grow as training goes on.
    np.testing.assert_allclose(*losses, rtol=2e-3 if dtype == torch.float32 else 1e-9)
    assert losses[0][-1] < 0.3 * losses[0][0]


# ---- update_bn ----


def moments(x):
    """Mean and unbiased variance of the channels in float64."""
    flat = x.detach().double().transpose(0, 1).reshape(x.shape[1], -1)
    return flat.mean(1), flat.var(1)


def assert_statistics(layer, x, **tolerance):
    for got, expected in zip((layer.running_mean, layer.running_var), moments(x), strict=True):
        torch.testing.assert_close(got.double(), expected, **(tolerance or dict(rtol=1e-6, atol=1e-6)))


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("size", [4, 16, 64, 5000])
def test_statistics_of_sorted_rows_do_not_depend_on_the_batches(size, converted):
    x = torch.special.ndtri((torch.arange(5000.0) + 0.5) / 5000)[:, None].repeat(1, 3)  # quantiles of a normal
    theirs = nn.Sequential(nn.BatchNorm1d(3))
    model = ours(theirs) if converted else copy.deepcopy(theirs)
    update_bn(x.split(size), model)
    assert_statistics(model[0], x)
    swa_utils.update_bn(x.split(size), theirs)
    said = {4: 1e-4, 16: 5.4e-4, 64: 3e-3, 5000: 1.0}[size]  # in docs/pytorch.md
    np.testing.assert_allclose(theirs[0].running_var, said, rtol=0.02)


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None, 0.9])
@pytest.mark.parametrize("as_pairs", [False, True])
def test_update_bn_does_what_pytorchs_tests_of_its_own_ask(as_pairs, momentum, layer_by_layer):
    model = network()
    model[1].momentum = momentum
    model.eval()
    x = torch.randn(60, 3, 7, 7)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, torch.arange(60)) if as_pairs else x, batch_size=7
    )
    update_bn(loader, model, "cpu", layer_by_layer=layer_by_layer)
    assert model[1].momentum is momentum
    assert not any(m.training for m in model.modules())
    assert_statistics(model[1], model[0](x))
    assert int(model[1].num_batches_tracked) == int(model[5].num_batches_tracked) == 9
    update_bn(loader, model, layer_by_layer=layer_by_layer)  # again: nothing of before is left in it
    assert_statistics(model[1], model[0](x))
    update_bn(loader, nn.Sequential(nn.Conv2d(3, 6, 3)), layer_by_layer=layer_by_layer)


class Residual(nn.Module):
    """Two branches, a layer used twice, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.shared, self.idle = (nn.BatchNorm1d(4) for _ in range(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = F.relu(self.first(x))
        return self.shared(self.second(self.linear(y)) + self.shared(x))


def test_layer_by_layer_gives_statistics_of_what_each_layer_sees():
    model, x = Residual(), torch.randn(100, 4).sort(0).values * 3 + 1
    update_bn(x.split(5), model, layer_by_layer=True)
    model.eval()
    assert_statistics(model.first, x)
    assert_statistics(model.second, model.linear(F.relu(model.first(x))))
    assert int(model.shared.num_batches_tracked) == 40
    assert int(model.idle.num_batches_tracked) == 0
    one_pass = Residual()
    one_pass.load_state_dict(model.state_dict())
    update_bn(x.split(5), one_pass)
    assert (one_pass.second.running_var / model.second.running_var - 1).abs().max() > 0.2


class Choosing(nn.Module):
    """Goes through another norm for short batches, twice."""

    def __init__(self):
        super().__init__()
        self.long, self.short = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.long(x) if len(x) > 4 else self.short(x)


def test_layer_by_layer_finds_layers_that_only_some_batches_show():
    x = torch.randn(17, 3) + torch.arange(17.0)[:, None]
    model = Choosing()
    update_bn([x[:5], x[5:9], x[9:14], x[14:]], model, layer_by_layer=True)
    assert_statistics(model.long, torch.cat([x[:5], x[9:14]]))
    assert_statistics(model.short, torch.cat([x[5:9], x[14:]]))


class Once:
    """Gives the same iterator each time."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return (batch for batch in self.batches)


def test_batches_that_come_only_once_are_refused():
    with pytest.raises(ValueError, match="loader must give at least one batch each time that it is read"):
        update_bn(Once(torch.randn(8, 4).split(4)), Residual(), layer_by_layer=True)


def test_buffers_of_other_layers_are_restored_too():
    counting = Keeping()
    model = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True), nn.AvgPool1d(5), nn.Flatten(), counting)
    with pytest.raises(OSError, match="the disk"):
        update_bn(AgainAndAgain(torch.randn(20, 4, 5)), model)
    assert (model[0].running_mean == 0).all()
    assert counting.calls == 0


def failing(x):
    yield from x.split(5)
    raise OSError("the disk is gone")


class AgainAndAgain:
    """What gives another iterator each time, which fails."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return failing(self.x)


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_a_failing_loader_leaves_everything_as_it_was(layer_by_layer):
    model, x = Residual(), torch.randn(20, 4)
    model.first.eval()
    everything(model, x)
    before = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.raises(OSError, match="the disk"):
        update_bn(AgainAndAgain(x), model, layer_by_layer=layer_by_layer)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert [m.training for m in (model, model.first)] == [True, False]
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="loader must give at least one batch each time"):
        update_bn([], model, layer_by_layer=layer_by_layer)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_an_iterator_cannot_be_read_again():
    with pytest.raises(TypeError, match="loader must be iterable again and again"):
        update_bn(iter([torch.randn(4, 4)]), Residual(), layer_by_layer=True)


# ---- processes ----


def of_rank(rank, world, folder, state, x, dy, bounds):
    """Normalize a share, forward and backward; run in a process of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    model = SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())).double()
    model.load_state_dict(state)
    own = slice(bounds[rank], bounds[rank + 1])
    found = everything(convert(model), x[own], dy[own])
    torch.save(found, f"{folder}/{rank}.pt")
    update_bn(x[own].split(2), model)
    torch.save(model.state_dict(), f"{folder}/{rank}-all.pt")
    try:
        update_bn([] if rank else x[own].split(2), model)
    except (RuntimeError, ValueError) as error:
        torch.save(str(error), f"{folder}/{rank}-error.pt")
    model.zero_grad()
    distributed = nn.parallel.DistributedDataParallel(model)
    distributed(x[own]).sin().sum().mul(world).backward()
    torch.save(model[0].weight.grad, f"{folder}/{rank}-ddp.pt")
    del distributed  # it waits for the others, who must be there
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("bounds", [(0, 3, 10), (0, 0, 10), (0, 1, 9, 10)], ids=str)
def test_processes_give_what_one_gives_with_the_whole_batch(bounds, tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).double()
    nn.init.uniform_(model[0].weight)
    x, dy = torch.randn(2, 10, 4, 3, 3, dtype=torch.float64) * 3 + torch.arange(10.0)[:, None, None, None]
    state, world = model.state_dict(), len(bounds) - 1
    state = {name: b.clone() for name, b in state.items()}
    torch.multiprocessing.spawn(of_rank, (world, tmp_path, state, x, dy, bounds), world)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    y, dx, dweight, dbias, *buffers = everything(model, x, dy)
    joined = [torch.cat([s[0] for s in shares]), torch.cat([s[1] for s in shares])]
    joined += [sum(s[2] for s in shares), sum(s[3] for s in shares), *shares[-1][4:]]
    assert_same(joined, [y, dx, dweight, dbias, *buffers], torch.float64)
    for rank in range(world):
        own = torch.load(tmp_path / f"{rank}-all.pt")
        mean, var = moments(x)
        torch.testing.assert_close(own["0.running_mean"], mean)
        torch.testing.assert_close(own["0.running_var"], var)
        said = torch.load(tmp_path / f"{rank}-error.pt")
        assert said == ("update_bn failed in another process" if not rank else
                        "loader must give at least one batch each time that it is read, got none")  # fmt: skip
        again = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).double()
        again.load_state_dict(own)
        again(x).sin().sum().backward()
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}-ddp.pt"), again[0].weight.grad)


def test_without_other_processes_it_is_batch_norm():
    model, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    sync = SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(sync) is SyncBatchNorm
    assert_same(everything(sync, x), everything(model, x), torch.float32)
    assert_same(everything(ours(sync), x), everything(ours(model), x), torch.float32)


# ---- batches in parts ----


def of_sum(n):
    return lambda y, t: F.cross_entropy(y, t, reduction="sum") / n


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("sizes", [[10, 5, 9], [24], [1, 23], [8] * 3], ids=str)
def test_parts_give_what_the_whole_batch_gives(sizes, in_files, converted, tmp_path):
    x = torch.randn(24, 3, 7, 7, dtype=torch.float64) + torch.arange(24.0)[:, None, None, None]
    labels = torch.arange(24) % 10
    model = network().double()
    whole = copy.deepcopy(model)
    parts = ours(model) if converted else model
    for m in (whole, parts):
        m[0].weight.grad = torch.ones_like(m[0].weight)
    loss = of_sum(24)(whole(x), labels)
    loss.backward()
    before = [type(m) for m in parts.modules()]
    folder = tmp_path if in_files else None
    got = accumulate(parts, zip(x.split(sizes), labels.split(sizes), strict=True), of_sum(24), folder=folder)
    torch.testing.assert_close(got, loss.detach(), rtol=1e-12, atol=0)
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    for a, b in zip(parts.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert [type(m) for m in parts.modules()] == before
    assert not list(tmp_path.iterdir())


class Forgetful(nn.Module):
    """Skips its second norm for some inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.first(x)
        return y if len(x) == 3 else self.first(y) if len(x) == 4 else self.second(y)


@pytest.mark.parametrize("sizes", [[3, 5], [5, 3], [5, 3, 5], [3, 5, 3], [5, 4]], ids=str)
def test_parts_that_go_through_other_layers_are_refused(sizes):
    model, x = Forgetful(), torch.randn(sum(sizes), 4)
    with pytest.raises(RuntimeError, match="micro_batches must all go through the same batch norms"):
        accumulate(model, [(part, 0) for part in x.split(sizes)], lambda y, t: y.square().sum())
    assert all(p.grad is None for p in model.parameters())
    assert int(model.first.num_batches_tracked) == 0
    assert (model.first.running_mean == 0).all()
    assert threading.active_count() == 1 or all(not t.name.startswith("part") for t in threading.enumerate())


def test_a_failing_loss_leaves_gradients_and_statistics_as_they_were(tmp_path):
    model, x = network(), torch.randn(8, 3, 7, 7)
    everything(model, x)
    before = [t.clone() for t in (*(p.grad for p in model.parameters()), *model.buffers())]

    def loss(y, t):
        if t:
            raise OSError("no loss")
        return y.sum()

    with pytest.raises(OSError, match="no loss"):
        accumulate(model, [(x[:4], False), (x[4:], True)], loss, folder=tmp_path)
    after = [*(p.grad for p in model.parameters()), *model.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert type(model[1]) is nn.BatchNorm2d
    assert not list(tmp_path.iterdir())


def test_norms_that_know_nothing_of_parts_are_refused():
    class Own(nn.BatchNorm1d):
        pass

    for norm in (Own(4), SyncBatchNorm(4)):
        model = nn.Sequential(nn.BatchNorm1d(4), norm)
        with pytest.raises(TypeError, match=f"model must have batch norms that know of parts.*{type(norm).__name__}"):
            accumulate(model, [(torch.randn(4, 4), 0)], lambda y, t: y.sum())
        assert type(model[0]) is nn.BatchNorm1d
    with pytest.raises(ValueError, match="micro_batches must give pairs"):
        accumulate(nn.BatchNorm1d(4), [], of_sum(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(model=len), "model must be a torch.nn.Module"),
        (dict(loss=None), "loss must be a function"),
        (dict(loss=lambda y, t: 1.0), "loss must give a tensor, got a float"),
        (dict(micro_batches=[torch.ones(4, 4)]), "micro_batches must give pairs"),
        (dict(model=nn.DataParallel(nn.BatchNorm1d(4))), "model must not have a DataParallel in it"),
    ],
)
def test_arguments_of_accumulate_are_named(given, message):
    usual = dict(model=nn.BatchNorm1d(4), micro_batches=[(torch.randn(4, 4), 0)], loss=lambda y, t: y.sum())
    with pytest.raises((TypeError, ValueError), match=message):
        accumulate(**usual | given)


class Keeping(nn.Module):
    """Keeps what it is given in an attribute, counts calls, and draws random numbers again in a checkpoint."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.untracked = nn.BatchNorm1d(4, track_running_stats=False).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.masks = []

    def drop(self, x):
        self.masks.append(torch.rand_like(x) > 0.5)
        return self.last(self.norm(x) * self.masks[-1])

    def forward(self, x):
        self.kept = x
        self.calls = self.calls + 1
        if len(x) > 100:
            x = checkpoint(self.drop, x, use_reentrant=False)
        return self.norm(self.untracked(self.first(x))) + self.kept


def test_parts_keep_their_attributes_apart():
    model, x = Keeping().double(), torch.randn(9, 4, dtype=torch.float64)
    whole = copy.deepcopy(model)
    loss = accumulate(model, [(x[:4], 0), (x[4:], 0)], lambda y, t: y.sin().sum())
    expected = whole(x).sin().sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert model.calls == 1


def test_a_part_draws_the_same_random_numbers_again():
    model, x = Keeping(), torch.randn(300, 4)
    state = torch.get_rng_state()
    accumulate(model, [(x[:150], 0), (x[150:], 0)], lambda y, t: y.sin().sum())
    first, second, *again = model.masks
    assert len(again) == 2
    assert all(any(torch.equal(a, b) for b in (first, second)) for a in again)
    assert not torch.equal(first, second)
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_compiled_model_and_autocast_take_part():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), torch.randn(8, 4)
    parts = [(x[:3], 0), (x[3:], 0)]
    expected = accumulate(model, parts, lambda y, t: y.float().sum())
    got = accumulate(torch.compile(model, backend="eager"), parts, lambda y, t: y.float().sum())
    torch.testing.assert_close(got, expected)
    dtypes = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = accumulate(model, parts, lambda y, t: dtypes.append(y.dtype) or y.float().sum())
    assert dtypes == [torch.bfloat16] * 2
    torch.testing.assert_close(low, expected, rtol=0.1, atol=0.1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_norms_that_would_keep_to_themselves_are_refused():
    class Own(bncpu.torch.BatchNorm1d):
        def forward(self, x):
            return F.batch_norm(x, None, None, training=True)

    patched = nn.BatchNorm1d(4)
    patched.forward = lambda x: x
    for norm in (Own(4), patched):
        with pytest.raises(TypeError, match="model must have batch norms that know of parts"):
            accumulate(nn.Sequential(norm), [(torch.randn(4, 4), 0)], lambda y, t: y.sum())
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm1d(4)))
    with pytest.raises(TypeError, match="model must not have a"):
        accumulate(scripted, [(torch.randn(4, 4), 0)], lambda y, t: y.sum())
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
    model.hidden = (model[0],)
    model[1].forward = lambda x: model.hidden[0](x)
    with pytest.raises(RuntimeError, match="model must call its batch norms as submodules"):
        accumulate(model, [(torch.randn(4, 4), 0)], lambda y, t: y.sum())


def test_views_wait_in_files_of_their_own_size(tmp_path):
    sizes = []

    class Watching(nn.Module):
        def forward(self, x):
            y = x.sin()
            sizes.extend(path.stat().st_size for path in tmp_path.glob("*/*"))
            return y

    x = torch.randn(64, 3000).requires_grad_()
    accumulate(Watching(), [(part, 0) for part in x.split(8)], lambda y, t: y.sum(), folder=tmp_path)
    assert max(sizes) < 1.1 * 8 * 3000 * 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trouble", ["Ctrl-C", "no more threads"])
def test_all_threads_have_ended_when_it_fails(trouble, monkeypatch):
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.1)
            return x

    model = nn.Sequential(nn.BatchNorm1d(4), Slow(), nn.BatchNorm1d(4), Slow())
    start, started = threading.Thread.start, []

    def start_some(thread):
        if thread.name.startswith("part"):
            started.append(thread)
            if trouble == "no more threads" and len(started) == 3:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    if trouble == "Ctrl-C":
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        start(threading.Timer(0.25, os.kill, (os.getpid(), signal.SIGINT)))
    try:
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            accumulate(model, [(x, 0) for x in torch.randn(20, 4).split(5)], lambda y, t: y.sum())
    finally:
        if trouble == "Ctrl-C":
            signal.signal(signal.SIGINT, before)
    assert not any(thread.is_alive() for thread in started)
    assert all(p.grad is None for p in model.parameters())
    assert all((m.running_mean == 0).all() for m in (model[0], model[2]))


def test_frozen_norms_take_no_part():
    model, x = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)).double(), torch.randn(9, 4, dtype=torch.float64)
    model[0].eval()
    whole = copy.deepcopy(model)
    accumulate(model, [(x[:4], 0), (x[4:], 0)], lambda y, t: y.sin().sum())
    whole(x).sin().sum().backward()
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert int(model[0].num_batches_tracked) == 0
