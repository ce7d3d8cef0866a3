"""Everyone who takes part in the benchmarks computes the same thing as the reference."""

import math

import numpy as np
import pytest

from bncpu import BatchNormTransformer, Moments, _contenders, _passes, _reference
from bncpu._contenders import EPS, OURS, PEERS, SLOW_TO_PREPARE, TASKS, Case, Data

SHAPES = {"rows": (50, 7), "NCHW": (4, 5, 6, 3), "NHWC": (4, 6, 3, 5)}
CASES = [
    Case(operation, SHAPES[layout], layout, dtype, fresh)
    for operation in TASKS
    for layout in SHAPES
    for dtype in ("float32", "float64")
    for fresh in (False, True)
    if layout == "rows" or operation not in ("fit", "partial_fit")
]
ENTRANTS = {OURS: _contenders.ours, **{name: make for name, make in PEERS.items() if name not in SLOW_TO_PREPARE}}

# Values are near 1 and sums have some 70 terms, which peers add in the data's type.
TOLERANCE = 64


def expected(data):
    """What the operation gives, of the reference; None where a call returns its object."""
    case = data.case
    axis = case.channel_axis
    y, mean, var = _reference.batch_norm_forward(data.x, data.gamma, data.beta, eps=EPS, channel_axis=axis)
    match case.operation:
        case "transform":
            return _reference.batch_norm(data.x, data.mean, data.var, eps=EPS, channel_axis=axis)
        case "batch_norm":
            return _reference.batch_norm(data.x, data.mean, data.var, data.gamma, data.beta, eps=EPS, channel_axis=axis)
        case "batch_norm_moments" | "fit":
            return np.stack([mean, var])
        case "batch_norm_forward":
            return y
        case "batch_norm_backward":
            saved = mean, _reference.inverse_std(var, EPS)
            return _reference.batch_norm_backward(data.dy, data.x, saved, data.gamma, channel_axis=axis)[0]
    return None


@pytest.mark.parametrize("name", ENTRANTS)
def test_everyone_computes_what_the_reference_does(name):
    done = 0
    for case in CASES:
        data = Data(case)
        data.out[...] = np.nan
        try:
            call = ENTRANTS[name](data)
        except ImportError:
            return  # a peer that is not installed has no figures: test_bench
        if call is None:
            continue
        result, want = call(), expected(data)
        done += 1
        if want is None:
            continue
        if isinstance(result, Moments):
            result = result.mean, result.m2 / result.count
        elif hasattr(result, "mean_"):
            result = result.mean_, result.var_
        elif case.task == "statistics" and not isinstance(result, tuple):
            continue  # sklearnex keeps them to itself
        np.testing.assert_allclose(
            np.asarray(result), want, rtol=0, atol=TOLERANCE * np.finfo(case.dtype).eps, err_msg=str(case)
        )
    assert done


def test_ours_writes_into_out_unless_outputs_are_fresh_or_small_ones_of_the_estimator():
    for case in (
        Case("transform", (50, 7)),
        Case("transform", (50, 7), fresh=True),
        Case("transform", (300_000, 7)),
        Case("batch_norm", (50, 7)),
    ):
        data = Data(case)
        assert np.shares_memory(_contenders.ours(data)(), data.out) != case.makes_new
    assert Case("transform", (50, 7)).makes_new
    assert not Case("transform", (300_000, 7)).makes_new


def test_the_layer_normalizes_images_too():
    data = Data(Case("transform", SHAPES["NCHW"], "NCHW"))
    fitted = BatchNormTransformer(channel_axis=1, eps=EPS).fit(data.x)
    assert fitted.n_features_in_ == 5
    assert _contenders.ours(data)().shape == data.x.shape


@pytest.mark.parametrize("n_threads", [1, None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operation", sorted(set(TASKS) - {"fit", "batch_norm_moments"}))
def test_small_calls_of_ours_are_measured_on_their_short_way(operation, dtype, n_threads, monkeypatch):
    call = _contenders.ours(Data(Case(operation, (32, 10), dtype=dtype), n_threads))
    call()
    for owner, long_way in ((_passes.Part, "_forms"), (BatchNormTransformer, "_apply"), (BatchNormTransformer, "_fit")):
        monkeypatch.setattr(owner, long_way, None)
    call()


def test_rows_are_named_and_measured_by_their_size():
    case = Case("batch_norm", (200_000, 256))
    assert case.label == "batch_norm 200k x 256"
    assert (case.unit, case.smallest().unit) == ("limit", "us")
    assert case.is_large and not Case("batch_norm", (65_536, 32)).is_large
    assert case.n_bytes == 4 * math.prod(case.shape)
    assert Case("transform", (10**7, 8), fresh=True).label == "transform 10M x 8, no out="
    assert Case("batch_norm", (32, 56, 56, 64), "NHWC").channel_axis == 3


def test_arrays_from_memory_come_in_batches(monkeypatch):
    assert [len(batch) for batch in Data(Case("partial_fit", (100_000, 4))).batches] == [100_000]
    monkeypatch.setattr(_contenders, "LARGE_BYTES", 1_000_000)
    data = Data(Case("partial_fit", (100_000, 4)))
    assert [len(batch) for batch in data.batches] == [10_000] * 10
    scaler = PEERS["StandardScaler"](data)
    scaler()
    ours = _contenders.ours(data)
    ours()
