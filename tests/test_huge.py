"""More than 2**31 values in one array, beyond indices of 32 bits: 9 GB of memory, so only with BNCPU_THOROUGH=1."""

import gc

import numpy as np
import pytest
from arrays import examples

from bncpu import BatchNormTransformer, batch_norm, batch_norm_backward, batch_norm_forward, layer_norm

pytestmark = [
    pytest.mark.skipif(not examples(0, 1), reason="takes 9 GB of memory; set BNCPU_THOROUGH=1"),
    pytest.mark.timeout(900),
]

PATTERN = np.arange(-3, 4, dtype=np.float32)  # mean 0, variance 4
N_VALUES = 2**31 + 7 * 64 * 49 * 64


def huge(*shape):
    """The pattern over and over along the first axis, which is the last to be filled."""
    assert np.prod(shape, dtype=object) > 2**31
    gc.collect()
    x = np.empty(shape, np.float32)
    for k in range(7):
        x[k::7] = PATTERN[k]
    return x


def assert_normalized(y, n_rows, scale=0.5):
    """`y` is the pattern, scaled, at the start, in the middle, across 2**31 values and at the end."""
    y = y.reshape(n_rows, -1)
    middle = 2**31 // y.shape[1]
    for start in (0, n_rows // 2, middle - 8, n_rows - 16):
        rows = np.arange(start, start + 16)
        expected = np.broadcast_to(scale * PATTERN[rows % 7, None], (16, y.shape[1]))
        np.testing.assert_allclose(y[rows], expected, rtol=1e-5, atol=1e-5)


def test_rows():
    n = N_VALUES // 16
    x = huge(n, 16)
    bn = BatchNormTransformer(eps=0).fit(x)
    assert bn.n_samples_seen_ == n
    np.testing.assert_allclose(bn.running_mean_, 0, atol=1e-7)
    np.testing.assert_allclose(bn.running_var_, 4, rtol=1e-7)
    assert_normalized(bn.transform(x, copy=False), n)
    assert_normalized(batch_norm(x, np.zeros(16), np.full(16, 0.25), eps=0, out=x), n, 1.0)


@pytest.mark.parametrize("shape", [(N_VALUES // (64 * 49), 64, 7, 7), (7 * 150, 2, 2**20)], ids=str)
def test_planes(shape):
    n = shape[0] - shape[0] % 7
    x = huge(n, *shape[1:])
    y, saved = batch_norm_forward(x, eps=0, out=x)
    np.testing.assert_allclose(saved.mean, 0, atol=1e-6)
    np.testing.assert_allclose(saved.invstd, 0.5, rtol=1e-6)
    assert_normalized(y, n)
    # The gradient of a batch with respect to itself is 0: it does not depend on shifts and scales.
    normalized = saved._replace(mean=np.zeros(shape[1]), invstd=np.ones(shape[1]))
    dx, dgamma, dbeta = batch_norm_backward(x, x, normalized, out=x)
    np.testing.assert_allclose(dgamma, n * np.prod(shape[2:], dtype=float), rtol=1e-6)
    np.testing.assert_allclose(dbeta, 0, atol=1e3)
    assert_normalized(dx, n, 0.0)


def test_samples_of_their_own():
    n, width = 7, 2**31 // 7 + 1
    x = huge(n, width)
    x[:, ::2] *= -1
    x[:, 0] += 1e-3
    y = layer_norm(x, width, out=x)
    np.testing.assert_allclose(np.abs(y[:, -9:]), np.broadcast_to(PATTERN[:, None] != 0, (n, 9)), atol=1e-2)
