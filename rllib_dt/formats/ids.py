"""Converts the names of episodes, of which no two may become one."""

from typing import Any

import numpy as np
import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.columns import check_no_nulls, is_bytes, is_text, plain, short
from rllib_dt.formats.expansion import Expansion
from rllib_dt.types import Array

_IDS = "name each episode by a whole number or by text"
_LARGEST_EXACT = 2.0**53
"""Beyond it, neighbouring whole numbers meet in one floating-point number."""


def ids_from_arrow(column: pa.ChunkedArray, source: str, name: str, expansion: Expansion) -> Array:
    """Converts an Arrow column of episodes' names to (n,) whole numbers, text or bytes."""
    check_no_nulls(column, source, name)
    column = plain(column, name, expansion)
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if is_number or is_text(kind) or is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        return check_ids(column.to_numpy(zero_copy_only=False), source, name)
    raise DataError(source, f"ids in column {name!r} are of type {kind}", _IDS)


def ids_from_values(values: Any, source: str, name: str) -> Array:
    """Converts a JSON list of episodes' names to (n,) whole numbers or text."""
    if not isinstance(values, list):
        raise DataError(source, f"ids in column {name!r} are no list", _IDS)
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise DataError(
                source, f"the id in column {name!r}, row {row}, is {short(value)}", _IDS
            )
    kinds = {type(value) for value in values}
    if str in kinds:
        if len(kinds) > 1:
            raise DataError(source, f"ids in column {name!r} are numbers and text", _IDS)
        return np.array(values, object)
    numbers = [_whole(value, row, source, name) for row, value in enumerate(values)]
    if all(-(2**63) <= number < 2**63 for number in numbers):
        return np.array(numbers, np.int64)
    return np.array([str(number) for number in numbers], object)


def _whole(value: int | float, row: int, source: str, name: str) -> int:
    if isinstance(value, float) and not (value.is_integer() and abs(value) <= _LARGEST_EXACT):
        raise DataError(source, f"the id in column {name!r}, row {row}, is {value}", _IDS)
    return int(value)


def check_ids(values: Array, source: str, name: str) -> Array:
    """Turns floating-point ids into integers; raises a DataError if that would change one."""
    if values.dtype.kind != "f":
        return values
    bad = ~(np.abs(values) <= _LARGEST_EXACT) | (values != np.floor(values))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(source, f"the id in column {name!r}, row {row}, is {values[row]}", _IDS)
    return values.astype(np.int64)
