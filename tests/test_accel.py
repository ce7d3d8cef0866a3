"""scikit-learn patched, in a program, a context, a notebook, other processes and from the command line."""

import concurrent.futures
import os
import pickle
import subprocess
import sys
import textwrap

import joblib
import numpy as np
import pytest
import sklearn
import sklearn.preprocessing
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import bncpu
from bncpu import accel
from bncpu import sklearn as ours

THEIRS, THEIR_SCALE = sklearn.preprocessing.StandardScaler, sklearn.preprocessing.scale
X = np.random.default_rng(0).normal(size=(200, 5))


@pytest.fixture
def patched():
    """scikit-learn, patched in the test."""
    with bncpu.patch_sklearn():
        yield


class TestPatch:
    """scikit-learn patched and unpatched."""

    def test_objects_names_and_pickles_stay_theirs(self, called):
        x = X
        before = THEIRS().fit(x)
        with bncpu.patch_sklearn():
            assert sklearn.preprocessing.StandardScaler is THEIRS
            before.transform(x)
            inside = pickle.loads(pickle.dumps(THEIRS().fit(x)))
            assert type(inside) is THEIRS
            assert sklearn.preprocessing.scale(x).shape == x.shape
        assert called() == {
            "StandardScaler.partial_fit: bncpu": 1,
            "StandardScaler.transform: bncpu": 1,
            "scale: bncpu": 1,
        }
        inside.transform(x)
        assert sum(called().values()) == 3

    def test_all_is_as_before_afterwards(self):
        before = {name: vars(THEIRS)[name] for name in ours.THEIRS}
        with bncpu.patch_sklearn(), bncpu.patch_sklearn():
            assert vars(THEIRS)["transform"] is not before["transform"]
        assert {name: vars(THEIRS)[name] for name in ours.THEIRS} == before
        assert sklearn.preprocessing.scale is THEIR_SCALE
        assert "__reduce__" not in vars(sklearn.utils.parallel._FuncWrapper)
        bncpu.unpatch_sklearn()
        assert not accel.is_patched()

    def test_contexts_may_overlap_and_be_entered_again(self):
        a, b = bncpu.patch_sklearn(), bncpu.patch_sklearn()
        with b:
            a.__enter__()
            a.__exit__(None, None, None)
            assert accel.is_patched()
        assert not accel.is_patched()
        for _ in range(2):
            with a:
                assert accel.is_patched()
                with a:
                    pass
                assert accel.is_patched()
            assert not accel.is_patched()
        a.__enter__()
        bncpu.unpatch_sklearn()
        with bncpu.patch_sklearn():
            a.__exit__(None, None, None)
            assert accel.is_patched()
        assert not accel.is_patched()

    def test_a_call_and_a_context(self):
        context = bncpu.patch_sklearn()
        bncpu.patch_sklearn()
        with context:
            pass
        assert accel.is_patched()
        bncpu.unpatch_sklearn()
        assert not accel.is_patched()

    def test_threads(self):
        def patch():
            for _ in range(500):
                with bncpu.patch_sklearn():
                    assert accel.is_patched()

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(patch) for _ in range(4)]:
                done.result()
        assert not accel.is_patched()

    def test_a_patch_outlives_the_contexts_around_it_until_it_is_undone(self):
        with bncpu.patch_sklearn():
            with bncpu.patch_sklearn():
                bncpu.patch_sklearn()
            assert accel.is_patched()
        assert accel.is_patched()
        bncpu.unpatch_sklearn()
        with bncpu.patch_sklearn():
            bncpu.unpatch_sklearn()
            assert not accel.is_patched()
        assert not accel.is_patched()

    def test_what_others_have_put_in_its_place_stays(self, monkeypatch):
        def of_others(self, X):
            return X

        with bncpu.patch_sklearn():
            monkeypatch.setattr(THEIRS, "transform", of_others)
        assert vars(THEIRS)["transform"] is of_others
        monkeypatch.undo()
        THEIRS.transform = ours.THEIRS["transform"]

    def test_an_error_ends_the_context(self):
        with pytest.raises(ZeroDivisionError), bncpu.patch_sklearn():
            1 / 0
        assert not accel.is_patched()

    def test_a_notebook(self):
        accel.load_ipython_extension(None)
        assert accel.is_patched()
        accel.unload_ipython_extension(None)
        assert not accel.is_patched()

    def test_other_processes_are_patched_while_they_work_for_us(self, patched):
        x, y = X, X[:, 0] > 0
        pipeline = make_pipeline(Watched(), LogisticRegression())
        search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1]}, n_jobs=2, cv=2).fit(x, y)
        assert search.best_estimator_[0].were_ours == [True]
        with joblib.parallel_backend("loky", n_jobs=2):
            search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1]}, cv=2, scoring=score, refit=False)
            assert set(search.fit(x, y).cv_results_["mean_test_score"]) == {1.0}
            accel.unpatch_sklearn()
            assert set(search.fit(x, y).cv_results_["mean_test_score"]) == {0.0}


class Watched(THEIRS):
    """Remembers whether it was fitted by our code."""

    def fit(self, X, y=None, sample_weight=None):
        """Fit, and look."""
        self.were_ours = [accel.is_patched()]
        return super().fit(X, y, sample_weight)


def score(estimator, X, y):
    """Whether the scaler was ours."""
    return float(all(estimator[0].were_ours))


