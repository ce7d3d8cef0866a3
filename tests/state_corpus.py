"""Write tests/data/states/VERSION: state files of this version, with what the transformers that saved them computed.

    python tests/state_corpus.py

Once for every release, before it, and never again: `tests/test_state_file.py` loads the files of all versions. A folder
that is there is left as it is; if the version was not released yet, remove it first.
"""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import bncpu
from bncpu import BatchNormTransformer

STATES = Path(__file__).parent / "data" / "states"
EXPECTED = "expected.json"


def rows(n, n_features=4):
    """Columns of different means and widths, none of them simple in binary."""
    k = np.arange(n * n_features, dtype=float).reshape(n, n_features)
    return np.sin(k * 12.9898) * [1, 1e-3, 50, 7][:n_features] + [0.1, 1e6, -3, 0][:n_features]


def with_gaps():
    X = rows(30)
    X[:, 2] = np.nan
    X[::3, 3] = np.nan
    X[20:, 0] = np.nan
    return X


def stream(X, sample_weight=None, **parameters):
    bn = BatchNormTransformer(**parameters)
    for part in (slice(0, 11), slice(11, 17), slice(17, None)):
        bn.partial_fit(X[part], sample_weight=None if sample_weight is None else sample_weight[part])
    return bn


NAMES = ["a", "\N{GREEK SMALL LETTER MU}", 'quote " and \\', "two\nlines"]
WEIGHTS = np.linspace(0.1, 2, 30)
PARAMETERS = {"gamma": [1, 2, 3, 0.1], "beta": np.float32([0, 0.1, 2, 3]), "eps": 1e-5, "ddof": 1}
EVERY_OTHER = {"with_mean": False, "with_std": True, "copy": False, "n_threads": 2, "batch_size": 7, "ddof": 0.5}
CASES = {
    "cumulative": lambda: stream(rows(30)),
    "momentum": lambda: stream(rows(30), momentum=0.9),
    "halflife": lambda: stream(rows(30), halflife=8),
    "cumulative with parameters": lambda: stream(rows(30), **PARAMETERS),
    "momentum with parameters": lambda: stream(rows(30), momentum=0.99, **PARAMETERS),
    "halflife with parameters": lambda: stream(rows(30), halflife=100.5, **PARAMETERS),
    "cumulative with gaps": lambda: stream(with_gaps()),
    "momentum with gaps": lambda: stream(with_gaps(), momentum=0.5),
    "halflife with gaps": lambda: stream(with_gaps(), halflife=3),
    "cumulative with weights": lambda: stream(with_gaps(), WEIGHTS),
    "momentum with weights": lambda: stream(rows(30), WEIGHTS, momentum=0.9),
    "halflife with weights": lambda: stream(with_gaps(), WEIGHTS, halflife=20),
    "names": lambda: stream(pd.DataFrame(rows(30), columns=NAMES)),
    "every other parameter": lambda: BatchNormTransformer(**EVERY_OTHER).fit(rows(30)),
    "only centered": lambda: BatchNormTransformer(with_std=False).fit(rows(30)),
    "images": lambda: BatchNormTransformer(channel_axis=1, eps=1e-3).fit(rows(24).reshape(4, 4, 6)),
    "parameters changed since the fit": lambda: stream(rows(30)).set_params(eps=1.0, with_mean=False, beta=[0.5] * 4),
    "merged": lambda: stream(with_gaps()).merge(stream(rows(30))),
    "buffers of a layer": lambda: BatchNormTransformer.from_statistics([0.1, 2], [0.3, 4], 100, momentum=0.9, eps=1e-5),
    "extremes": lambda: BatchNormTransformer.from_statistics(
        [1e150, -5e-324, -0.0, 0.1], [1e-300, 1e290, 0, 5e-324], 2**52
    ),
    "one feature": lambda: BatchNormTransformer().fit([[0.1], [0.2], [0.4]]),
}


def described(bn):
    """What a transformer knows and computes, as JSON, every float as its exact hexadecimal text."""
    X = np.array([[0.1, 1e6, -3, 7], [0, 0, 0, 0], [-1e3, 1e6 - 0.5, 1e-9, np.nan]])[:, : bn.n_features_in_]
    X = X[..., None] if bn.channel_axis == 1 else X
    known = ("n_features_in_", "n_samples_seen_", "n_batches_seen_", "mean_", "var_", "scale_")
    known += ("running_mean_", "running_var_")
    result = {name: exact(getattr(bn, name)) for name in known}
    result["feature_names_in_"] = list(getattr(bn, "feature_names_in_", [])) or None
    result |= {f"parameter {name}": exact(value) for name, value in bn.get_params().items()}
    given = pd.DataFrame(X, columns=bn.feature_names_in_) if hasattr(bn, "feature_names_in_") else X
    result["transform"] = exact(np.asarray(bn.transform(given, copy=True)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "results overflow float32", RuntimeWarning)
        result["transform in float32"] = exact(np.asarray(bn.transform(given.astype(np.float32), copy=True)))
    result["inverse_transform"] = exact(bn.inverse_transform(X[:2], copy=True))
    if bn.halflife is None:  # whose powers come from the platform's mathematical library
        after = copy.deepcopy(bn).partial_fit(given)
        result |= {f"{name} after a batch": exact(getattr(after, name)) for name in ("running_mean_", "running_var_")}
    return result


def exact(value):
    """Numbers as text from which they come back to the bit, arrays as lists of it."""
    if isinstance(value, (np.ndarray, list)):
        return [exact(v) for v in np.asarray(value).tolist()]
    return value.hex() if isinstance(value, float) else value


def file_name(case):
    return f"{case.replace(' ', '_')}.json"


def write(folder):
    """Write every case to a folder that is not there yet."""
    folder.mkdir()
    expected = {}
    for name, make in CASES.items():
        bn = make()
        bn.save(folder / file_name(name))
        expected[name] = described(bn)
    (folder / EXPECTED).write_text(json.dumps(expected) + "\n", encoding="ascii", newline="\n")


if __name__ == "__main__":
    write(STATES / bncpu.__version__)
    print(f"{STATES / bncpu.__version__}: {len(CASES)} states")
