"""The same bits on every platform, processor, thread count and build: one list of SHA-256 sums.

Only IEEE operations (+ - * / sqrt) stand between the generator's raw bits and these sums. halflife is left
out: its powers come from the platform's mathematical library.

Bits changed on purpose: 2026-11-29, before 0.1.0, sums of rows alternate between the four quarters of a block.
"""

import hashlib

import numpy as np
import pytest
from arrays import uniform_bits

import bncpu
from bncpu import BatchNormTransformer, batch_norm, batch_norm_backward, batch_norm_forward

SUMS = {
    ("fit", "float32"): "68bcd562accf8517",
    ("fit", "float64"): "82bd5386704c145d",
    ("fit, F order", "float32"): "21c972980386250d",
    ("fit, F order", "float64"): "d755d0a6725a79b5",
    ("momentum", "float32"): "82838d6558348eba",
    ("momentum", "float64"): "f1439b119dc348e5",
    ("missing and weights", "float32"): "deab70dc32dceb64",
    ("missing and weights", "float64"): "f71f9bb1d552aebf",
    ("forward", "float32"): "fa1f7075022b593e",
    ("forward", "float64"): "6e74a4996f3e6b95",
    ("backward", "float32"): "c742f5ea75c9a422",
    ("backward", "float64"): "ffb495fa2d15fd4a",
    ("layer, RMS, instance, group norm", "float32"): "6d1eea94cdcb75b7",
    ("layer, RMS, instance, group norm", "float64"): "01e96f7128dcf8c2",
    ("big and streamed", "float32"): "314152f1ffdd60ed",
    ("big and streamed", "float64"): "86871f184b72f4d9",
}


def rows(dtype, n=3001, n_features=37):
    return uniform_bits(1, (n, n_features), dtype) * dtype(8) + np.arange(n_features, dtype=dtype)


def images(dtype):
    return uniform_bits(2, (6, 5, 13, 11), dtype) - dtype(0.25)


def stream(dtype, **parameters):
    bn = BatchNormTransformer(**parameters)
    for batch in np.array_split(rows(dtype), 7):
        bn.partial_fit(batch)
    return [bn.running_mean_, bn.running_var_, bn.transform(rows(dtype)), bn.inverse_transform(rows(dtype))]


def with_gaps(dtype):
    X = rows(dtype)
    X[uniform_bits(3, X.shape) < 0.1] = np.nan
    bn = BatchNormTransformer().fit(X, sample_weight=uniform_bits(4, len(X)))
    return [bn.running_mean_, bn.running_var_, np.nan_to_num(bn.transform(X))]


def forward(dtype):
    gamma, beta, z = uniform_bits(5, 5), uniform_bits(6, 5), uniform_bits(7, (6, 5, 13, 11), dtype)
    running = [np.zeros(5), np.ones(5)]
    y, saved = batch_norm_forward(
        images(dtype), gamma, beta, running_mean=running[0], running_var=running[1], residual=z, activation="relu"
    )
    return [y, *saved, *running, batch_norm(images(dtype), *running, gamma, beta)]


def backward(dtype):
    gamma, beta = uniform_bits(5, 5), uniform_bits(6, 5)
    x, dy, z = (
        images(dtype),
        uniform_bits(8, (6, 5, 13, 11), dtype) - dtype(0.5),
        uniform_bits(7, (6, 5, 13, 11), dtype),
    )
    results = []
    for axis, arrays in ((1, (x, dy, z)), (-1, [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy, z)])):
        x, dy, z = arrays
        options = dict(activation="relu", residual=z - dtype(1), channel_axis=axis)
        _, saved = batch_norm_forward(x, gamma, beta, **options)
        results += batch_norm_backward(dy, x, saved, gamma, beta=beta, **options)
    return results


def other_norms(dtype):
    x, dy = images(dtype), uniform_bits(8, (6, 5, 13, 11), dtype) - dtype(0.5)
    results = []
    for name, argument, n in (("layer", [11], 11), ("rms", [11], 11), ("instance", [], 5), ("group", [1], 5)):
        forward, gradient = getattr(bncpu, f"{name}_norm_forward"), getattr(bncpu, f"{name}_norm_backward")
        gamma = uniform_bits(9, n)
        y, saved = forward(x, *argument, gamma)
        results += [y, saved.invstd, *gradient(dy, x, saved, gamma)]
    return results


CASES = {
    "fit": lambda dtype: stream(dtype),
    "fit, F order": lambda dtype: [BatchNormTransformer().fit_transform(np.asfortranarray(rows(dtype)))],
    "momentum": lambda dtype: stream(dtype, momentum=0.9, eps=1e-5, ddof=1),
    "missing and weights": with_gaps,
    "forward": forward,
    "backward": backward,
    "layer, RMS, instance, group norm": other_norms,
    "big and streamed": lambda dtype: [BatchNormTransformer().fit_transform(rows(dtype, 120_000, 41))],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_every_other_platform(case, dtype, isa):
    digest = hashlib.sha256()
    for a in CASES[case](dtype):
        digest.update(np.ascontiguousarray(a).tobytes())
    assert digest.hexdigest()[:16] == SUMS[case, np.dtype(dtype).name]
