"""Write tests/data/torch_batch_norm.json and torch_golden.json: what PyTorch computes in float64.

    pip install -r comparisons/requirements.txt && python comparisons/golden_torch.py

The first file holds batch_norm in training and at inference; the second every norm with its gradients, some
with relu and a residual. Data near 0 only: at a mean of 1e6 PyTorch's float64 result is off by 1e-10, as it
computes x*a + b.
"""

import json
from pathlib import Path

import torch
from torch.nn import functional

BATCH_NORM_CASES = {
    "rows": ((7, 3), 0.1, 1e-5, True),
    "rows without parameters": ((5, 4), 0.3, 1e-3, False),
    "NCL": ((4, 3, 5), 0.1, 1e-5, True),
    "NCHW": ((3, 2, 3, 4), 0.99, 1e-5, True),
    "NCDHW": ((2, 3, 2, 2, 3), 0.5, 0.1, True),
}

# What is fused behind a norm: (relu, residual).
PLAIN, RELU, RESIDUAL, BOTH = (False, False), (True, False), (False, True), (True, True)

# Function, shape of x, arguments beside the defaults (eps 1e-5, gamma and beta present), what is fused.
CASES = [
    ("batch_norm", (7, 3), {}, PLAIN),
    ("batch_norm", (6, 2), {"affine": False, "eps": 1e-3}, PLAIN),
    ("batch_norm", (4, 3, 5), {}, RELU),
    ("batch_norm", (3, 2, 3, 4), {}, BOTH),
    ("batch_norm", (3, 2, 2, 3), {"affine": False}, BOTH),
    ("batch_norm", (4, 2, 3), {}, RESIDUAL),
    ("batch_norm", (2, 3, 2, 2, 3), {"eps": 0.1}, PLAIN),
    ("batch_norm_frozen", (5, 3), {}, PLAIN),
    ("batch_norm_frozen", (3, 2, 2, 3), {"eps": 1e-3}, BOTH),
    ("batch_norm_frozen", (4, 2, 3), {"affine": False}, RELU),
    ("layer_norm", (7,), {"normalized_shape": (7,)}, PLAIN),
    ("layer_norm", (6, 5), {"normalized_shape": (5,)}, PLAIN),
    ("layer_norm", (2, 3, 4), {"normalized_shape": (3, 4), "eps": 0.1}, PLAIN),
    ("layer_norm", (2, 3, 2, 3), {"normalized_shape": (2, 3)}, BOTH),
    ("layer_norm", (2, 2, 3, 2), {"normalized_shape": (2, 3, 2), "affine": False}, RELU),
    ("layer_norm", (2, 4, 3, 2), {"normalized_shape": (4,), "channel_axis": 1}, BOTH),
    ("instance_norm", (3, 2, 5), {}, PLAIN),
    ("instance_norm", (2, 3, 3, 2), {"momentum": 0.3}, PLAIN),
    ("instance_norm", (2, 2, 2, 3, 2), {"affine": False, "momentum": 0.1, "eps": 1e-3}, PLAIN),
    ("instance_norm", (2, 3, 2, 3), {}, BOTH),
    ("group_norm", (4, 6), {"n_groups": 2}, PLAIN),
    ("group_norm", (2, 6, 5), {"n_groups": 3, "eps": 1e-3}, RELU),
    ("group_norm", (3, 4, 2, 3), {"n_groups": 2}, BOTH),
    ("group_norm", (2, 3, 4), {"n_groups": 3, "affine": False}, PLAIN),
    ("group_norm", (2, 4, 2, 2, 2), {"n_groups": 1}, PLAIN),
    ("rms_norm", (7,), {"normalized_shape": (7,)}, PLAIN),
    ("rms_norm", (6, 5), {"normalized_shape": (5,)}, PLAIN),
    ("rms_norm", (2, 3, 4), {"normalized_shape": (3, 4), "eps": 0.1}, RELU),
    ("rms_norm", (2, 3, 2, 3), {"normalized_shape": (2, 3)}, BOTH),
    ("rms_norm", (2, 2, 3, 2), {"normalized_shape": (2, 3, 2), "affine": False}, PLAIN),
    ("rms_norm", (2, 4, 3, 2), {"normalized_shape": (4,), "channel_axis": 1}, PLAIN),
]
DATA = Path(__file__).parents[1] / "tests" / "data"


