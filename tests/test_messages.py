"""Every message is one line, and short, however large what was given is: no array, list or text is printed whole."""

import inspect

import numpy as np
import pandas as pd
import polars as pl
import pytest

import bncpu
from bncpu import BatchNormDisplay, BatchNormTransformer

x = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
images = x[:, :, None] * np.ones(3, np.float32)
weight, mean, var = np.ones((30, 40, 3, 3)), np.zeros(40), np.ones(40)
saved = bncpu.batch_norm_forward(x)[1]
layer = {"x": x, "normalized_shape": 40}


class Long:
    def __repr__(self):
        return "\n".join(["long"] * 1000)


LARGE = {
    "a matrix": np.random.default_rng(1).standard_normal((300, 200)),
    "a vector": np.arange(1000) / 3,
    "texts": np.array(["a"] * 3000),
    "a list": list(range(3000)),
    "a list of lists": [[1.5] * 100] * 100,
    "a list of arrays": [np.arange(1000.0)] * 3,
    "a tuple": tuple(range(3000)),
    "a set": set(range(3000)),
    "a dict": {k: k for k in range(3000)},
    "a text": "long " * 1000,
    "an object": Long(),
}
CALLS = {
    "batch_norm": {"x": x, "mean": mean, "var": var},
    "batch_norm_forward": {"x": x},
    "batch_norm_backward": {"dy": x, "x": x, "saved": saved},
    "batch_norm_backward_frozen": {"dy": x, "x": x, "saved": bncpu.SavedStatistics(mean, var)},
    "batch_norm_backward_sums": {"dy": x, "x": x, "saved": saved},
    "batch_norm_moments": {"x": x},
    "merge": {},
    "fold_linear": {"weight": weight[:, :, 0, 0], "bias": None, "mean": mean, "var": var},
    "fold_conv": {"weight": weight, "bias": None, "mean": mean[:30], "var": var[:30]},
    "group_norm_forward": {"x": x, "n_groups": 4},
    "group_norm_backward": {"dy": x, "x": x, "saved": bncpu.group_norm_forward(x, 4)[1]},
    "instance_norm": {"x": images},
    "instance_norm_backward": {"dy": images, "x": images, "saved": bncpu.instance_norm_forward(images)[1]},
    "layer_norm_forward": layer,
    "layer_norm_backward": {"dy": x, "x": x, "saved": bncpu.layer_norm_forward(**layer)[1]},
    "rms_norm": layer,
    "rms_norm_backward": {"dy": x, "x": x, "saved": bncpu.rms_norm_forward(**layer)[1]},
    "set_buffer_limit": {"n_bytes": bncpu.set_buffer_limit(1 << 28)},
    "simplify": {},
}
bncpu.set_buffer_limit(CALLS["set_buffer_limit"]["n_bytes"])
METHODS = {
    "fit": {"X": x},
    "partial_fit": {"X": x},
    "fit_stream": {"batches": [x]},
    "transform": {"X": x},
    "inverse_transform": {"X": x},
    "merge": {},
    "report": {"X": x},
    "from_statistics": {"mean": mean, "var": var, "n_samples": 9},
    "from_torch": {"state_dict": {}},
    "from_keras": {"weights": [mean] * 4},
}


def says(call, *arguments, **named):
    """What a call raises, if it does, is one short line."""
    try:
        call(*arguments, **named)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        text = str(error)
        assert len(text) < 400 and "\n" not in text, text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("what", LARGE)
def test_a_function_prints_no_argument_whole(name, what):
    function, value = getattr(bncpu, name), LARGE[what]
    for parameter in inspect.signature(function).parameters:
        if name == "merge":
            says(function, value)
        else:
            says(function, **{**CALLS[name], parameter: value})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", LARGE)
def test_the_transformer_prints_no_argument_whole(what):
    value = LARGE[what]
    for parameter in inspect.signature(BatchNormTransformer).parameters:
        says(BatchNormTransformer(**{parameter: value}).fit, x)
    for name, arguments in METHODS.items():
        method = getattr(BatchNormTransformer().fit(x), name)
        for parameter in inspect.signature(method).parameters:
            says(method, **{**arguments, parameter: value})
    says(BatchNormTransformer().fit_stream, [value])
    says(BatchNormTransformer.from_statistics, [1.0], [1.0], 3, feature_names=value)
    for call in (BatchNormDisplay.from_estimator, BatchNormDisplay.from_stream):
        says(call, value, [x])


