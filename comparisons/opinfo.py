"""bncpu against PyTorch on PyTorch's own samples, over 50 training steps, and against finite differences.

    pip install -r comparisons/requirements.txt && pip install . && python comparisons/opinfo.py

Every OpInfo sample of the five norms: outputs, gradients and running statistics. An error is counted in units of
the dtype's epsilon times the size of the terms a result is the sum of: where they cancel, as in the gradient of two
values normalized together, each library keeps only roundings, and its own. Prints a table; exit status 1 if an
error is beyond its tolerance.
"""

import inspect
import itertools
import sys
from collections import Counter

import numpy as np
import torch
from torch.nn import functional
from torch.testing._internal.common_methods_invocations import op_db

import bncpu

NORMS = ("batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm")
DTYPES = (torch.float32, torch.float64)

# Either side rounds each term of a result a few times; ours in float64 except the last ones.
SAMPLE_TOLERANCE = 8
# As above, but in float64 our variance counts: it is a sum of squares about a value of the batch, and where that lies
# k standard deviations from the mean, roundings weigh k*k + 1 times as much. Here k reaches 4. The 50 roundings of the
# running statistics matter less, as they are forgotten with what they rounded.
STEP_TOLERANCE = 32
# Differences of fourth order with h = 1e-3: what is left is h**4 = 1e-12 of a fifth derivative, which eps = 0.1 keeps
# below 1e3, and the roundings of y divided by h, 1e-13 each. As a fraction of the largest gradient.
DIFFERENCE_TOLERANCE = 1e-10


def array(tensor):
    """The tensor's numbers as a NumPy array of its own; None stays None."""
    return None if tensor is None else tensor.detach().numpy().copy()


def error(ours, theirs, terms, dtype):
    """The largest difference in units of epsilon times the size of the terms; infinite if one alone is NaN."""
    if ours.shape != theirs.shape:
        return np.inf
    if theirs.size == 0:
        return 0.0
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return np.inf
    known = np.isfinite(theirs)
    difference = np.abs(ours.astype(np.float64) - theirs)[known].max(initial=0)
    size = np.abs(theirs[known]).max(initial=0) + terms
    return difference / (torch.finfo(dtype).eps * size) if difference else 0.0


# PyTorch's samples


def theirs(name, arguments):
    """PyTorch's y, gradients and running statistics, and the dy they are for."""
    arguments = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    leaves = {"dx": "input", "dgamma": "weight", "dbeta": "bias"}
    leaves = {k: arguments[v].requires_grad_() for k, v in leaves.items() if arguments.get(v) is not None}
    y = getattr(functional, name)(**arguments)
    dy = torch.randn_like(y)
    y.backward(dy)
    results = {"y": y} | {k: v.grad for k, v in leaves.items()}
    results |= {k: arguments[k] for k in ("running_mean", "running_var") if arguments.get(k) is not None}
    return {k: array(v) for k, v in results.items()}, array(dy)


def ours(name, arguments, dy):
    """The same from bncpu, with the 1/std in use. PyTorch's momentum is 1 minus ours, its ddof is 1."""
    x, gamma, beta = (array(arguments.get(k)) for k in ("input", "weight", "bias"))
    eps = arguments["eps"]
    running = {k: array(arguments.get(k)) for k in ("running_mean", "running_var")}
    has_running = running["running_mean"] is not None
    with_batch = arguments.get("training", arguments.get("use_input_stats", True))
    shift = {} if name == "rms_norm" else {"beta": beta}
    backward = getattr(bncpu, f"{name}_backward")
    if not with_batch:
        mean, var = running.values()
        y = bncpu.batch_norm(x, mean, var, gamma, beta, eps=eps)
        saved = bncpu.SavedStatistics.from_variance(mean, var, eps=eps)
        backward = bncpu.batch_norm_backward_frozen
    elif name in ("batch_norm", "instance_norm"):
        update = {"momentum": 1 - arguments["momentum"], "ddof": 1} if has_running else {}
        y, saved = getattr(bncpu, f"{name}_forward")(x, gamma, beta, eps=eps, **running, **update)
    elif name == "group_norm":
        y, saved = bncpu.group_norm_forward(x, arguments["num_groups"], gamma, beta, eps=eps)
    elif name == "layer_norm":
        y, saved = bncpu.layer_norm_forward(x, tuple(arguments["normalized_shape"]), gamma, beta, eps=eps)
    else:
        eps = torch.finfo(arguments["input"].dtype).eps if eps is None else eps
        y, saved = bncpu.rms_norm_forward(x, tuple(arguments["normalized_shape"]), gamma, eps=eps)
    gradients = backward(dy, x, saved, gamma, **shift)
    results = {"y": y} | dict(zip(("dx", "dgamma", "dbeta"), gradients, strict=False))
    return results | (running if has_running else {}), saved.invstd


