"""Converts Arrow columns and lists of Python values to numpy arrays of numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.safe_pickle import RefusedPickleError, unpack_array
from rllib_dt.types import Array

_RAGGED = "record arrays of one shape at every step"
_SHOWN = 40
"""Characters of a refused value that a message shows."""


def unpack(packed: str | bytes, source: str, name: str) -> Array:
    """Unpacks a compressed value; raises a DataError for anything but a numpy array."""
    try:
        return unpack_array(packed)
    except RefusedPickleError as error:
        raise DataError(
            source,
            f"column {name!r} holds text or bytes ({_short(packed)}), which count as an array that "
            f"RLlib packed, but were refused: {error}",
            "record numbers or booleans, uncompressed (offline_data(output_compress_columns=[]))",
        ) from error


def _short(packed: str | bytes) -> str:
    text = repr(packed)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def array_from_values(values: Any, source: str, name: str) -> Array:
    """Converts a JSON value, a list or text that RLlib packed, to (n, …) numbers."""
    if isinstance(values, str):
        return unpack(values, source, name)
    if isinstance(values, list) and values and isinstance(values[0], str):
        return stack([unpack(v, source, name) for v in values], source, name)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(source, f"column {name!r} is ragged ({error})", _RAGGED) from error
    if array.dtype == object:
        raise DataError(source, f"column {name!r} holds values that are not numbers", _RAGGED)
    if array.ndim == 0:
        raise DataError(
            source, f"column {name!r} holds one value", "record a list, one item per step"
        )
    return array


def stack(arrays: list[Array], source: str, name: str) -> Array:
    """Stacks arrays of one shape; raises a DataError if their shapes differ."""
    try:
        return np.stack(arrays)
    except ValueError as error:
        shapes = sorted({a.shape for a in arrays})[:4]
        raise DataError(source, f"column {name!r} is ragged: shapes {shapes}", _RAGGED) from error


def check_no_nulls(column: pa.ChunkedArray, source: str, name: str) -> None:
    """Raises a DataError that names the first row without a value, if there is one."""
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(
            source,
            f"column {name!r} has {column.null_count} missing values, the first in row {row}",
            "remove the rows or fill the values in",
        )


def array_from_arrow(column: pa.ChunkedArray, source: str, name: str) -> Array:
    """Converts an Arrow column of numbers, lists, tensors or packed text to (n, …) numbers."""
    check_no_nulls(column, source, name)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return stack([unpack(v, source, name) for v in column.to_pylist()], source, name)
    arrays = [_chunk(chunk, source, name) for chunk in column.chunks]
    if not arrays:
        return np.empty(0)
    if len({a.shape[1:] for a in arrays}) > 1:
        shapes = sorted({a.shape[1:] for a in arrays})
        raise DataError(source, f"column {name!r} is ragged: shapes {shapes}", _RAGGED)
    return np.concatenate(arrays)


def _chunk(chunk: pa.Array, source: str, name: str) -> Array:
    values: Array
    if isinstance(chunk, pa.FixedShapeTensorArray):
        values = chunk.to_numpy_ndarray()
        return values
    if isinstance(chunk, pa.ExtensionArray):
        # Ray Data's tensor columns; if shapes vary, each row is a separate array
        values = chunk.to_numpy(zero_copy_only=False)
        return stack(list(values), source, name) if values.dtype == object else values
    if is_list(chunk.type):
        return _list_chunk(chunk, source, name)
    if pa.types.is_boolean(chunk.type) or pa.types.is_primitive(chunk.type):
        values = chunk.to_numpy(zero_copy_only=False)
        return values
    raise DataError(source, f"column {name!r} is of type {chunk.type}", "record numbers")


_TENSORS = (
    "arrow.fixed_shape_tensor",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
)
"""The extension types that hold numbers: Arrow's tensors, and Ray's."""


def check_types(schema: pa.Schema, source: str) -> None:
    """Refuses a schema with an extension type other than a tensor of numbers.

    Converting an extension type's values runs code that the type's name selects: for Ray's
    `ray.data.arrow_pickled_object`, an unpickler. So this comes before any value is read.
    """
    for field in schema:
        for kind in _types_within(field.type):
            if isinstance(kind, pa.BaseExtensionType) and kind.extension_name not in _TENSORS:
                raise DataError(
                    source,
                    f"column {field.name!r} is of the extension type {kind.extension_name!r}",
                    "record numbers, lists of numbers or tensors; other columns must be removed, "
                    "since reading such a type could run code",
                )


def _types_within(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yields a type and all the types that it is made of."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        yield from _types_within(kind.storage_type)
    elif pa.types.is_dictionary(kind):
        yield from _types_within(kind.value_type)
    else:
        for i in range(kind.num_fields):
            yield from _types_within(kind.field(i).type)


def is_list(kind: pa.DataType) -> bool:
    """Returns whether values of a type are lists of any kind."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _list_chunk(chunk: pa.Array, source: str, name: str) -> Array:
    lengths = pc.list_value_length(chunk).unique()
    if len(lengths) > 1:
        raise DataError(
            source,
            f"column {name!r} is ragged: lists of {sorted(lengths.to_pylist())[:4]} values",
            _RAGGED,
        )
    values = chunk.flatten()
    if values.null_count:
        raise DataError(source, f"column {name!r} has missing values in its lists", "fill them in")
    inner = _chunk(values, source, name)
    return inner.reshape(len(chunk), -1, *inner.shape[1:]) if len(chunk) else inner
