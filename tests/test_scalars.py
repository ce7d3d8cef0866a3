"""Checks of arguments that are no arrays: what they return, and that an error names the argument and what came.

That they are those of the CUDA backend, too, is tested in `test_gpu`.
"""

import numpy as np
import pytest

from bncpu import _scalars

HUGE = 10**400  # beyond float64

NUMBERS = [
    (0, 0.0),
    (0.25, 0.25),
    (1.0, 1.0),
    (np.float32(0.5), 0.5),
    (True, TypeError("a must be a number, got True")),
    ("1", TypeError("a must be an instance of")),
    (np.nan, ValueError("a must be finite, got nan")),
    (-0.5, ValueError("a == -0.5, must be >= 0")),
    (1.5, ValueError("a == 1.5, must be <= 1")),
    (HUGE, ValueError("a must be finite, got inf")),
    (-1, ValueError("a == -1, must be >= 0")),
    (2, ValueError("a == 2, must be <= 1")),
]


def outcome(error):
    return pytest.raises(type(error), match=f"^{error}")


@pytest.mark.parametrize(("value", "expected"), NUMBERS, ids=lambda v: repr(v)[:30])
def test_a_real_number_is_a_finite_float_within_its_bounds(value, expected):
    high = None if value is HUGE else 1
    if not isinstance(expected, Exception):
        found = _scalars.real("a", value, low=0, high=high)
        assert type(found) is float
        assert found == expected
        return
    with outcome(expected):
        _scalars.real("a", value, low=0, high=high)


def test_a_whole_number_may_be_none_and_no_truth_value():
    assert _scalars.whole("a", None, low=1) is None
    assert _scalars.whole("a", np.int64(3), low=1) == 3
    for value, error in ((True, TypeError), (1.0, TypeError), (0, ValueError)):
        with pytest.raises(error, match=r"^a\b"):
            _scalars.whole("a", value, low=1)


@pytest.mark.parametrize("axis", [-3, -1, 0, 2, np.int8(1)])
def test_an_axis_is_counted_from_0(axis):
    assert _scalars.axis_of("a", (2, 3, 4), axis) == axis % 3


@pytest.mark.parametrize(("axis", "error"), [(3, ValueError), (-4, ValueError), (1.0, TypeError), (None, TypeError)])
def test_what_is_no_axis_is_refused(axis, error):
    with pytest.raises(error, match=r"^channel_axis"):
        _scalars.axis_of("a", (2, 3, 4), axis)
