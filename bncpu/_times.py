"""Durations and times of NumPy, Python, pandas, polars and pyarrow, as nanoseconds in 64 bits."""

from __future__ import annotations

import datetime
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu._compat import duration_of_text
from bncpu._scalars import real, shown


def halflife(value: Any) -> float | np.timedelta64 | None:
    """The parameter of this name: None, a number of rows, or a duration in nanoseconds."""
    if isinstance(value, str):
        value = duration_of_text("halflife", value)
    if isinstance(value, (datetime.timedelta, np.timedelta64)):
        return _duration(value)
    if value is None or isinstance(value, numbers.Real):
        return None if value is None else real("halflife", value, low=0, closed="neither")
    raise TypeError(
        "halflife must be a number of rows, or a duration such as datetime.timedelta(days=14), for partial_fit with "
        f"times; got {shown(value)}"
    )


def _duration(value: datetime.timedelta | np.timedelta64) -> np.timedelta64:
    exact: np.timedelta64 = getattr(value, "to_timedelta64", lambda: np.timedelta64(value))()  # pandas has nanoseconds
    if np.datetime_data(exact.dtype)[0] in ("generic", "Y", "M"):
        raise ValueError(f"halflife must have a unit of fixed length, such as days; got {value!r}")
    found = _exactly(exact, "m8[ns]")
    if found is None or not found > np.timedelta64(0, "ns"):
        raise ValueError(f"halflife must be whole nanoseconds, longer than 0 and at most 292 years; got {value!r}")
    return found


def _exactly(values: Any, dtype: str) -> Any:
    """The same in another unit, or None if that cannot hold them: NumPy from 2.5 says so, others wrap around."""
    try:
        found = values.astype(dtype)
    except OverflowError:
        return None
    return found if np.array_equal(found.astype(values.dtype), values) else None


def nanoseconds(times: Any, n_samples: int) -> NDArray[np.int64]:
    """When each sample came, in nanoseconds since 1970 in UTC: given, and never falling."""
    values = _datetimes(times)
    if values.shape != (n_samples,):
        raise ValueError(f"times must have shape ({n_samples},), one for each sample of X; got {values.shape}")
    missing = np.flatnonzero(np.isnat(values))
    if len(missing):
        raise ValueError(f"times must all be known, got NaT at {missing[0]}")
    found = _exactly(values, "M8[ns]")
    if found is None:
        raise ValueError("times must be whole nanoseconds, between the years 1678 and 2261")
    back = np.flatnonzero(found[1:] < found[:-1])
    if len(back):
        raise ValueError(f"times must be in order, got {values[back[0] + 1]} after {values[back[0]]}, at {back[0] + 1}")
    return np.asarray(found.astype(np.int64))


def since(times: NDArray[np.int64], last: int | None) -> NDArray[np.float64]:
    """Nanoseconds from the sample before the first, which came at `last`, to each; 0 at the first if there was none."""
    start = int(times[0]) if last is None else last
    if start > times[0]:
        first, before = (np.datetime64(int(time), "ns") for time in (times[0], start))
        raise ValueError(f"times must not be before those of the last batch, got {first} after {before}")
    # Up to 584 years: as unsigned numbers, differences do not overflow.
    return (times - start).view(np.uint64).astype(np.float64)


def _datetimes(times: Any) -> NDArray[Any]:
    if isinstance(times, np.ma.MaskedArray) and np.ma.is_masked(times):
        raise ValueError("times must all be known, got a masked one")
    values = np.asarray(times)
    if values.dtype == object and values.ndim == 1 and len(values):
        values = _of_objects(values)
    if values.dtype.kind != "M":
        raise TypeError(
            f"times must be dates and times, such as an array of datetime64 or a column of a frame; got {shown(times)} "
            f"of {values.dtype}"
        )
    return values


def _of_objects(values: NDArray[Any]) -> NDArray[Any]:
    """Dates, and times with or without a zone, as `datetime64`; other objects as they are."""
    if not all(value is None or isinstance(value, (datetime.date, np.datetime64)) for value in values):
        return values
    # pandas' NaT differs from itself.
    zones = {getattr(value, "tzinfo", None) is not None for value in values if value is not None and value == value}
    if len(zones) > 1:
        raise TypeError("times must all have a time zone, or none of them; got both")
    return np.array([_of_one(value) for value in values])


def _of_one(value: Any) -> np.datetime64:
    if value is None:
        return np.datetime64("NaT", "D")
    if hasattr(value, "to_datetime64"):  # of pandas, in UTC
        return value.to_datetime64()
    if getattr(value, "tzinfo", None) is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(value)
