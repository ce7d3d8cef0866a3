"""Layers of PyTorch, Keras, Flax and ONNX become transformers that do the same; the frameworks are not needed."""

import copy
import pickle
import types

import numpy as np
import pytest

from bncpu import BatchNormTransformer, _reference, batch_norm_forward

RNG = np.random.default_rng(0)
MEAN, GAMMA, BETA = RNG.standard_normal((3, 5)) * 3
VAR = RNG.random(5) + 0.1
X = RNG.standard_normal((40, 5)) * 2 + MEAN
STATE = {
    "first.weight": GAMMA,
    "first.bias": BETA,
    "first.running_mean": MEAN,
    "first.running_var": VAR,
    "first.num_batches_tracked": np.array(12),
    "second.weight": np.ones((3, 5)),
}


class Tensor:
    """What a parameter of PyTorch on a device, in bfloat16, offers."""

    def __init__(self, a):
        self.a = a

    def detach(self):
        return self

    cpu = double = detach

    def numpy(self):
        return np.asarray(self.a, np.float64)

    def __array__(self, *args, **kwargs):
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize("kind", [np.asarray, list, Tensor])
def test_a_layer_of_pytorch_does_at_inference_what_it_did(kind):
    state = {name: a if a.ndim == 0 else kind(a) for name, a in STATE.items()}
    t = BatchNormTransformer.from_torch(state, "first.")
    expected = _reference.batch_norm(X, MEAN, VAR, GAMMA, BETA, eps=1e-5)
    np.testing.assert_allclose(t.transform(X), expected, rtol=1e-13, atol=1e-14)
    assert (t.n_samples_seen_, t.n_batches_seen_) == (0, 1)
    np.testing.assert_array_equal(t.running_var_, VAR)


def test_a_layer_of_keras_does_at_inference_what_it_did():
    t = BatchNormTransformer.from_keras([GAMMA, BETA, MEAN, VAR])
    np.testing.assert_allclose(
        t.transform(X), _reference.batch_norm(X, MEAN, VAR, GAMMA, BETA, eps=1e-3), rtol=1e-13, atol=1e-14
    )
    plain = BatchNormTransformer.from_keras([MEAN, VAR], center=False, scale=False)
    assert plain.gamma is None
    assert plain.beta is None
    centered = BatchNormTransformer.from_keras([BETA, MEAN, VAR], scale=False)
    np.testing.assert_array_equal(centered.beta, BETA)


class Box:
    """What Flax keeps some variables in."""

    def __init__(self, value):
        self.value = value


# Two blocks, of which the layer is the second's.
PARAMS = {
    "Dense_0": {"kernel": np.ones((3, 5)), "bias": np.ones(5)},
    "BatchNorm_0": {"scale": np.ones(5), "bias": np.zeros(5)},
    "Block_0": {"Conv_0": {"kernel": np.ones((3, 3, 1, 5))}, "BatchNorm_0": {"scale": GAMMA, "bias": BETA}},
}
STATS = {
    "BatchNorm_0": {"mean": np.zeros(5), "var": np.ones(5)},
    "Block_0": {"BatchNorm_0": {"mean": MEAN, "var": VAR}},
}
IN_BLOCK = "Block_0/BatchNorm_0"


@pytest.mark.parametrize("kind", [np.asarray, list, Box, np.float64])
def test_a_layer_of_flax_does_at_inference_what_it_did(kind):
    params = {name: kind(a) for name, a in PARAMS["Block_0"]["BatchNorm_0"].items()}
    stats = {name: kind(a) for name, a in STATS["Block_0"]["BatchNorm_0"].items()}
    expected = _reference.batch_norm(X, MEAN, VAR, GAMMA, BETA, eps=1e-5)
    alone = BatchNormTransformer.from_flax(params, stats)
    nested = BatchNormTransformer.from_flax(types.MappingProxyType(PARAMS), STATS, IN_BLOCK)
    together = BatchNormTransformer.from_flax(params | stats, params | stats)
    for t in (alone, nested, together):
        np.testing.assert_allclose(t.transform(X), expected, rtol=1e-13, atol=1e-14)
        assert t.n_samples_seen_ == 0
    for none in (None, {}):
        plain = BatchNormTransformer.from_flax(none, STATS, IN_BLOCK)
        assert plain.gamma is None and plain.beta is None
    half = BatchNormTransformer.from_flax({"bias": BETA}, stats)
    assert half.gamma is None
    np.testing.assert_array_equal(half.beta, BETA)


def test_a_node_of_onnx_does_at_inference_what_it_did():
    t = BatchNormTransformer.from_onnx(*(a.astype(np.float32) for a in (GAMMA, BETA, MEAN, VAR)))
    single = [a.astype(np.float32) for a in (MEAN, VAR, GAMMA, BETA)]
    np.testing.assert_allclose(t.transform(X), _reference.batch_norm(X, *single, eps=1e-5), rtol=1e-13, atol=1e-14)