PROGRAM = """
    import sys
    from sklearn.preprocessing import StandardScaler
    from bncpu import accel
    StandardScaler().fit([[0.0], [4.0]])
    print(accel.is_patched(), __name__, sys.argv[1:])
"""


LATE = """
    import atexit, os, pickle, threading, time

    class Local: pass

    def late():
        time.sleep(0.2)
        print(type(pickle.loads(pickle.dumps(Local()))).__name__)

    atexit.register(late)
    threading.Thread(target=late).start()
    print(os.path.isabs(__file__), __package__, __spec__, __doc__, *map(type, (__builtins__, __loader__)))
"""


WORK = """
    import multiprocessing
    import numpy as np
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from bncpu import accel, patch_sklearn

    class C: pass

    class Watched(StandardScaler):
        def fit(self, X, y=None, sample_weight=None):
            self.were_ours = accel.is_patched()
            return super().fit(X, y, sample_weight)

    def score(estimator, X, y):
        return float(estimator[0].were_ours)

    def made(x): return C()

    def typed(x: int): pass

    if __name__ == "__main__":
        X = np.random.default_rng(0).normal(size=(50, 3))
        pipeline = make_pipeline(Watched(), Ridge())
        print(cross_val_score(pipeline, X, X[:, 0], n_jobs=2, cv=2, scoring=score).tolist())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(type(pool.map(made, [1])[0]).__name__)
        with patch_sklearn():
            pass
        print(typed.__annotations__["x"].__name__, accel.is_patched())
"""


class TestCommand:
    """python -m bncpu.accel."""

    @pytest.fixture
    def folder(self, tmp_path):
        """A script, and a module beside it."""
        (tmp_path / "script.py").write_text(textwrap.dedent(PROGRAM) + "import beside\n")
        (tmp_path / "beside.py").write_text("print('beside')\n")
        return tmp_path

    @pytest.mark.parametrize("arguments", [["script.py"], ["-m", "script"]])
    def test_a_script_and_a_module(self, folder, arguments):
        found = command(folder, *arguments, "a", "-b")
        assert (found.stdout, found.stderr, found.returncode) == ("True __main__ ['a', '-b']\nbeside\n", "", 0)

    def test_a_script_elsewhere_imports_from_its_own_folder(self, folder, tmp_path_factory):
        found = command(tmp_path_factory.mktemp("other"), folder / "script.py")
        assert found.stdout.endswith("beside\n")

    def test_the_log(self, folder):
        found = command(folder, "script.py", BNCPU_ACCEL_LOG="1")
        assert found.stderr == "bncpu.accel: StandardScaler.partial_fit: bncpu of list\n"

    def test_a_program_is_main_for_what_outlives_it(self, folder):
        (folder / "late.py").write_text(textwrap.dedent(LATE))
        expected = subprocess.run([sys.executable, "late.py"], cwd=folder, capture_output=True, text=True)
        found = command(folder, "late.py")
        assert (found.stdout, found.stderr) == (expected.stdout, expected.stderr)
        assert found.stdout.count("Local") == 2

    @pytest.mark.parametrize("arguments", [["work.py"], ["-m", "work"]])
    def test_other_processes(self, folder, arguments):
        (folder / "work.py").write_text(textwrap.dedent(WORK))
        found = command(folder, *arguments)
        assert found.stdout == "[1.0, 1.0]\nC\nint True\n"

    def test_the_safe_path_is_left(self, folder):
        (folder / "path.py").write_text("import sys\nprint(sys.path[0])\n")
        line, safe = [sys.executable, "path.py"], os.environ | {"PYTHONSAFEPATH": "1"}
        plain = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=safe)
        assert command(folder, "path.py", PYTHONSAFEPATH="1").stdout == plain.stdout

    def test_a_folder_and_a_package(self, folder):
        (folder / "package").mkdir()
        (folder / "package/__main__.py").write_text("import beside_it, sys\nprint(sys.argv[1:], __name__)\n")
        (folder / "package/beside_it.py").write_text("")
        assert command(folder, "package", "a").stdout == "['a'] __main__\n"
        (folder / "package/__main__.py").write_text("import package.beside_it, sys\nprint(sys.argv[1:], __name__)\n")
        for arguments in (["-m", "package"], ["-mpackage"]):
            assert command(folder, *arguments, "a").stdout == "['a'] __main__\n"

    def test_what_is_not_there(self, folder):
        found = command(folder, "nothing.py")
        assert found.returncode == 2
        assert found.stderr.count("\n") == 1
        assert "can't open" in found.stderr
        assert "No module named nothing" in command(folder, "-m", "nothing").stderr

    def test_exit_status_and_usage(self, folder):
        (folder / "fails.py").write_text("import sys\nsys.exit(3)\n")
        assert command(folder, "fails.py").returncode == 3
        assert command(folder, "--help").stdout.startswith("usage: python -m bncpu.accel")
        assert command(folder).returncode == command(folder, "-x").returncode == command(folder, "-m").returncode == 2

    def test_pytest(self, folder):
        (folder / "test_it.py").write_text("from bncpu import accel\ndef test_it(): assert accel.is_patched()\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "bncpu.accel", "-p", "no:cacheprovider", "test_it.py"]
        assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def command(folder, *arguments, **environment):
    """What ``python -m bncpu.accel`` does."""
    return subprocess.run(
        [sys.executable, "-m", "bncpu.accel", *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
