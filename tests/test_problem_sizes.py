"""Batch normalization, forward and backward, at the problem sizes of oneDNN's tests, in both layouts."""

import re
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
from arrays import slow

from bncpu import _reference, batch_norm_backward, batch_norm_forward

DATA_MEANS = (0.0, -1e4, 1e6)
ALL_CHANNELS_UP_TO = 1 << 20  # values; of larger arrays, eight channels are compared, as each has its own statistics


def shape_of(descriptor):
    """(N, C, ...) of ``mb16ic128ih28iw28`` and the like."""
    sizes = {key: int(number) for key, number in re.findall(r"([a-z]+)(\d+)", descriptor)}
    depth = sizes.get("id")
    height = sizes.get("ih", depth)
    width = sizes.get("iw", height)
    return (sizes.get("mb", 2), sizes["ic"], *(n for n in (depth, height, width) if n is not None))


LINES = (Path(__file__).parent / "data" / "benchdnn_shapes.txt").read_text().splitlines()
DESCRIPTORS = [line for line in LINES if not line.startswith("#")]


# Larger ones are of the same forms.
QUICK = [descriptor for descriptor in DESCRIPTORS if prod(shape_of(descriptor)) <= 1 << 18]  # values


@cache
def drawn(seed):
    """As many numbers as the largest problem has."""
    largest = max(prod(shape_of(descriptor)) for descriptor in DESCRIPTORS)
    return np.random.default_rng(seed).standard_normal(largest, dtype=np.float32)


def test_the_grammar_is_read_as_it_is_meant():
    shapes = [shape_of(descriptor) for descriptor in ("ic32iw32", "ic256ih28", "ic16id12", "mb1ic19id4ih6iw6")]
    assert shapes == [(2, 32, 32), (2, 256, 28, 28), (2, 16, 12, 12, 12), (1, 19, 4, 6, 6)]
    assert len(DESCRIPTORS) == 30


@pytest.mark.parametrize("channel_axis", [1, -1], ids=["channels first", "channels last"])
@pytest.mark.parametrize("descriptor", [*QUICK, *slow(*(d for d in DESCRIPTORS if d not in QUICK))])
def test_training_equals_the_reference(descriptor, channel_axis):
    shape = shape_of(descriptor)
    n_channels, size = shape[1], prod(shape)
    if channel_axis == -1:
        shape = (shape[0], *shape[2:], n_channels)
    gamma, beta = np.random.default_rng(2).standard_normal((2, n_channels))
    whole = size <= ALL_CHANNELS_UP_TO
    some = np.unique(np.linspace(0, n_channels - 1, n_channels if whole else 8).astype(int))
    for dtype in ("float32", "float64") if whole else ("float32",):
        dy = drawn(1)[:size].reshape(shape).astype(dtype, copy=False)
        for data_mean in DATA_MEANS:
            x = np.add(drawn(0)[:size].reshape(shape), data_mean, dtype=dtype)
            if size == n_channels:
                with pytest.raises(ValueError, match="at least 2 values per channel, got 1"):
                    batch_norm_forward(x, gamma, beta, channel_axis=channel_axis)
                continue
            y, saved = batch_norm_forward(x, gamma, beta, channel_axis=channel_axis)
            dx, dgamma, dbeta = batch_norm_backward(dy, x, saved, gamma, channel_axis=channel_axis)
            x, dy_of, y, dx = (np.take(a, some, axis=channel_axis) for a in (x, dy, y, dx))
            per = gamma[some], beta[some]
            expected, mean, var = _reference.batch_norm_forward(x, *per, channel_axis=channel_axis)
            invstd = _reference.inverse_std(var)

            # Eight roundings of a term of the largest size. Beside them, float64 sums of up to 100,352 values: their
            # roundings mostly cancel.
            eps, sums = np.finfo(dtype).eps, 64 * np.finfo(np.float64).eps
            np.testing.assert_allclose(saved.mean[some], mean, rtol=sums, atol=sums * np.abs(x).max())
            np.testing.assert_allclose(saved.invstd[some], invstd, rtol=sums)
            np.testing.assert_allclose(y, expected, rtol=0, atol=(4 * eps + sums) * np.abs(expected).max())

            own = saved._replace(mean=saved.mean[some], invstd=saved.invstd[some], mean_lo=saved.mean_lo[some])
            wanted = _reference.batch_norm_backward(dy_of, x, own, per[0], channel_axis=channel_axis)
            # |x_hat| < 6 and |mean(dy * x_hat)| <= 1, so that no term of dx is above 6 times max|dy| * gamma * invstd.
            largest = np.abs(dy_of).max() * np.abs(per[0]).max() * invstd.max()
            np.testing.assert_allclose(dx, wanted[0], rtol=0, atol=16 * eps * largest)
            terms = size / n_channels * np.abs(dy_of).max()
            np.testing.assert_allclose(dgamma[some], wanted[1], rtol=0, atol=6 * sums * terms)
            np.testing.assert_allclose(dbeta[some], wanted[2], rtol=0, atol=sums * terms)
