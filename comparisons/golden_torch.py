"""Write tests/data/torch_batch_norm.json: batch_norm of PyTorch in float64, in training and at inference.

    pip install -r comparisons/requirements.txt && python comparisons/golden_torch.py

Data near 0 only: at a mean of 1e6 PyTorch's float64 result is off by 1e-10, as it computes x*a + b.
"""

import json
from pathlib import Path

import torch

CASES = {
    "rows": ((7, 3), 0.1, 1e-5, True),
    "rows without parameters": ((5, 4), 0.3, 1e-3, False),
    "NCL": ((4, 3, 5), 0.1, 1e-5, True),
    "NCHW": ((3, 2, 3, 4), 0.99, 1e-5, True),
    "NCDHW": ((2, 3, 2, 2, 3), 0.5, 0.1, True),
}
OUT = Path(__file__).parents[1] / "tests" / "data" / "torch_batch_norm.json"


def case(name, shape, momentum, eps, affine):
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
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in result.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    golden = {"made by": f"comparisons/golden_torch.py, PyTorch {torch.__version__}"}
    golden["cases"] = [case(name, *arguments) for name, arguments in CASES.items()]
    OUT.write_text(json.dumps(golden) + "\n")
