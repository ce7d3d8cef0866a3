"""What ONNX Runtime computes from a converted transformer is what the transformer computes."""

import json

import numpy as np
import onnx.reference
import onnxruntime
import own_process
import pytest
import skl2onnx
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

import bncpu.onnx
import bncpu.sklearn
from bncpu import BatchNormTransformer

BUNDLED = ["breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"]
PARAMETERS = {
    "default": {},
    "affine": {"eps": 1e-5, "gamma": True, "beta": True},
    "no mean": {"with_mean": False},
    "no std": {"with_std": False},
    "momentum": {"momentum": 0.9},
}


def load(name):
    return getattr(datasets, f"load_{name}")(return_X_y=True)


@pytest.fixture(autouse=True, scope="module")
def registered():
    bncpu.onnx.register()


def run(fitted, X, **options):
    model = skl2onnx.to_onnx(fitted, X[:1], **options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return model, session.run(None, {"X": X})


@pytest.mark.parametrize("opset", [11, 15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_is_a_node_of_its_own(dtype, opset):
    X = load("wine")[0].astype(dtype)
    t = BatchNormTransformer(clip=1.25).fit(X)
    if (dtype, opset) == (np.float64, 11):
        with pytest.raises(ValueError, match="clip of float64 needs target_opset 12 or later, got 11"):
            run(t, X, target_opset=opset)
        return
    X[3, 1] = np.nan
    model, (y,) = run(t, X, target_opset=opset)
    assert [node.op_type for node in model.graph.node] == ["BatchNormalization", "Clip"]
    assert y.dtype == dtype
    np.testing.assert_allclose(y, t.transform(X), rtol=0, atol=1e-3 if dtype == np.float32 else 1e-12)
    assert np.nanmax(np.abs(y)) == 1.25


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("name", BUNDLED)
def test_one_node_computes_what_transform_does(name, parameters, dtype):
    X = load(name)[0].astype(dtype)
    c = X.shape[1]
    affine = {"gamma": np.linspace(0.5, 2, c), "beta": np.linspace(-1, 1, c)}
    t = BatchNormTransformer(**{key: affine.get(key, value) for key, value in parameters.items()}).fit(X)
    X[3, 1] = np.nan
    model, (y,) = run(t, X)
    assert [node.op_type for node in model.graph.node] == ["BatchNormalization"]
    expected = t.transform(X.astype(float))
    assert y.dtype == dtype
    # The runtime rounds x * a, the offset and the sum.
    scale = np.abs(t._state.forward.scale)
    center = np.abs(t._state.forward.mean)
    size = scale * (np.abs(X) + center) + np.abs(t._state.forward.shift) + np.abs(expected)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(X))
    assert np.all((np.abs(y - expected) <= 2 * np.finfo(dtype).eps * size) | np.isnan(X))


@pytest.mark.parametrize("name", BUNDLED)
def test_models_after_it_keep_their_predictions(name):
    X, y = load(name)
    X = X.astype(np.float32)
    classes = name not in ("diabetes", "linnerud")
    tree = (
        RandomForestClassifier(10, random_state=0)
        if classes
        else DecisionTreeRegressor(max_leaf_nodes=30, random_state=0)
    )
    tree.fit(X, y if y.ndim == 1 else y[:, 0])
    pipeline = make_pipeline(BatchNormTransformer(), tree).fit(X, y if y.ndim == 1 else y[:, 0])
    options = {"options": {id(tree): {"zipmap": False}}} if classes else {}
    _, (predicted, *_) = run(pipeline, X, **options)
    np.testing.assert_allclose(predicted.ravel(), pipeline.predict(X), rtol=1e-6 if not classes else 0)


def test_integers_images_and_features_never_observed():
    X = np.random.default_rng(0).integers(0, 100, (50, 3))
    t = BatchNormTransformer().fit(X)
    _, (y,) = run(t, X)
    np.testing.assert_allclose(y, t.transform(X), rtol=1e-5, atol=1e-6)
    images = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
    t = BatchNormTransformer(channel_axis=1).fit(images)
    _, (y,) = run(t, images)
    np.testing.assert_allclose(y, t.transform(images), rtol=1e-5, atol=1e-6)
    t = BatchNormTransformer().fit(np.where(np.arange(3) == 1, np.nan, X))
    _, (y,) = run(t, X.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(t.transform(X.astype(float))))
    with pytest.raises(ValueError, match=r"^ONNX has channels on axis 1; channel_axis must be None or 1, got -1$"):
        skl2onnx.to_onnx(BatchNormTransformer(channel_axis=-1).fit(images), images[:1])


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_spreads_whose_squares_are_beyond_float32_are_no_matter(scale):
    X = (np.random.default_rng(0).standard_normal((50, 3)) * scale).astype(np.float32)
    t = BatchNormTransformer().fit(X)
    np.testing.assert_allclose(run(t, X)[1][0], t.transform(X), rtol=1e-5, atol=1e-6)


def test_a_fitted_frame_is_taken_a_column_at_a_time():
    frame, y = datasets.load_wine(return_X_y=True, as_frame=True)
    frame["hue"] = frame["hue"].astype(np.float32)
    frame["proline"] = frame["proline"].astype(np.int64)
    linear = LogisticRegression()
    pipeline = make_pipeline(BatchNormTransformer(), linear).fit(frame, y)
    model = skl2onnx.to_onnx(pipeline, frame[:1], options={id(linear): {"zipmap": False}})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    columns = zip(session.get_inputs(), frame, strict=True)
    labels, _ = session.run(None, {given.name: frame[[name]].to_numpy() for given, name in columns})
    np.testing.assert_array_equal(labels, pipeline.predict(frame))
    with pytest.raises(NotFittedError):
        skl2onnx.to_onnx(BatchNormTransformer(), frame[:1])


@pytest.mark.parametrize("opset", [9, 13, 14])
def test_older_versions_of_the_operators_serve(opset):
    X, _ = load("iris")
    t = BatchNormTransformer().fit(X)
    model, (found,) = run(t, X, target_opset=opset)
    assert model.opset_import[0].version <= opset
    np.testing.assert_allclose(found, t.transform(X), rtol=1e-12, atol=1e-14)


def test_probabilities_of_a_linear_model_stay():
    X, y = load("wine")
    model = LogisticRegression()
    pipeline = make_pipeline(BatchNormTransformer(), model).fit(X, y)
    _, (_, probabilities) = run(pipeline, X, options={id(model): {"zipmap": False}})
    np.testing.assert_allclose(probabilities, pipeline.predict_proba(X), atol=1e-6)


def test_a_missing_extra_is_named_in_one_line():
    code = "import json, sys; sys.modules['skl2onnx'] = None\ntry: import bncpu.onnx\n"
    code += "except ImportError as error: print(json.dumps(str(error)))"
    assert json.loads(own_process.run(code)) == "converting to ONNX needs skl2onnx: pip install 'bncpu[onnx]'"


def batch_norm_node(arrays, **attributes):
    """A graph of one BatchNormalization, with its inputs 1 to 4 as initializers."""
    names = ["scale", "B", "input_mean", "input_var"]
    node = onnx.helper.make_node("BatchNormalization", ["X", *names], ["Y"], **attributes)
    typed = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("X", "Y")]
    kept = [onnx.numpy_helper.from_array(a, name) for name, a in zip(names, arrays, strict=True)]
    graph = onnx.helper.make_graph([node], "one", typed[:1], typed[1:], kept)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)


