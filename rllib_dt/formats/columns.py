"""Converts Arrow columns and lists of Python values to numpy arrays of numbers."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion
from rllib_dt.formats.images import decode_images, is_encoded
from rllib_dt.formats.parquet_footer import Footer
from rllib_dt.safe_pickle import (
    PackedTooLargeError,
    RefusedPickleError,
    unpack_array,
)
from rllib_dt.types import Array

_RAGGED = "record arrays of one shape at every step"
_SHOWN = 40
"""Characters of a refused value that a message shows."""


def unpack(packed: str | bytes, source: str, name: str, expansion: Expansion) -> Array:
    """Unpacks a compressed value; raises a DataError for anything but a numpy array."""
    try:
        array = unpack_array(packed, expansion.left)
    except PackedTooLargeError:
        expansion.refuse(f"column {name!r}")
        raise
    except RefusedPickleError as error:
        raise DataError(
            source,
            f"column {name!r} holds text or bytes ({short(packed)}), which count as an array that "
            f"RLlib packed, but were refused: {error}",
            "record numbers or booleans, uncompressed (offline_data(output_compress_columns=[]))",
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            source,
            f"column {name!r} holds a packed array of {array.dtype}, not numbers",
            "record numbers or booleans",
        )
    expansion.take(array.nbytes, f"column {name!r}")
    return array


def short(packed: object) -> str:
    """Returns the beginning of a value, for a message."""
    text = repr(packed)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def array_from_values(
    values: Any, source: str, name: str, expansion: Expansion | None = None
) -> Array:
    """Converts a JSON value, a list or text that RLlib packed, to (n, …) numbers."""
    if expansion is not None and isinstance(values, str):
        return unpack(values, source, name, expansion)
    if expansion is not None and isinstance(values, list) and values and isinstance(values[0], str):
        packed = [v if isinstance(v, str) else "" for v in values]
        return stack([unpack(v, source, name, expansion) for v in packed], source, name)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(source, f"column {name!r} is ragged ({error})", _RAGGED) from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            source,
            f"column {name!r} holds values that are not numbers ({array.dtype})",
            "record numbers or booleans",
        )
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


def check_no_nulls(column: pa.ChunkedArray | pa.Array, source: str, name: str) -> None:
    """Raises a DataError that names the first row without a value, if there is one."""
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(
            source,
            f"column {name!r} has {column.null_count} missing values, the first in row {row}",
            "remove the rows or fill the values in",
        )


def array_from_arrow(
    column: pa.ChunkedArray, source: str, name: str, expansion: Expansion
) -> Array:
    """Converts an Arrow column of numbers, lists, tensors or packed text to (n, …) numbers."""
    check_no_nulls(column, source, name)
    column = plain(column, name, expansion)
    kind = column.type
    if is_text(kind) or is_bytes(kind):
        values = column.to_pylist()
        if values and is_encoded(values[0]):
            return decode_images(values, source, name, expansion)
        return stack([unpack(v, source, name, expansion) for v in values], source, name)
    arrays = [_chunk(chunk, source, name) for chunk in column.chunks]
    if not arrays:
        return np.empty(0)
    if len({a.shape[1:] for a in arrays}) > 1:
        shapes = sorted({a.shape[1:] for a in arrays})
        raise DataError(source, f"column {name!r} is ragged: shapes {shapes}", _RAGGED)
    return np.concatenate(arrays)


def _chunk(chunk: pa.Array, source: str, name: str) -> Array:
    kind = chunk.type
    if isinstance(chunk, pa.ExtensionArray):
        return tensors(chunk, source, name)
    if is_list(kind):
        return _list_chunk(chunk, source, name)
    # not `is_primitive`, which timestamps and durations are as well
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values: Array = chunk.to_numpy(zero_copy_only=False)
        return values
    if pa.types.is_fixed_size_binary(kind):
        return _raw_bytes(chunk)
    raise DataError(source, f"column {name!r} is of type {kind}", "record numbers or booleans")


def _raw_bytes(chunk: pa.Array) -> Array:
    """Returns values of W bytes each, such as images, as (n, W) uint8."""
    width = chunk.type.byte_width
    start = chunk.offset * width
    data = np.frombuffer(chunk.buffers()[1], np.uint8)
    return data[start : start + len(chunk) * width].reshape(len(chunk), width)


def shaped_bytes(
    values: Array, described: Mapping[bytes, bytes], source: str, name: str, theirs: str
) -> Array:
    """Gives (n, W) bytes the shape and dtype that the file's metadata describes.

    Args:
        values: (n, W) uint8.
        described: the metadata: JSON under `obs_shape` and, if it is not uint8, `obs_dtype`.
        source: the file, for messages.
        name: RLlib's name of the column.
        theirs: the file's own name of it.
    """
    found = [described.get(f"{n}_shape".encode()) for n in (theirs, name)]
    shape = next((text for text in found if text is not None), None)
    if shape is None:
        return values
    dtypes = [described.get(f"{n}_dtype".encode()) for n in (theirs, name)]
    dtype = next((text for text in dtypes if text is not None), b'"uint8"')
    try:
        kind = np.dtype(json.loads(dtype))
        if kind.kind not in "biuf":
            raise ValueError(f"{kind} are no numbers")
        axes = tuple(int(size) for size in json.loads(shape))
        if min(axes, default=1) < 1 or math.prod(axes) * kind.itemsize != values.shape[1]:
            raise ValueError(f"{axes} of {kind} are not {values.shape[1]} bytes")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            source,
            f"the metadata of column {theirs!r} does not fit its values: {error}",
            "describe the bytes of a step by obs_shape and obs_dtype",
        ) from error
    shaped: Array = np.ascontiguousarray(values).view(kind).reshape(len(values), *axes)
    return shaped


def tensors(chunk: pa.ExtensionArray, source: str, name: str) -> Array:
    """Converts tensors of Arrow's or Ray Data's to (n, …) numbers, from what they are stored as.

    The shape that a tensor's description gives is not trusted: Ray's own conversion would read
    beyond a tensor's values.
    """
    kind, storage = chunk.type, chunk.storage
    if isinstance(storage.type, pa.StructType):  # Ray's tensors of varying shapes
        shapes = set(map(tuple, pc.struct_field(storage, "shape").to_pylist()))
        if len(shapes) > 1:
            raise DataError(
                source, f"column {name!r} is ragged: shapes {sorted(shapes)[:4]}", _RAGGED
            )
        storage = pc.struct_field(storage, "data")
        shape = shapes.pop() if shapes else ()
    else:
        shape = tuple(kind.shape)
    values = _list_chunk(storage, source, name)
    if values.ndim != 2 or values.shape[1] != math.prod(shape) or any(size < 0 for size in shape):
        raise DataError(
            source,
            f"column {name!r} describes its tensors as of shape {shape}, but each holds "
            f"{math.prod(values.shape[1:])} values",
            "write the file again",
        )
    if isinstance(chunk, pa.FixedShapeTensorArray) and kind.permutation is not None:
        permuted: Array = chunk.to_numpy_ndarray()
        return permuted
    return values.reshape(len(values), *shape)


def plain(column: pa.ChunkedArray, name: str, expansion: Expansion) -> pa.ChunkedArray:
    """Returns a column without a dictionary, such as pandas writes for categories."""
    kind = column.type
    if not pa.types.is_dictionary(kind):
        return column
    if is_text(kind.value_type) or is_bytes(kind.value_type):
        for chunk in column.chunks:
            lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
            expansion.take(pc.sum(lengths).as_py() or 0, f"column {name!r}")
    return column.cast(kind.value_type)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns a type, or that of a dictionary's values."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def is_bytes(kind: pa.DataType) -> bool:
    """Returns whether values of a type are bytes of any length."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def announce_columns(footer: Footer, names: Collection[str], expansion: Expansion) -> int:
    """Counts what columns of a Parquet file will take, from its footer; returns the bytes.

    What a dictionary repeats of text and bytes is not known before it is read; `plain` counts it.
    """
    total = 0
    for column in footer.columns:
        if column.column in names:
            values = column.num_values * (column.width or 0)
            size = max(values, column.num_bytes)
            total += size
            expansion.take(size, f"column {column.column!r}")
    return total


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
            if isinstance(kind, pa.BaseExtensionType):
                check_extension(kind.extension_name, field.name, source)


def check_extension(name: str, column: str, source: str) -> None:
    """Refuses an extension type, by its name, that is not a tensor of numbers."""
    if name not in _TENSORS:
        raise DataError(
            source,
            f"column {column!r} is of the extension type {name!r}",
            "record numbers, lists of numbers or tensors; other columns must be removed, since "
            "reading such a type could run code",
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
    if chunk.null_count:
        raise DataError(source, f"column {name!r} has missing values in its lists", "fill them in")
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
    if not len(chunk):
        return inner
    return inner.reshape(len(chunk), lengths[0].as_py(), *inner.shape[1:])
