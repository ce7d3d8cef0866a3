"""scikit-learn's checks of any estimator, and its tests of StandardScaler with BatchNormTransformer in its place."""

import importlib.util
import inspect
from unittest import mock

import pytest
import sklearn.preprocessing
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.fixes import parse_version

from bncpu import BatchNormTransformer


def fails_in_scikit_learn_1_6(estimator):
    """That version gives sparse data to estimators that do not take it, and lets only a TypeError pass for a refusal.

    StandardScaler fails there as well.
    """
    takes_no_sparse = estimator.with_mean and estimator.channel_axis is None
    old = parse_version(sklearn.__version__) < parse_version("1.7")
    return {"check_sample_weight_equivalence_on_sparse_data": "see above"} if old and takes_no_sparse else {}


@parametrize_with_checks(
    [
        BatchNormTransformer(),
        BatchNormTransformer(momentum=0.9),
        BatchNormTransformer(halflife=100),
        BatchNormTransformer(with_mean=False),
        BatchNormTransformer(eps=1e-5),
        BatchNormTransformer(batch_size=3),
        BatchNormTransformer(channel_axis=-1),
    ],
    expected_failed_checks=fails_in_scikit_learn_1_6,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# Tests that cannot apply, and why.
NOT_OURS = {
    "test_missing_value_handling": "hands every constructor parameter to scikit-learn's scale(), which has fewer"
}

# Too large to install for a test; PyTorch is tried in comparisons/.
NOT_INSTALLED = ("cupy", "dpnp", "mlx", "torch")


def _their_tests(module_name, estimator):
    """The tests of a module of scikit-learn that mention StandardScaler, with `estimator` in its place."""
    spec = importlib.util.spec_from_file_location(f"their_{module_name.rpartition('.')[2]}", _origin(module_name))
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sklearn.preprocessing, "StandardScaler", estimator):
        spec.loader.exec_module(module)
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    return {name: test for name, test in tests.items() if "StandardScaler" in inspect.getsource(test)}


def _origin(module_name):
    return importlib.util.find_spec(module_name).origin


def _about(estimator, test):
    """`test` without the parameters that stand for other estimators or for libraries not installed."""

    def kept(values):
        values = getattr(values, "values", values)
        for value in values if isinstance(values, (list, tuple)) else [values]:
            kind = value if isinstance(value, type) else type(value)
            if issubclass(kind, BaseEstimator) and kind is not estimator:
                return False
            if isinstance(value, str) and value in NOT_INSTALLED:
                return False
        return True

    marks = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            mark = pytest.mark.parametrize(names, [v for v in values if kept(v)], **mark.kwargs).mark
        marks.append(mark)
    test.pytestmark = marks
    return test


THEIRS = {
    **_their_tests("sklearn.preprocessing.tests.test_data", BatchNormTransformer),
    **_their_tests("sklearn.preprocessing.tests.test_common", BatchNormTransformer),
}
globals().update({name: _about(BatchNormTransformer, test) for name, test in THEIRS.items() if name not in NOT_OURS})


def test_all_their_tests_were_found():
    # As many as mention StandardScaler in scikit-learn 1.6, the oldest supported version.
    assert len(THEIRS) >= 28
    assert set(NOT_OURS) <= set(THEIRS)