@pytest.mark.parametrize(("attributes", "eps"), [({}, {}), ({"epsilon": 0.25}, {"eps": 0.25})], ids=str)
def test_a_node_read_back_does_what_onnx_computes(attributes, eps):
    rng = np.random.default_rng(0)
    scale, B, mean = rng.standard_normal((3, 3)).astype(np.float32)
    var, x = rng.uniform(0.1, 2, 3).astype(np.float32), rng.standard_normal((4, 3, 5, 2)).astype(np.float32)
    model = batch_norm_node((scale, B, mean, var), **attributes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = {a.name: onnx.numpy_helper.to_array(a) for a in model.graph.initializer}
    t = BatchNormTransformer.from_onnx(
        *(arrays[name] for name in model.graph.node[0].input[1:5]), **eps, channel_axis=1
    )
    y = t.transform(x)
    for other in (onnx.reference.ReferenceEvaluator(model).run(None, {"X": x})[0], session.run(None, {"X": x})[0]):
        np.testing.assert_allclose(y, other, rtol=1e-5, atol=1e-5)


def test_a_node_learns_on_as_onnx_trains():
    rng = np.random.default_rng(1)
    arrays = [a.astype(np.float32) for a in (np.ones(3), np.zeros(3), rng.standard_normal(3), rng.uniform(1, 2, 3))]
    x = rng.standard_normal((8, 3)).astype(np.float32)
    names = ["X", "scale", "B", "input_mean", "input_var"]
    node = onnx.helper.make_node("BatchNormalization", names, ["Y", "mean", "var"], training_mode=1)
    typed = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in [*names, *node.output]
    }
    graph = onnx.helper.make_graph([node], "one", [typed[n] for n in names], [typed[n] for n in node.output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
    feeds = dict(zip(names, [x, *arrays], strict=True))
    _, mean, var = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    t = BatchNormTransformer.from_onnx(*arrays, momentum=0.9).partial_fit(x)
    np.testing.assert_allclose(t.running_mean_, mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(t.running_var_, var, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standard_scaler_is_converted_as_that_of_scikit_learn(dtype):
    X, y = load("wine")
    X = X.astype(dtype)
    for steps in ((), (LinearRegression(),)):
        ours, theirs = (
            make_pipeline(kind(), *steps).fit(X, y) for kind in (bncpu.sklearn.StandardScaler, StandardScaler)
        )
        (model, a), (expected, b) = run(ours, X), run(theirs, X)
        assert [node.op_type for node in model.graph.node] == [node.op_type for node in expected.graph.node]
        np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-5)
