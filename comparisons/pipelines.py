"""Pipelines with a StandardScaler in front of a model, with bncpu.patch_sklearn() and without it.

    pip install pandas rich && pip install .
    python comparisons/pipelines.py                # half an hour; `--quick` five minutes
    python comparisons/pipelines.py --markdown     # what docs/accelerating.md shows
    python comparisons/pipelines.py --defaults --rows 100000

Each figure is the time of ``pipeline.fit(X, y)`` without the patch divided by that with it: above 1 the patch is
faster. Both ways run in turn in one process; the median of the ratios is shown. Before, each pair of pipelines is
compared: the scaled data must be equal up to rounding. For KNN, whose fit does nothing, prediction of 1,000 rows
counts, too. ``serving`` is ``predict`` of one row, as an array, a list and a DataFrame.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
import warnings

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bncpu

N_FEATURES = 32
# Few iterations: the time of a fit must not be that of the model alone.
MODELS = {
    "PCA": lambda: PCA(4, svd_solver="covariance_eigh"),
    "Ridge": lambda: Ridge(),
    "LogisticRegression": lambda: LogisticRegression(max_iter=20),
    "SGDClassifier": lambda: SGDClassifier(max_iter=1, tol=None, random_state=0),
    "KMeans": lambda: KMeans(8, n_init=1, max_iter=2, init="random", random_state=0),
    "KNN": lambda: KNeighborsClassifier(algorithm="brute"),
    "MLP": lambda: MLPClassifier((16,), batch_size=1000, max_iter=1, random_state=0),
}
# As scikit-learn has them by default. MLPClassifier takes minutes; PCA, Ridge and KNN are as above.
DEFAULTS = {
    "LogisticRegression": lambda: LogisticRegression(),
    "SGDClassifier": lambda: SGDClassifier(random_state=0),
    "KMeans": lambda: KMeans(random_state=0),
}
ROWS = (1_000, 10_000, 100_000, 500_000, 1_000_000)
DTYPES = ("float32", "float64")
FORMS = ("array", "DataFrame")


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="500,000 rows only, fewer rounds")
    parser.add_argument("--defaults", action="store_true", help="models that iterate with their default parameters")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of rows")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/accelerating.md has it")
    parser.add_argument("--json", metavar="FILE", help="write every figure to a file")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    if asked.defaults:
        MODELS.update(DEFAULTS)
        asked.models = [name for name in asked.models if name in DEFAULTS]
    rows = asked.rows or ((500_000,) if asked.quick else ROWS)
    cells = {}
    for n in rows:
        for dtype in DTYPES:
            X, y = problem(n, dtype)
            for form in FORMS:
                given = X if form == "array" else pd.DataFrame(X, columns=[f"x{i}" for i in range(N_FEATURES)])
                check(given)
                for name in asked.models:
                    figure = ratio(functools.partial(run, name, given, y), seconds=3 if asked.quick else 6)
                    cells[name, n, dtype, form] = figure
                    show(asked, f"{name}, {n:,} x {N_FEATURES} {dtype}, {form}", figure)
    for dtype in DTYPES:
        for form, figure in serving(dtype).items():
            cells["serving", 1, dtype, form] = figure
            show(asked, f"serving, one row of {N_FEATURES} {dtype}, {form}", figure)
    if asked.markdown:
        print(table(cells, rows, asked.models))
    at_goal = [figure[0] for (_, n, dtype, _), figure in cells.items() if n == 500_000 and dtype == "float32"]
    if at_goal:
        print(f"\n500,000 rows of float32: {statistics.mean(at_goal):.2f} times as fast on average (goal 1.5)")
    slower = {cell: figure[0] for cell, figure in cells.items() if figure[0] < 0.98}
    print(
        f"Below 0.98: {len(slower)} of {len(cells)} (goal 0)",
        *(f"  {cell}: {f:.2f}" for cell, f in slower.items()),
        sep="\n",
    )
    if asked.json:
        names = ("model", "rows", "dtype", "form", "ratio", "quarter", "three quarters")
        listed = [dict(zip(names, (*cell, *figure), strict=True)) for cell, figure in cells.items()]
        pathlib.Path(asked.json).write_text(json.dumps(listed, indent=1) + "\n")


def show(asked, what, figure):
    """Print a row as soon as it is measured."""
    if not asked.markdown:
        print(f"{what:60} {figure[0]:5.2f}  ({figure[1]:.2f}-{figure[2]:.2f})", flush=True)


def problem(n, dtype):
    """Features of several units, and two classes that depend on some of them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, N_FEATURES), dtype=np.float32)
    y = X[:, :4].sum(axis=1) + rng.standard_normal(n, dtype=np.float32) > 0
    return (X * np.geomspace(0.01, 100, N_FEATURES) + np.linspace(0, 10, N_FEATURES)).astype(dtype), y


def check(X):
    """Both ways scale alike."""
    theirs = np.asarray(StandardScaler().fit(X).transform(X))
    with bncpu.patch_sklearn():
        ours = np.asarray(StandardScaler().fit(X).transform(X))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 if theirs.dtype == np.float32 else 1e-11)


def run(name, X, y):
    """Fit the pipeline."""
    pipeline = make_pipeline(StandardScaler(), MODELS[name]()).fit(X, y)
    if name == "KNN":
        pipeline.predict(X[:1000])


def ratio(call, *, seconds, least=3):
    """Seconds without the patch over seconds with it, in turn: median, and the middle half."""
    found, begun = [], time.perf_counter()
    timed(call)
    while len(found) < least or (time.perf_counter() - begun < seconds and len(found) < 50):
        pair = [0.0, 0.0]
        for patched in (False, True) if len(found) % 2 else (True, False):
            if patched:
                with bncpu.patch_sklearn():
                    pair[1] = timed(call)
            else:
                pair[0] = timed(call)
        found.append(pair[0] / pair[1])
    found.sort()
    return statistics.median(found), found[len(found) // 4], found[-1 - len(found) // 4]


def timed(call):
    """Seconds of a call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def predict_often(pipeline, row):
    """One row a hundred times."""
    for _ in range(100):
        pipeline.predict(row)


def serving(dtype):
    """One row into a fitted pipeline, a hundred times."""
    X, y = problem(1000, dtype)
    columns = [f"x{i}" for i in range(N_FEATURES)]
    forms = {"array": X, "list": X, "DataFrame": pd.DataFrame(X, columns=columns)}
    found = {}
    for form, fitted_to in forms.items():
        pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(fitted_to, y)
        row = fitted_to[:1].tolist() if form == "list" else fitted_to[:1]
        found[form] = ratio(functools.partial(predict_often, pipeline, row), seconds=1, least=9)
    return found


def table(cells, rows, models):
    """In Markdown: a row per model and form, a column per size."""
    columns = [(n, dtype) for dtype in DTYPES for n in rows]
    lines = ["| | " + " | ".join(f"{n:,} {dtype}" for n, dtype in columns) + " |", "|---|" + "--:|" * len(columns)]
    for name in models:
        for form in FORMS:
            figures = (cells[name, n, dtype, form][0] for n, dtype in columns)
            lines.append(f"| {name}, {form} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    lines += ["", "| one row | " + " | ".join(DTYPES) + " |", "|---|" + "--:|" * len(DTYPES)]
    for form in ("array", "list", "DataFrame"):
        lines.append(
            f"| {form} | " + " | ".join(f"{cells['serving', 1, dtype, form][0]:.2f}" for dtype in DTYPES) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