def sizes(arguments, dy, invstd):
    """The largest term of each result."""

    def largest(values):
        return 0.0 if values is None else float(np.abs(values).max(initial=0))

    x, gamma, beta = (array(arguments.get(k)) for k in ("input", "weight", "bias"))
    gamma = 1.0 if gamma is None else largest(gamma)
    x_hat = largest(x) * largest(invstd)
    return {
        "y": x_hat * gamma + largest(beta),
        "dx": largest(dy) * gamma * largest(invstd),
        "dgamma": largest(dy) * x_hat,
        "dbeta": largest(dy),
        "running_mean": largest(x),
        "running_var": largest(x) ** 2,
    }


def compare(name, arguments, dtype):
    """The largest error of one sample, over all that PyTorch returns."""
    expected, dy = theirs(name, arguments)
    results, invstd = ours(name, arguments, dy)
    terms = sizes(arguments, dy, invstd)
    return max(error(results[k], v, terms[k], dtype) for k, v in expected.items())


def check_samples(name, dtype):
    """Errors over every sample, and the reasons of those we refuse."""
    op = next(op for op in op_db if op.name == f"nn.functional.{name}")
    signature = inspect.signature(getattr(functional, name))
    errors, refused = [], []
    for sample in op.reference_inputs("cpu", dtype, requires_grad=True):
        bound = signature.bind(sample.input, *sample.args, **sample.kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        try:
            errors.append(compare(name, arguments, dtype))
        except (TypeError, ValueError) as reason:
            refused.append(f"{name} of {tuple(sample.input.shape)}: {reason}")
            momentum = arguments.get("momentum", 0)
            if not 0 <= momentum <= 1:  # only the update is refused: compare the rest
                errors.append(compare(name, arguments | {"running_mean": None, "running_var": None}, dtype))
    return errors, refused


# Running statistics

MOMENTA = (0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0)
SHAPES = ((8, 5), (4, 5, 6), (4, 5, 3, 4), (2, 5, 3, 2, 4))


def check_steps(momentum, shape, dtype, steps=50):
    """The largest error of y and of the running statistics, over training steps on data that drift."""
    expected = [torch.zeros(shape[1], dtype=dtype), torch.ones(shape[1], dtype=dtype)]
    running = [array(a) for a in expected]
    worst = 0.0
    for step in range(steps):
        x = torch.randn(shape, dtype=dtype) * (1 + step / 10) + step / 10
        y_expected = functional.batch_norm(x, *expected, training=True, momentum=momentum)
        y, _ = bncpu.batch_norm_forward(
            array(x), running_mean=running[0], running_var=running[1], momentum=1 - momentum, ddof=1
        )
        pairs = ((y, array(y_expected)), (running[0], array(expected[0])), (running[1], array(expected[1])))
        worst = max(worst, *(error(a, b, 1.0, dtype) for a, b in pairs))
    return worst


# Finite differences

BACKWARD = {"batch_norm_frozen": bncpu.batch_norm_backward_frozen}
# Function, shape of x, shape of gamma, geometry of the forward pass, of which channel_axis is the backward's too.
DIFFERENCES = [
    ("batch_norm", (7, 3), (3,), {}),
    ("batch_norm", (3, 2, 2, 3), (2,), {}),
    ("batch_norm", (3, 2, 2, 3), (3,), {"channel_axis": -1}),
    ("batch_norm_frozen", (5, 3, 2), (3,), {}),
    ("layer_norm", (4, 6), (6,), {"normalized_shape": 6}),
    ("layer_norm", (3, 2, 4), (2, 4), {"normalized_shape": (2, 4)}),
    ("layer_norm", (2, 4, 3), (4,), {"normalized_shape": 4, "channel_axis": 1}),
    ("instance_norm", (2, 3, 2, 3), (3,), {}),
    ("instance_norm", (2, 2, 3, 3), (3,), {"channel_axis": -1}),
    ("group_norm", (3, 4, 3), (4,), {"n_groups": 2}),
    ("group_norm", (3, 3, 4), (4,), {"n_groups": 2, "channel_axis": -1}),
    ("rms_norm", (4, 6), (6,), {"normalized_shape": 6}),
    ("rms_norm", (2, 4, 3), (4,), {"normalized_shape": 4, "channel_axis": 1}),
]
FUSED = tuple(itertools.product((None, "relu"), (False, True)))
DIFFERENCE_EPS = 0.1


def forward(function, arrays, geometry, activation):
    """Y and what is saved. The frozen statistics are constants."""
    if function == "batch_norm_frozen":
        mean, var = np.linspace(-1, 1, arrays["gamma"].size), np.linspace(0.5, 2, arrays["gamma"].size)
        y = bncpu.batch_norm(**arrays, mean=mean, var=var, eps=DIFFERENCE_EPS, activation=activation)
        return y, bncpu.SavedStatistics.from_variance(mean, var, eps=DIFFERENCE_EPS)
    return getattr(bncpu, f"{function}_forward")(**arrays, **geometry, eps=DIFFERENCE_EPS, activation=activation)


def slope(loss, values, h=1e-3):
    """Gradient of a loss by differences of fourth order."""
    result = np.empty_like(values)
    for i in np.ndindex(values.shape):
        kept = values[i]
        result[i] = 0.0
        for steps, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            values[i] = kept + steps * h
            result[i] += weight * loss() / (12 * h)
        values[i] = kept
    return result


def check_differences(function, shape, parameters, geometry, activation, with_residual, rng):
    """The largest difference between a gradient and the slope, as a fraction of the largest gradient."""
    names = ["x", "gamma", *(["beta"] if function != "rms_norm" else []), *(["residual"] if with_residual else [])]
    while True:
        arrays = {k: rng.standard_normal(parameters if k in ("gamma", "beta") else shape) for k in names}
        before, _ = forward(function, arrays, geometry, None)
        # A kink of relu within reach of a step has no slope; and neither side may be rare.
        if activation is None or (np.abs(before).min() > 0.02 and 0.2 < np.mean(before > 0) < 0.8):
            break
    dy = rng.standard_normal(shape)
    backward = BACKWARD.get(function) or getattr(bncpu, f"{function}_backward")
    axis = {k: v for k, v in geometry.items() if k == "channel_axis"}
    _, saved = forward(function, arrays, geometry, activation)
    gradients = backward(dy, saved=saved, activation=activation, **arrays, **axis)
    errors = []
    for name, gradient in zip(names, gradients, strict=True):
        expected = slope(lambda: np.sum(dy * forward(function, arrays, geometry, activation)[0]), arrays[name])
        errors.append(np.abs(gradient - expected).max() / np.abs(expected).max())
    return np.max(errors)


def row(label, errors, tolerance, refused=0):
    """Print one line of the table; true if all is well."""
    worst = np.max(errors)  # NaN if one is
    passed = bool(worst <= tolerance)
    verdict = "pass" if passed else "FAIL"
    print(f"{label:<38}{len(errors):>6}{refused:>9}{worst:>12.3g}{tolerance:>11.3g}  {verdict}")
    return passed


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    reasons, passed = [], True
    print(f"PyTorch {torch.__version__}, bncpu {bncpu.__version__}\n")
    print(f"{'':<38}{'cases':>6}{'refused':>9}{'error':>12}{'tolerance':>11}")
    for name, dtype in itertools.product(NORMS, DTYPES):
        errors, refused = check_samples(name, dtype)
        passed &= row(f"{name}, {str(dtype)[6:]}", errors, SAMPLE_TOLERANCE, len(refused))
        reasons += refused
    for dtype in DTYPES:
        errors = [check_steps(*case, dtype) for case in itertools.product(MOMENTA, SHAPES)]
        passed &= row(f"batch_norm, 50 steps, {str(dtype)[6:]}", errors, STEP_TOLERANCE)
    for function, cases in itertools.groupby(DIFFERENCES, lambda case: case[0]):
        errors = [check_differences(*case, *fused, rng) for case in cases for fused in FUSED]
        passed &= row(f"{function}, finite differences", errors, DIFFERENCE_TOLERANCE)
    print("\nErrors are in units of epsilon, those of finite differences fractions of the largest gradient.")
    print("Refused by contract, with how often:")
    for reason, count in Counter(reasons).items():
        print(f"  {count}  {reason}")
    sys.exit(not passed)
