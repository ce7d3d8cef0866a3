"""The scripts in examples/ run, and find what they say they find."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(name, cwd, *launcher, arguments=()):
    command = [*launcher, sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=100).stdout


@pytest.mark.slow
def test_processes_that_share_a_batch_get_the_results_of_the_whole(tmp_path):
    assert printed("synchronized_batch_norm.py", tmp_path).endswith("equal to 13 digits: True\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["merge_joblib.py", "merge_multiprocessing.py", "merge_dask.py"])
def test_workers_that_merge_have_the_statistics_of_the_whole(name, tmp_path):
    lines = printed(name, tmp_path).splitlines()
    assert lines[-2:] == ["rows: 10000", "equal to 12 digits: True"]
    assert not any("False" in line for line in lines)


def test_ranks_of_mpi_end_with_the_same_statistics(tmp_path):
    pytest.importorskip("mpi4py", reason="pip install mpi4py mpich")
    beside_python = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    launcher = shutil.which("mpiexec", path=beside_python)
    lines = printed("merge_mpi.py", tmp_path, launcher, "-n", "2").splitlines()
    assert lines == ["ranks: 2 rows: 10000", "equal to 12 digits: True", "same bits on every rank: True"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(
            "deploy_onnx.py",
            "nodes: ['BatchNormalization', 'TreeEnsembleClassifier']\nsame labels: True\n"
            "probabilities differ by less than 1e-6: True\n",
            marks=pytest.mark.slow,
        ),
        (
            "deploy_folded.py",
            "steps: ['batchnormtransformer', 'logisticregression'] -> ['logisticregression']\nsame labels: True\n"
            "probabilities differ by less than 1e-12: True\n",
        ),
        pytest.param(
            "deploy_skops.py",
            "only ours need trust: True\nsame probabilities: True\nand it learns on: True\n",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_deployed_pipelines_predict_the_same(name, expected, tmp_path):
    assert printed(name, tmp_path) == expected


@pytest.mark.slow
def test_a_layer_of_a_network_serves_and_learns_in_a_transformer(tmp_path):
    first, second, third = printed("layer_of_torch.py", tmp_path).splitlines()
    assert first == "as the layer in eval(): True"
    # 20 batches leave 0.9**20 = 12 % of what the layer knew.
    state, x = np.array([7.0, 8.0, 7.0, 3.0]), load_digits().data[:, 20:24]
    for batch in np.array_split(x, 20):
        state = 0.9 * state + 0.1 * batch.mean(axis=0)
    assert second.startswith(f"adapted mean: {state.round(1)} ")
    assert third.endswith(" 958 batches")  # 938 before


@pytest.mark.slow
def test_drift_is_told_and_drawn(tmp_path):
    (tmp_path / "pictures").mkdir()
    first, *lines = printed("see_drift.py", tmp_path, arguments=["pictures"]).splitlines()
    assert first == "pictures: pictures"
    moved = [line.split("  ")[0] for line in lines if "mean has moved" in line]
    assert moved == ["mean texture"]
    means = [float(line.split()[-1]) for line in lines[-2:]]
    # In the end the feature is 2 standard deviations, 8.6, above what it was, 19.4; a halflife of 300 of 1,714 follows.
    assert means[0] < 22 < 25 < means[1]
    for name in ("drift.png", "stream.png"):
        assert (tmp_path / "pictures" / name).stat().st_size > 10_000


@pytest.mark.slow
def test_pictures_are_left_in_a_temporary_folder_only(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    printed("see_drift.py", tmp_path / "here")
    assert not os.listdir(tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "temporary").glob("bncpu-*/*")) == ["drift.png", "stream.png"]


@pytest.mark.parametrize("method", ["fit", "predict"])
def test_the_benchmark_of_a_pipeline_times_it_with_either_scaler(method):
    benchmark = runpy.run_path(str(EXAMPLES / "track_pipeline" / "benchmarks" / "pipeline.py"))["Pipeline"]()
    benchmark.shape = (100, 3)
    benchmark.setup(method)
    scalers = [call.__self__[0] for call in (benchmark.ours, benchmark.theirs)]
    assert [type(scaler).__name__ for scaler in scalers] == ["BatchNormTransformer", "StandardScaler"]
    assert 0 < benchmark.track_ratio(method) < 1000


COLLECTOR = '''
import numpy as np

class _CollectorBase:
    """What anemoi-datasets' has, and the client uses; its own tests are too heavy to install here."""

    def __init__(self, column_names):
        self._column_names = column_names
        self._count = np.zeros(len(column_names), np.int64)
        self._mean, self._m2 = np.zeros((2, len(column_names)))
        self._min, self._max = self._mean + np.inf, self._mean - np.inf

    @classmethod
    def _merge(cls, a, b, result):
        result._min, result._max = np.minimum(a._min, b._min), np.maximum(a._max, b._max)

    def merge(self, other):
        return self._merge(self, other, _CollectorBase(self._column_names))

    def statistics(self):
        return {"mean": self._mean, "stdev": np.sqrt(self._m2 / self._count)}
'''


def test_a_client_learns_and_merges(tmp_path, monkeypatch):
    module = tmp_path / "anemoi/datasets/create/statistics.py"
    module.parent.mkdir(parents=True)
    module.write_text(COLLECTOR)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert printed("client_anemoi.py", tmp_path) == "mean: True\nstandard deviation: True\n"
