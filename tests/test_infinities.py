"""Infinities are refused by row and column."""

import numpy as np
import pytest
from arrays import GOOD, with_value

from bncpu import BatchNormTransformer


def test_infinity_is_refused_in_place_too():
    for gamma in (None, [0, 0, 0]):
        bn = BatchNormTransformer(gamma=gamma, copy=False).fit(GOOD)
        with pytest.raises(ValueError, match="contains infinity"):
            bn.transform(with_value(3, 1, np.inf))


def test_places_of_infinities_are_few_and_counted_on_the_right_axis():
    X = np.full((40, 300), np.inf)
    with pytest.raises(ValueError, match=r"row\(s\) 0, 1, 2, 3, 4, \.\.\., column\(s\) 0, 1, 2, 3, 4, \.\.\.\."):
        BatchNormTransformer().fit(X)
    with pytest.raises(ValueError, match=r"sample\(s\) 0, 1, 2, channel\(s\) 0, 1\."):
        BatchNormTransformer(channel_axis=0).fit(X[:2, :3])


def test_infinity_is_refused_whatever_lies_between_the_rows():
    bn = BatchNormTransformer().fit(GOOD)
    wide = np.zeros((20, 7))
    wide[:, :3] = with_value(5, 2, np.inf)
    for X in (wide[:, :3], np.asfortranarray(wide[:, :3]), wide[:, :3].copy()):
        with pytest.raises(ValueError, match=r"row\(s\) 5, column\(s\) 2"):
            bn.transform(X)
