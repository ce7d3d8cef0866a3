"""Bad input gets an error that names the argument, what was expected and what came, and changes nothing."""

import pickle

import array_api_strict as xp
import numpy as np
import pytest
from arrays import GOOD, MODES, named, normal, polars, with_value
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone

from bncpu import BatchNormTransformer

NAMED = named()

# ---- the transformer ----

REFUSED = {
    "wrong width": (lambda t: t.partial_fit(GOOD[:, :2]), "X has 2 features, but BatchNormTransformer is expecting 3"),
    "one dimension": (lambda t: t.partial_fit(GOOD[0]), "Expected 2D array, got 1D array"),
    "three dimensions": (lambda t: t.partial_fit(GOOD[None]), "Found array with dim 3"),
    "no rows": (lambda t: t.partial_fit(GOOD[:0]), r"Found array with 0 sample\(s\)"),
    "infinity": (lambda t: t.partial_fit(with_value(7, 1, np.inf)), r"contains infinity .* row\(s\) 7, column\(s\) 1"),
    "minus infinity, float32": (lambda t: t.partial_fit(with_value(0, 0, -np.inf, "f4")), "contains infinity"),
    "infinity in fit": (lambda t: t.fit(with_value(0, 2, np.inf)), r"row\(s\) 0, column\(s\) 2"),
    "other names": (lambda t: t.fit(NAMED.assign(c=np.inf)), r"contains infinity .*column\(s\) 2 \('c'\)"),
    "overflowing variance": (lambda t: t.partial_fit(with_value(3, 1, 1e200)), "variance of X overflows float64"),
    "variance overflowing with what was seen": (
        lambda t: t.fit([[0.0, 0.0, 1e308]] * 2 + [[0.0, 0.0, -1e308]]),
        "variance of X overflows float64",
    ),
    "strings": (lambda t: t.partial_fit(np.array([["a", "b", "c"]])), "could not convert string to float"),
    "complex": (lambda t: t.partial_fit(GOOD + 1j), "Complex data not supported"),
    "negative weight": (lambda t: t.partial_fit(GOOD, sample_weight=-np.ones(20)), "Negative values in data"),
    "infinite weight": (lambda t: t.partial_fit(GOOD, sample_weight=np.full(20, np.inf)), "contains infinity"),
    "weights of the wrong length": (lambda t: t.partial_fit(GOOD, sample_weight=np.ones(19)), "sample_weight.shape"),
    "no weight": (lambda t: t.fit(GOOD, sample_weight=np.zeros(20)), "at least one non-zero number"),
    "infinity in transform": (lambda t: t.transform(with_value(5, 2, np.inf)), r"row\(s\) 5, column\(s\) 2"),
    "width in transform": (lambda t: t.transform(GOOD[:, :1]), "X has 1 features"),
    "width in inverse": (lambda t: t.inverse_transform(GOOD[:, :1]), "X has 1 features"),
    "out of another shape": (
        lambda t: t.transform(GOOD, out=np.zeros((20, 2))),
        "out must have the shape",
    ),
    "merge with another width": (
        lambda t: t.merge(BatchNormTransformer().fit(GOOD[:, :2])),
        "other must have 3 features, got 2|cumulative statistics",
    ),
}


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "unfitted"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_call_leaves_every_byte(case, mode, fitted):
    call, message = REFUSED[case]
    bn = BatchNormTransformer(**MODES[mode])
    if fitted:
        bn.fit(GOOD)
    before, keys = pickle.dumps(bn), list(vars(bn))
    needs_fit = not fitted and any(word in case for word in ("transform", "inverse", "width", "out of", "merge"))
    try:
        call(bn)
    except Exception as error:
        expected = "not fitted yet|cumulative|" + message if needs_fit else message
        with pytest.raises(type(error), match=expected):
            raise
    else:
        assert needs_fit, "accepted"
        return
    assert pickle.dumps(bn) == before
    assert list(vars(bn)) == keys


def test_sparse_data_cannot_be_shifted():
    S = sparse.csr_array(np.eye(3))
    bn = BatchNormTransformer(with_mean=False).fit(S)
    for call in (BatchNormTransformer().fit, BatchNormTransformer().fit(np.eye(3)).transform):
        with pytest.raises(ValueError, match="Cannot center sparse matrices: pass `with_mean=False` instead"):
            call(S)
    with pytest.raises(ValueError, match="Cannot uncenter sparse matrices"):
        BatchNormTransformer().fit(np.eye(3)).inverse_transform(S)
    with pytest.raises(ValueError, match="beta must be 0 everywhere"):
        BatchNormTransformer(with_mean=False, beta=[0, 1, 0]).fit(S)
    BatchNormTransformer(with_mean=False, gamma=[1, 2, 3], beta=[0, 0, 0]).fit_transform(S)
    with pytest.raises(TypeError, match="out is only for dense NumPy input, got a sparse matrix"):
        bn.transform(S, out=np.empty((3, 3)))
    with pytest.raises(TypeError, match="channel_axis is for dense arrays"):
        BatchNormTransformer(with_mean=False, channel_axis=1).fit(S)
    S.data[1] = np.inf
    for call in (bn.partial_fit, bn.transform):
        with pytest.raises(ValueError, match=r"contains infinity.*row\(s\) 1, column\(s\) 1"):
            call(S)