def test_names_of_columns_and_layers_are_printed_in_part():
    frame = pd.DataFrame({f"a name of a column, {k}": [1.0, 2.0] for k in range(2000)})
    t, name = BatchNormTransformer().fit(frame), "x" * 5000
    swapped = [*frame.columns[:1000], *frame.columns[:999:-1]]
    with pytest.raises(ValueError, match=r"names \['.* 1000', .*got \['.* 1999', .*, from feature 1000 on$") as refusal:
        t.merge(BatchNormTransformer().fit(frame[swapped]))
    assert len(str(refusal.value)) < 400
    with pytest.raises(ValueError, match=r"other must have the feature names \['a name.*, got None$"):
        t.merge(BatchNormTransformer().fit(frame.to_numpy()))
    for values in (["a", "b"], [np.inf, 1], pd.to_datetime(["2000-01-01", "2001-01-01"])):
        says(BatchNormTransformer().fit, frame.assign(**{name: values}))
    says(BatchNormTransformer.from_torch, {f"{k}.running_mean": 1 for k in range(3000)})
    says(BatchNormTransformer.from_torch, {tuple(range(3000)): 1})
    says(BatchNormTransformer.from_torch, {"running_mean": name, "running_var": [1.0]})
    for texts in ([[name]], np.array([[name]]), np.array([[name]], object)):
        with pytest.raises(ValueError, match=r"X must hold numbers, got 'xxx.* in row 0 of column 0") as refusal:
            BatchNormTransformer().fit(texts)
        assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "inverse_transform", "report"])
def test_what_to_do_with_the_name_of_a_file_and_with_one_axis_is_said(method, tmp_path):
    t = BatchNormTransformer().fit(x)
    for name in ("x.parquet", tmp_path / "x.csv", b"x.npy"):
        with pytest.raises(
            TypeError, match=r"X must be an array or a frame, got .*; read a file first, or .*`bncpu fit`"
        ):
            getattr(t, method)(name)
    (tmp_path / "x.csv").touch()
    with open(tmp_path / "x.csv") as file, pytest.raises(TypeError, match="read a file first"):
        getattr(t, method)(file)
    for data, what in ((x[0], r"1D array instead, of shape \(40,\)"), ([1, 2], r"1D .* \(2,\)"), (3.5, "0D array")):
        with pytest.raises(
            ValueError, match=rf"^Expected 2D array, got {what}.*Reshape your data: numpy.reshape\(X, \(-1, 1\)\)"
        ):
            getattr(t, method)(data)
    with pytest.raises(TypeError, match="X must be an array, a frame or a sparse matrix, got a dict"):
        getattr(t, method)({"a": [1, 2]})


@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_stream", "transform", "inverse_transform", "report"])
def test_a_query_of_polars_is_to_be_collected_first(method):
    query = pl.LazyFrame({"a": [1.0, 2.0], "b": [3.0, 5.0]})
    t = BatchNormTransformer().fit(query.collect())
    with pytest.raises(TypeError, match=r"^(X|batches) must be in memory, got a LazyFrame; collect\(\) it first$"):
        getattr(t, method)(query)


def test_gamma_in_the_place_of_normalized_shape_is_said_in_one_line():
    for function in (bncpu.layer_norm, bncpu.layer_norm_forward, bncpu.rms_norm, bncpu.rms_norm_forward):
        with pytest.raises(
            TypeError,
            match=r"^normalized_shape must be an integer or a tuple of integers, such as 40 for x of shape \(50, 40\); "
            r"got an array of shape \(40,\)\. gamma comes after it$",
        ):
            function(x, np.ones(40), np.zeros(40))


def test_a_state_file_that_is_not_there_is_said_in_one_line(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^there is no state file '.*9\.json'; `save` and `bncpu fit` write one$"
    ):
        BatchNormTransformer.load(tmp_path / "9.json")