def batch_norm_case(name, shape, momentum, eps, affine):
    """One input with PyTorch's output in both modes, and its running statistics before and after."""
    x = torch.randn(shape, dtype=torch.float64) + 0.5
    n_channels = shape[1]
    mean, var = torch.randn(n_channels, dtype=torch.float64), torch.rand(n_channels, dtype=torch.float64) + 0.5
    weight, bias = (torch.randn(n_channels, dtype=torch.float64) if affine else None for _ in range(2))
    result = {"name": name, "x": x, "running_mean": mean.clone(), "running_var": var.clone()}
    result |= {"weight": weight, "bias": bias, "momentum": momentum, "eps": eps}
    result["inference"] = torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, momentum, eps)
    result["training"] = torch.nn.functional.batch_norm(x, mean, var, weight, bias, True, momentum, eps)
    result |= {"running_mean_after": mean, "running_var_after": var}
    return as_lists(result)


def normalize(function, x, case, running):
    """PyTorch's norm; `running` are its running mean and variance, or empty."""
    weight, bias, eps = case["gamma"], case.get("beta"), case["eps"]
    match function:
        case "batch_norm":
            return functional.batch_norm(x, None, None, weight, bias, True, 0, eps)
        case "batch_norm_frozen":
            return functional.batch_norm(x, *running, weight, bias, False, 0, eps)
        case "instance_norm":
            mean, var = running or (None, None)
            return functional.instance_norm(x, mean, var, weight, bias, True, case.get("momentum", 0), eps)
        case "group_norm":
            return functional.group_norm(x, case["n_groups"], weight, bias, eps)
    # PyTorch normalizes trailing axes only: channels at each position take a transposition there and back.
    axis = case.get("channel_axis", -1)
    parameters = (weight,) if function == "rms_norm" else (weight, bias)
    norm = functional.rms_norm if function == "rms_norm" else functional.layer_norm
    return norm(x.movedim(axis, -1), case["normalized_shape"], *parameters, eps).movedim(-1, axis)


def gradient_case(function, shape, arguments, fused):
    """One input with y, the gradients of sum(dy*y), and the running statistics after."""
    relu, with_residual = fused
    case = {"function": function, "eps": 1e-5, "activation": "relu" if relu else None} | arguments
    affine = case.pop("affine", True)
    parameters = case.get("normalized_shape", (shape[1],) if len(shape) > 1 else shape)

    def normal(size):
        return torch.randn(size, dtype=torch.float64)

    x, dy = normal(shape) + 0.5, normal(shape)
    residual = normal(shape) if with_residual else None
    case["gamma"] = normal(parameters) if affine else None
    if function != "rms_norm":
        case["beta"] = normal(parameters) if affine else None
    running = []
    if function == "batch_norm_frozen" or "momentum" in case:
        running = [normal(shape[1]), torch.rand(shape[1], dtype=torch.float64) + 0.5]
        case |= {"running_mean": running[0].clone(), "running_var": running[1].clone()}

    leaves = {"x": x, "gamma": case["gamma"], "beta": case.get("beta"), "residual": residual}
    leaves = {k: v.requires_grad_() for k, v in leaves.items() if v is not None}
    y = normalize(function, x, case, running)
    y = y if residual is None else y + residual
    y = torch.relu(y) if relu else y
    y.backward(dy)
    case |= {"x": x, "dy": dy, "residual": residual, "y": y} | {f"d{k}": v.grad for k, v in leaves.items()}
    if "momentum" in case:
        case |= {"running_mean_after": running[0], "running_var_after": running[1]}
    return as_lists(case)


def as_lists(case):
    """The same with tensors as nested lists."""
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in case.items()}


def write(name, cases):
    """Write one file of cases, with what made it."""
    made_by = f"comparisons/golden_torch.py, PyTorch {torch.__version__}"
    (DATA / name).write_text(json.dumps({"made by": made_by, "cases": cases}) + "\n")
    print(f"{name}: {len(cases)} cases")


if __name__ == "__main__":
    torch.manual_seed(0)
    write("torch_batch_norm.json", [batch_norm_case(name, *case) for name, case in BATCH_NORM_CASES.items()])
    write("torch_golden.json", [gradient_case(*case) for case in CASES])
