"""Fuzz target: `BatchNormTransformer.load` of any bytes, and of any content under a valid checksum.

Either one ValueError that names the file, or a transformer that works and that saves the state it was loaded from.
"""

import copy
import hashlib
import json
import os
import tempfile
import warnings
from functools import cache
from typing import Any

import numpy as np
from source import Source, fuzz

HEAD = b'{"format": "bncpu.BatchNormTransformer", "version": 1, "sha256": "%s", '
STRANGE = [
    None, True, False, 0, -1, 1, 2, 3, 0.5, -0.5, 0.0, -0.0, 1e-320, 1e300, -1e308, 2**53, 2**53 + 1, 2**63, -(2**63),
    10**400, "", "a", "0", "NaN", "cumulative", "momentum", "halflife", "\ud800", "\0", [], [0.0], [1.0, 2.0, 3.0],
    [None] * 3, [[]], [True] * 3, ["x"] * 3, [1e308] * 3, [-1.0] * 3, [2**62] * 3, {}, {"a": 1},
    float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
MODES: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"halflife": 100},
    {"window": 9},
    {"ddof": 1, "eps": 0.1, "gamma": [1, 2, 3]},
]


@cache
def state(mode: int, rows: int) -> dict[str, Any]:
    """What a state file of three features holds, beside its head."""
    from bncpu import BatchNormTransformer

    X = np.random.default_rng(0).standard_normal((rows, 3))
    X[:, 1] = np.nan
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state")
        BatchNormTransformer(**MODES[mode]).partial_fit(X).save(path)
        with open(path, encoding="ascii") as file:
            content: dict[str, Any] = json.load(file)
    return {key: value for key, value in content.items() if key not in ("format", "version", "sha256")}


def signed(content: bytes) -> bytes:
    """A file with a valid checksum over `content`, which is what follows the head."""
    digest = hashlib.sha256(HEAD % (b"0" * 64) + content).hexdigest()
    return HEAD % digest.encode() + content


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within a JSON value, and what leads to an entry of it."""
    entries: list[tuple[Any, Any]] = list(value.items() if isinstance(value, dict) else enumerate(value))
    inner = [place for _, entry in entries if isinstance(entry, (dict, list)) for place in places(entry)]
    return [(value, key) for key, _ in entries] + inner


def changed(source: Source) -> dict[str, Any]:
    """The content of a good file, with some of it replaced, removed or added."""
    content = copy.deepcopy(state(source.choice(range(len(MODES))), source.choice([4, 20])))
    for _ in range(source.byte() % 4):
        inside = places(content)
        container, key = inside[(source.byte() << 8 | source.byte()) % len(inside)]
        action = source.choice(["replace", "replace", "remove", "add", "swap"])
        if action == "remove":
            del container[key]
        elif action == "add":
            extra = copy.deepcopy(source.choice(STRANGE))
            container.append(extra) if isinstance(container, list) else container.update({str(extra): extra})
        else:
            others = STRANGE if action == "replace" else list(content.values())
            container[key] = copy.deepcopy(source.choice(others))
        if not content:
            break
    return content


def decoded(data: bytes) -> bytes:
    """The file that the bytes say."""
    source = Source(data)
    kind = source.choice(["any bytes", "any content", "changed content"])
    if kind == "changed content":
        return signed(json.dumps(changed(source))[1:].encode())
    return source.rest() if kind == "any bytes" else signed(source.rest())


def check(data: bytes) -> bool:
    """Whether the file that the bytes say was loaded; AssertionError, or what else was raised, if a promise broke."""
    from bncpu import BatchNormTransformer

    with tempfile.TemporaryDirectory() as folder:
        path, again = os.path.join(folder, "state"), os.path.join(folder, "again")
        with open(path, "wb") as file:
            file.write(decoded(data))
        try:
            bn = BatchNormTransformer.load(path)
        except ValueError as error:
            assert type(error) is ValueError, repr(error)
            assert str(error).startswith(f"{path!r} is not a state file of BatchNormTransformer: "), str(error)
            return False
        bn.save(path)
        BatchNormTransformer.load(path).save(again)
        with open(path, "rb") as first, open(again, "rb") as second:
            assert first.read() == second.read()
    works(bn)
    return True


def works(bn: Any) -> None:
    """A loaded transformer does what one that was fitted does, or refuses in one ValueError and stays as it is."""
    n_axes = 2 if bn.channel_axis is None else min(abs(bn.channel_axis), 8) + 2
    if bn.n_features_in_ ** (n_axes - 1) > 10_000:
        return
    x = np.ones([1] + [bn.n_features_in_] * (n_axes - 1))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # names may be missing
        for call in (bn.transform, bn.inverse_transform, bn.partial_fit):
            try:
                result = call(x)
            except (TypeError, ValueError) as error:
                assert str(error), repr(error)
            else:
                assert result is bn or result.shape == x.shape


if __name__ == "__main__":
    fuzz("load", check)
