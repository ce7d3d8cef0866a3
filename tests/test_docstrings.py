"""Docstrings say the same of the same parameter: most of their lines stand in several."""

import inspect
import re

import pytest

import bncpu

PUBLIC = {name: f for name in bncpu.__all__ if inspect.isfunction(f := getattr(bncpu, name))}
NORMS = [name for name in PUBLIC if name.endswith("_norm")]
FORWARD = [name for name in PUBLIC if name.endswith("_norm_forward")]
BACKWARD = [name for name in PUBLIC if "_norm_backward" in name]
OF_GROUPS = [name for name in PUBLIC if name.startswith(("group_norm", "instance_norm"))]
OF_LAYERS = [name for name in PUBLIC if name.startswith(("layer_norm", "rms_norm"))]
OF_BATCHES = [name for name in PUBLIC if name.startswith("batch_norm")]

# Which functions say the same, and of what.
AGREE = [
    (PUBLIC, "n_threads momentum n_groups normalized_shape dy"),
    (NORMS, "activation residual out"),
    (FORWARD, "activation residual out"),
    ([*NORMS, *FORWARD], "activation residual"),
    (BACKWARD, "activation residual out"),
    (OF_BATCHES, "channel_axis"),
    (OF_GROUPS, "channel_axis running_mean running_var ddof"),
    (["batch_norm", "batch_norm_forward"], "gamma beta"),
    (set(OF_GROUPS) - set(BACKWARD), "x gamma beta eps channel_axis"),
    (set(OF_LAYERS) - set(BACKWARD), "x channel_axis"),
    (["layer_norm", "layer_norm_forward"], "gamma beta eps"),
    (["rms_norm", "rms_norm_forward"], "gamma eps"),
    *((set(family) & set(BACKWARD), "x channel_axis beta") for family in (OF_BATCHES, OF_GROUPS)),
    (set(OF_LAYERS) & set(BACKWARD), "x channel_axis gamma"),
    (set(BACKWARD) - {"batch_norm_backward_sums"} - set(OF_LAYERS), "gamma"),
    (["fold_linear", "fold_conv"], "mean var gamma beta eps"),
]


def described(function):
    """Type and description of each parameter in a docstring."""
    _, _, rest = inspect.getdoc(function).partition("Parameters\n----------\n")
    section = re.split(r"\n\n[A-Z][A-Za-z ]+\n-+\n", rest)[0]
    found = {}
    for entry in re.split(r"\n(?=\S)", section):
        head, _, text = entry.partition("\n")
        names, _, kind = head.partition(" : ")
        found |= dict.fromkeys(names.lstrip("*").split(", "), (kind, " ".join(text.split())))
    return found


@pytest.mark.parametrize(("functions", "parameters"), AGREE, ids=[f"{len(f)}: {p}" for f, p in AGREE])
def test_docstrings_say_the_same_of_the_same_parameter(functions, parameters):
    for parameter in parameters.split():
        said = {name: text for name in sorted(functions) if (text := described(PUBLIC[name]).get(parameter))}
        assert len(said) > 1, parameter
        first = next(iter(said))
        for name in said:
            assert said[name] == said[first], f"{parameter} of {name} and of {first}"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_describes_the_parameters_of_its_signature(name):
    if inspect.signature(PUBLIC[name]).parameters:
        assert list(described(PUBLIC[name])) == list(inspect.signature(PUBLIC[name]).parameters)
