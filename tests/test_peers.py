"""Every norm against golden values of other libraries: ONNX's node tests and PyTorch's gradients."""

import json
from pathlib import Path

import numpy as np
import pytest

import bncpu

DATA = Path(__file__).parent / "data"
ONNX = json.loads((DATA / "onnx_node_tests.json").read_text())["cases"]
TORCH = json.loads((DATA / "torch_golden.json").read_text())["cases"]

# ONNX computed its expected values in float32, step by step, with sums of at most 120 terms: a few roundings of the
# largest number, of which ours is the last.
ONNX_TOLERANCE = 4 * np.finfo(np.float32).eps


def from_onnx(tensor):
    return np.array(tensor["values"]).astype(np.float32).reshape(tensor["shape"])


def run_onnx(case):
    """Our results under the names of ONNX's outputs; its momentum is ours, its variance biased."""
    attributes = case["attributes"]
    x, gamma, *rest = (from_onnx(tensor) for tensor in case["inputs"])
    eps = attributes.get("epsilon", 1e-5)
    match case["operator"]:
        case "BatchNormalization" if attributes.get("training_mode"):
            beta, running_mean, running_var = rest
            y, _ = bncpu.batch_norm_forward(
                x, gamma, beta, running_mean=running_mean, running_var=running_var,
                momentum=attributes.get("momentum", 0.9), eps=eps,
            )  # fmt: skip
            return {"y": y, "output_mean": running_mean, "output_var": running_var}
        case "BatchNormalization":
            beta, mean, var = rest
            return {"y": bncpu.batch_norm(x, mean, var, gamma, beta, eps=eps)}
        case "InstanceNormalization":
            return {"y": bncpu.instance_norm(x, gamma, *rest, eps=eps)}
        case "GroupNormalization":
            # Before opset 21 scale and bias were one per group.
            assert case["opset"] >= 21
            return {"y": bncpu.group_norm(x, attributes["num_groups"], gamma, *rest, eps=eps)}
        case "LayerNormalization":
            y, saved = bncpu.layer_norm_forward(x, x.shape[attributes.get("axis", -1) :], gamma, *rest, eps=eps)
            return {"Y": y, "Mean": saved.mean, "InvStdDev": saved.invstd}
        case "RMSNormalization":
            return {"Y": bncpu.rms_norm(x, x.shape[attributes.get("axis", -1) :], gamma, eps=eps)}


@pytest.mark.parametrize("case", ONNX, ids=lambda c: c["name"])
def test_equals_onnx_node_test(case):
    results = run_onnx(case)
    assert results.keys() == case["outputs"].keys()
    for name, tensor in case["outputs"].items():
        expected = from_onnx(tensor)
        assert results[name].shape == expected.shape
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(results[name], expected, rtol=0, atol=ONNX_TOLERANCE * scale, err_msg=name)


def test_every_operator_of_onnx_is_there_with_all_its_node_tests():
    names = [case["operator"] for case in ONNX]
    assert {name: names.count(name) for name in names} == {
        "BatchNormalization": 4,
        "InstanceNormalization": 2,
        "GroupNormalization": 2,
        "LayerNormalization": 19,
        "RMSNormalization": 19,
    }


def arrays_of(case, *names):
    return [None if case.get(name) is None else np.array(case[name]) for name in names]


def run_torch(case):
    """Our results under the names in the golden file; PyTorch's momentum is 1 minus ours and its ddof is 1."""
    x, dy, gamma, beta, residual = arrays_of(case, "x", "dy", "gamma", "beta", "residual")
    fused = dict(activation=case["activation"], residual=residual)
    shape = tuple(case.get("normalized_shape", ()))
    axis = {}
    if "channel_axis" in case:
        (shape,), axis = shape, {"channel_axis": case["channel_axis"]}
    function, eps = case["function"], case["eps"]
    results = {}
    match function:
        case "batch_norm":
            y, saved = bncpu.batch_norm_forward(x, gamma, beta, eps=eps, **fused)
        case "batch_norm_frozen":
            mean, var = arrays_of(case, "running_mean", "running_var")
            y = bncpu.batch_norm(x, mean, var, gamma, beta, eps=eps, **fused)
            saved = bncpu.SavedStatistics.from_variance(mean, var, eps=eps)
        case "instance_norm":
            running_mean, running_var = arrays_of(case, "running_mean", "running_var")
            y, saved = bncpu.instance_norm_forward(
                x, gamma, beta, running_mean=running_mean, running_var=running_var,
                momentum=1 - case.get("momentum", 0), ddof=1, eps=eps, **fused,
            )  # fmt: skip
            results = {"running_mean_after": running_mean, "running_var_after": running_var}
        case "group_norm":
            y, saved = bncpu.group_norm_forward(x, case["n_groups"], gamma, beta, eps=eps, **fused)
        case "layer_norm":
            y, saved = bncpu.layer_norm_forward(x, shape, gamma, beta, eps=eps, **axis, **fused)
        case "rms_norm":
            y, saved = bncpu.rms_norm_forward(x, shape, gamma, eps=eps, **axis, **fused)

    shift = {} if function == "rms_norm" else {"beta": beta}
    backward = "batch_norm_backward_frozen" if function == "batch_norm_frozen" else f"{function}_backward"
    gradients = getattr(bncpu, backward)(dy, x, saved, gamma, **shift, **axis, **fused)
    names = ["dx", "dgamma", *(["dbeta"] if shift else []), *(["dresidual"] if residual is not None else [])]
    return results | {"y": y} | dict(zip(names, gradients, strict=True))


def torch_id(case):
    fused = [case["activation"], "residual" if case["residual"] else None]
    return " ".join([case["function"], "x".join(map(str, np.shape(case["x"]))), *filter(None, fused)])


@pytest.mark.parametrize("case", TORCH, ids=torch_id)
def test_forward_and_backward_equal_pytorch(case):
    results = run_torch(case)
    outputs = ("y", "dx", "dgamma", "dbeta", "dresidual", "running_mean_after", "running_var_after")
    expected = {name: np.array(case[name]) for name in outputs if name in case}
    assert {"y", "dx"} <= expected.keys() <= results.keys()
    for name, values in expected.items():
        assert results[name].shape == values.shape
        # Both round in float64; where terms of size 1 cancel, only the absolute error is small.
        np.testing.assert_allclose(results[name], values, rtol=1e-12, atol=1e-13, err_msg=name)