GIVEN = {
    "from_torch": (STATE, "first."),
    "from_keras": ([GAMMA, BETA, MEAN, VAR],),
    "from_flax": (PARAMS, STATS, IN_BLOCK),
    "from_onnx": (GAMMA, BETA, MEAN, VAR),
}


@pytest.mark.parametrize("make", GIVEN)
def test_with_momentum_a_layer_learns_on_as_its_framework_would(make):
    given, ddof = GIVEN[make], int(make == "from_torch")
    t = getattr(BatchNormTransformer, make)(*given, momentum=0.9)
    mean, var = MEAN.copy(), VAR.copy()
    for batch in np.split(X, 4):
        t.partial_fit(batch)
        batch_norm_forward(batch, running_mean=mean, running_var=var, momentum=0.9, ddof=ddof)
    np.testing.assert_allclose(t.running_mean_, mean, rtol=1e-13)
    np.testing.assert_allclose(t.running_var_, var, rtol=1e-13)
    assert t.n_samples_seen_ == 40
    with pytest.warns(UserWarning, match=r"PyTorch's 0\.1 is 0\.9 here"):
        getattr(BatchNormTransformer, make)(*given, momentum=0.1)


def test_without_momentum_nothing_can_be_added_to_statistics_of_unknown_weight(tmp_path):
    t = BatchNormTransformer.from_torch(STATE, "first.")
    t.save(tmp_path / "layer.json")
    for layer in (t, pickle.loads(pickle.dumps(t)), BatchNormTransformer.load(tmp_path / "layer.json")):
        np.testing.assert_array_equal(layer.transform(X), t.transform(X))
        before = pickle.dumps(layer)
        for batch in (X, X[:1]):
            with pytest.raises(ValueError, match=r"^partial_fit cannot continue the statistics of a layer"):
                layer.partial_fit(batch)
        with pytest.raises(ValueError, match=r"^merge needs the number of samples .* the layer that is self does not"):
            layer.merge(BatchNormTransformer().fit(X))
        with pytest.raises(ValueError, match=r"^merge needs the number of samples .* the layer that is other does not"):
            BatchNormTransformer().fit(X).merge(layer)
        assert pickle.dumps(layer) == before
    np.testing.assert_allclose(t.fit(X).running_mean_, X.mean(axis=0))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"eps": 1e-5, "gamma": GAMMA, "beta": BETA},
        {"with_mean": False},
        {"with_std": False},
        {"with_std": False, "eps": 2.0},
        {"momentum": 0.9, "ddof": 1},
    ],
)
def test_a_transformer_becomes_a_layer_that_does_the_same(parameters):
    x = np.column_stack([X[:, :4], np.full(40, 3.0)])
    t = BatchNormTransformer(**parameters).fit(x)
    state, weights = t.to_torch(), t.to_keras()
    # As the frameworks compute inference: sqrt(var + eps) whatever var is.
    for gamma, beta, mean, var in (list(state.values())[:4], weights):
        y = (x - mean) / np.sqrt(var + t.eps) * gamma + beta
        np.testing.assert_allclose(y, t.transform(x), rtol=1e-12, atol=1e-13)
    assert list(state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert state["num_batches_tracked"].dtype == np.int64


def test_a_layer_comes_back_exactly():
    t = BatchNormTransformer.from_torch(STATE, "first.")
    state = t.to_torch()
    assert state.pop("num_batches_tracked") == 12
    for name, a in state.items():
        np.testing.assert_array_equal(a, STATE["first." + name])
    for got, expected in zip(t.to_keras(), (GAMMA, BETA, MEAN, VAR), strict=True):
        np.testing.assert_array_equal(got, expected)
    state["running_mean"][:] = 0
    np.testing.assert_array_equal(t.running_mean_, MEAN)


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("n", [0, 1, 7, 2**40])
def test_a_layer_keeps_its_number_of_batches(n, momentum, tmp_path):
    """Through copies and files, and counted on."""
    state = {name: STATE["first." + name] for name in ("running_mean", "running_var")}
    for tracked in (np.array(n), Tensor(np.array(n)), n, float(n)):
        t = BatchNormTransformer.from_torch(state | {"num_batches_tracked": tracked}, momentum=momentum)
        assert t.to_torch()["num_batches_tracked"] == n
    t.save(tmp_path / "layer.json")
    for layer in (
        t,
        copy.deepcopy(t),
        pickle.loads(pickle.dumps(t)),
        BatchNormTransformer.load(tmp_path / "layer.json"),
    ):
        back = layer.to_torch()["num_batches_tracked"]
        assert back == n
        assert (back.shape, back.dtype) == ((), np.int64)
        if momentum:
            for k, batch in enumerate((X, X[::2].tolist(), X.astype(np.float32)), start=1):
                assert layer.partial_fit(batch).to_torch()["num_batches_tracked"] == n + k
            assert layer.n_batches_seen_ == 4
        assert layer.fit(X).to_torch()["num_batches_tracked"] == 1
    assert BatchNormTransformer.from_torch(state).to_torch()["num_batches_tracked"] == 1


def test_images_keep_their_channel_axis():
    t = BatchNormTransformer.from_torch(STATE, "first.", channel_axis=1)
    assert t.transform(np.zeros((2, 5, 3, 3))).shape == (2, 5, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.from_torch(STATE), ValueError, r"^state_dict has no 'running_mean'; .* \['first\.'\]$"),
        (lambda t: t.from_torch({1: MEAN}), TypeError, "^state_dict must have names for keys, got 1$"),
        (lambda t: t.from_torch(STATE | {"first.weight": [1j] * 5}, "first."), TypeError, "^weight must hold real"),
        (
            lambda t: t.from_flax(PARAMS, STATS),
            ValueError,
            r"^params .* under ''; .* \['BatchNorm_0', 'Block_0/B",
        ),
        (lambda t: t.from_flax(None, STATS, "BatchNorm_1"), ValueError, "^batch_stats must hold .* 'BatchNorm_1'; "),
        (lambda t: t.from_flax(PARAMS, STATS, "BatchNorm_0/mean"), ValueError, "^params must hold the arrays"),
        (lambda t: t.from_flax({"params": PARAMS}, STATS, IN_BLOCK), ValueError, r"one of \['params/BatchNorm_0'"),
        (lambda t: t.from_flax({"scale": GAMMA, "offset": BETA}, {"mean": MEAN, "var": VAR}), ValueError, "^params"),
        (lambda t: t.from_flax(None, {"mean": MEAN}), ValueError, r"^batch_stats must hold mean and var .*\['mean'\]"),
        (lambda t: t.from_flax(PARAMS, [MEAN, VAR]), (TypeError, ValueError), "^(params|batch_stats) must"),
        (lambda t: t.from_flax(None, [MEAN, VAR]), TypeError, "^batch_stats must be a mapping .* got list"),
        (lambda t: t.from_flax(None, STATS, None), TypeError, "^prefix must be a str, got NoneType"),
        (lambda t: t.from_flax({"scale": [1j] * 5}, {"mean": MEAN, "var": VAR}), TypeError, "^scale must hold real"),
        (lambda t: t.from_flax({"scale": GAMMA[:2]}, {"mean": MEAN, "var": VAR}), ValueError, "^gamma must have shape"),
        (lambda t: t.from_onnx(GAMMA, BETA, MEAN, None), TypeError, r"^var must be an array .* got None$"),
        (lambda t: t.from_onnx(GAMMA, BETA[:1], MEAN, VAR), ValueError, r"^beta must have shape"),
        (lambda t: t.from_onnx(GAMMA, "abc", MEAN, VAR), TypeError, "^B must hold real numbers"),
        (lambda t: t.from_keras([MEAN, VAR], scale="no"), TypeError, "^scale must be True or False, got 'no'$"),
        (lambda t: t.from_torch([MEAN]), TypeError, "^state_dict must be a mapping of names to tensors, got list$"),
        (lambda t: t.from_torch(STATE, None), TypeError, "^prefix must be a str, got NoneType$"),
        (lambda t: t.from_torch(STATE | {"first.bias": ["a"]}, "first."), TypeError, "^bias must hold real numbers"),
        (lambda t: t.from_torch(STATE | {"first.bias": [1]}, "first."), ValueError, r"^beta must have shape .* \(1,\)"),
        (
            lambda t: t.from_torch(STATE | {"first.running_var": -VAR}, "first."),
            ValueError,
            "^var must not be negative",
        ),
        (lambda t: t.from_torch(STATE, "first.", eps=-1), ValueError, "^eps"),
        *(
            (lambda t, n=n: t.from_torch(STATE | {"first.num_batches_tracked": n}, "first."), error, "^num_batches_tr")
            for n, error in (
                (-1, ValueError),
                ([1, 2], ValueError),
                (0.5, ValueError),
                (np.nan, ValueError),
                ("x", TypeError),
                (2**60, ValueError),
            )
        ),
        (lambda t: t.from_keras([MEAN, VAR]), ValueError, "^weights must be those of a layer, gamma, beta, .* 2 of"),
        (lambda t: t.from_keras("ab"), ValueError, "^weights must be those of a layer"),
        (lambda t: t.from_keras([GAMMA, BETA, MEAN[None], VAR]), ValueError, "must have shape"),
    ],
)
def test_what_is_no_layer_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(BatchNormTransformer)
