"""NIST's Statistical Reference Datasets, univariate: certified mean and standard deviation.

The files in data/nist are those of https://www.itl.nist.gov/div898/strd/univ/homepage.html (public domain).
"""

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bncpu import BatchNormTransformer

FILES = sorted((Path(__file__).parent / "data" / "nist").glob("*.dat"))
# Digits of the standard deviation; the lower ones are what float64 data of these sizes still holds.
SD_DIGITS = {"Michelso": 13, "Mavro": 12.5, "NumAcc3": 9, "NumAcc4": 8}


def read(path):
    text = path.read_text()
    mean, sd = (
        Fraction(re.search(rf"Sample {name}.*?:\s*([-\d.]+)", text).group(1)) for name in ("Mean", "Standard Deviation")
    )
    values = re.split(r"Data: *Y\s*-+", text)[1].split()
    return np.array([float(v) for v in values]), mean, sd


def digits(value, certified):
    error = abs(Fraction(float(value)) - certified) / abs(certified)
    return math.inf if error == 0 else -math.log10(error)


@pytest.mark.parametrize("streamed", [False, True], ids=["fit", "row by row"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_certified_digits(path, streamed):
    values, mean, sd = read(path)
    bn = BatchNormTransformer(ddof=1)
    if streamed:
        for value in values:
            bn.partial_fit([[value]])
    else:
        bn.fit(values[:, None])
    assert bn.n_samples_seen_ == len(values)
    assert digits(bn.running_mean_[0], mean) >= 14
    assert digits(np.sqrt(bn.running_var_[0]), sd) >= SD_DIGITS.get(path.stem, 13.5)


def test_all_eight_files_are_there():
    assert len(FILES) == 8