def test_channel_axis_refuses_what_it_cannot_mean():
    X = normal(52, (4, 3, 5))
    bn = BatchNormTransformer(channel_axis=1).fit(X)
    for call, error, message in [
        (
            lambda: BatchNormTransformer(channel_axis=3).fit(X),
            ValueError,
            r"channel_axis=3 must name an axis of X, got shape \(4, 3, 5",
        ),
        (
            lambda: BatchNormTransformer(channel_axis=0).fit(X[0, 0]),
            ValueError,
            r"at least 2 dimensions, got shape \(5,\)",
        ),
        (lambda: BatchNormTransformer(channel_axis=0.5).fit(X), TypeError, "channel_axis must be an instance of"),
        (
            lambda: bn.transform(X[:, :2]),
            ValueError,
            r"expecting 3 features as input: channel_axis=1 of shape \(4, 2, 5\)",
        ),
        (lambda: bn.inverse_transform(X[:, :2]), ValueError, r"channel_axis=1 of shape \(4, 2, 5\)"),
        (lambda: BatchNormTransformer().fit(X), ValueError, r"dim 3, .*for shape \(4, 3, 5\) say by channel_axis"),
        (lambda: bn.fit(X[:0]), ValueError, r"at least one value, got shape \(0, 3, 5\)"),
        (lambda: bn.transform(X, out=np.empty((3, 4, 5))), ValueError, "out must have the shape of the input"),
        (lambda: clone(bn).set_output(transform="pandas").fit_transform(X), ValueError, "the result is an array"),
        (lambda: BatchNormTransformer().fit(X[:, :, 0]).merge(bn), ValueError, "channel_axis=None, got 1"),
    ]:
        before = pickle.dumps(bn)
        with pytest.raises(error, match=message):
            call()
        assert pickle.dumps(bn) == before
    X[2, 1, 3] = np.inf
    for call in (bn.fit, bn.transform):
        with pytest.raises(ValueError, match=r"contains infinity.*sample\(s\) 2, channel\(s\) 1"):
            call(X)
    one = BatchNormTransformer(channel_axis=1, momentum=0.9).fit(normal(53, (1, 3, 5)))  # 5 values per channel
    assert one.n_samples_seen_ == 5
    assert BatchNormTransformer(channel_axis=-1).fit(GOOD).transform(GOOD[:, None, None, :]).shape == (20, 1, 1, 3)
    assert BatchNormTransformer(channel_axis=1).fit(NAMED).transform(NAMED).shape == (20, 3)


def test_an_array_out_of_reach_is_refused_by_name():
    class Elsewhere:
        shape, dtype, device = (2, 2), np.dtype(float), "gpu"

        def __array_namespace__(self, api_version=None):
            return xp

        def __dlpack__(self, **_):
            raise BufferError("it lies on a GPU")

        def __dlpack_device__(self):
            return 2, 0

    with config_context(array_api_dispatch=True):
        with pytest.raises(TypeError, match="X must be an array in CPU memory, got Elsewhere: it lies on a GPU"):
            BatchNormTransformer().fit(Elsewhere())
        with pytest.raises(TypeError, match="sample_weight must be an array in CPU memory, got Elsewhere"):
            BatchNormTransformer().fit(np.eye(2), sample_weight=Elsewhere())


@pytest.mark.parametrize("fitted", [False, True])
def test_a_batch_refused_half_way_leaves_every_byte(fitted):
    bn = BatchNormTransformer(batch_size=6)
    if fitted:
        bn.fit(NAMED)
    before = pickle.dumps(bn)
    with pytest.raises(ValueError, match=r"contains infinity.*row\(s\) 13, column\(s\) 1"):
        bn.fit(with_value(13, 1, np.inf))
    with pytest.raises(ValueError, match=r"row\(s\) 19, column\(s\) 0"):
        bn.fit(with_value(19, 0, np.inf, "f4"))
    with pytest.raises(ValueError, match=r"row\(s\) 13, column\(s\) 1"):
        BatchNormTransformer(batch_size=6, halflife=5).fit(with_value(13, 1, np.inf))
    faded = np.full((5000, 2), np.nan)  # looked at in halves, as the first rows have faded
    faded[:9], faded[4000, 0] = GOOD[:9, :2], np.inf
    with pytest.raises(ValueError, match=r"contains infinity.*row\(s\) 4000, column\(s\) 0"):
        BatchNormTransformer(halflife=1).partial_fit(faded)
    for empty in (GOOD[:0], GOOD[:0].tolist(), NAMED[:0], polars().DataFrame(GOOD[:0])):
        with pytest.raises(ValueError, match=r"0 sample|Expected 2D array"):
            bn.fit(empty)
    assert pickle.dumps(bn) == before


@pytest.mark.parametrize("fitted", [False, True])
def test_columns_of_a_data_frame_that_hold_no_numbers_are_named(fitted):
    table = NAMED.copy()
    table[NAMED.columns[1]] = [f"C{i}" for i in range(len(table))]
    t = BatchNormTransformer()
    if fitted:
        t.fit(NAMED)
    before = pickle.dumps(t)
    with pytest.raises(ValueError, match=rf"^X must hold numbers, got column\(s\) '{NAMED.columns[1]}' \(.*number"):
        t.partial_fit(table)
    assert pickle.dumps(t) == before
    digits = NAMED.astype(str)  # converted, as ever
    means = [BatchNormTransformer().fit(table).mean_ for table in (digits, NAMED)]
    np.testing.assert_allclose(*means, rtol=1e-12)  # the order in memory decides the last bits


def test_inverse_transform_refuses_a_zero_gamma():
    bn = BatchNormTransformer(gamma=[1, 0, 2]).fit(normal(30, (9, 3)))
    with pytest.raises(ValueError, match=r"non-zero gamma, got 0 in column\(s\) 1"):
        bn.inverse_transform(np.zeros((1, 3)))
