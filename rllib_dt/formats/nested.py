"""Turns nested columns, structs and dicts, into trees of numbers; see `spaces.trees`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.columns import (
    array_from_arrow,
    array_from_values,
    check_no_nulls,
    is_bytes,
    is_text,
    plain,
    plain_type,
)
from rllib_dt.formats.expansion import Expansion
from rllib_dt.spaces.trees import EVERYTHING, LeafChoice, from_leaves, joined
from rllib_dt.types import Array, Tree


def tree_from_arrow(
    column: pa.ChunkedArray,
    source: str,
    name: str,
    expansion: Expansion,
    choice: LeafChoice = EVERYTHING,
) -> Tree:
    """Converts a column like `array_from_arrow`; a struct becomes a tree of its fields.

    Args:
        column: the column.
        source: the file, for messages.
        name: the column's name, for messages.
        expansion: what the file may take in memory.
        choice: which fields are converted.
    """
    found: dict[str, Array] = {}
    for path, leaf in arrow_leaves(column, source, name, choice):
        where = joined(name, path)
        _check_new(found, path, source, name)
        if path in choice.texts and is_text(plain_type(leaf.type)):
            check_no_nulls(leaf, source, where)
            texts = plain(leaf, where, expansion).to_pylist()
            found[path] = text_array(texts, source, where, expansion)
        else:
            found[path] = array_from_arrow(leaf, source, where, expansion)
    return from_leaves(found)


def _check_new(found: Mapping[str, Array], path: str, source: str, name: str) -> None:
    """Refuses a second leaf of one path: {"a/b": …} beside {"a": {"b": …}}."""
    if path in found:
        raise DataError(
            source, f"column {name!r} has two leaves {path!r}", "rename one, or remove it"
        )


def text_array(
    values: Iterable[object], source: str, name: str, expansion: Expansion | None = None
) -> Array:
    """Converts text to (n,) bytes of one length, as numpy pads them."""
    found = [text.encode() if isinstance(text, str) else text for text in values]
    texts = [text for text in found if isinstance(text, bytes)]
    if len(texts) < len(found):
        raise DataError(source, f"column {name!r} does not hold text", "record text at every step")
    if expansion is not None:
        expansion.take(len(texts) * max(map(len, texts), default=0), f"column {name!r}")
    return np.array(texts, np.bytes_)


def arrow_leaves(
    column: pa.ChunkedArray | pa.Array,
    source: str,
    name: str,
    choice: LeafChoice = EVERYTHING,
    path: str = "",
) -> Iterator[tuple[str, Any]]:
    """Yields the columns that a column of structs is made of, by path; another one is under "".

    A struct of `bytes` and `path`, as data sets of Hugging Face have for an image, is one leaf.
    """
    kind = column.type
    if choice.skips(path):
        return
    if not isinstance(kind, pa.StructType):
        yield path, column
        return
    names = {field.name for field in kind}
    if names == {"bytes", "path"} and is_bytes(plain_type(kind.field("bytes").type)):
        yield path, pc.struct_field(column, "bytes")
        return
    check_no_nulls(column, source, joined(name, path))
    for field in kind:
        inner = joined(path, field.name)
        yield from arrow_leaves(pc.struct_field(column, field.name), source, name, choice, inner)


def tree_from_values(
    values: Any,
    source: str,
    name: str,
    expansion: Expansion | None = None,
    choice: LeafChoice = EVERYTHING,
) -> Tree:
    """Converts like `array_from_values`; a dict, or a list of dicts, becomes a tree."""
    found: dict[str, Array] = {}
    for path, leaf in _value_leaves(values, source, name, choice):
        where = joined(name, path)
        _check_new(found, path, source, name)
        if path in choice.texts and not isinstance(leaf, str | np.ndarray):
            found[path] = text_array(leaf, source, where, expansion)
        else:
            found[path] = array_from_values(leaf, source, where, expansion)
    return from_leaves(found)


def _value_leaves(
    values: Any, source: str, name: str, choice: LeafChoice, path: str = ""
) -> Iterator[tuple[str, Any]]:
    if choice.skips(path):
        return
    if isinstance(values, list | tuple) and len(values) and isinstance(values[0], Mapping):
        kept = [
            {k: v for k, v in value.items() if not choice.skips(joined(path, str(k)))}
            if isinstance(value, Mapping)
            else value
            for value in values
        ]
        values = _turned(kept, source, joined(name, path))
    if not isinstance(values, Mapping):
        yield path, values
        return
    for key, value in values.items():
        yield from _value_leaves(value, source, name, choice, joined(path, str(key)))


def _turned(values: Sequence[Any], source: str, name: str) -> dict[str, list[Any]]:
    """Turns a list of dicts into a dict of lists."""
    for step, value in enumerate(values):
        if not isinstance(value, Mapping) or value.keys() != values[0].keys():
            is_dict = isinstance(value, Mapping)
            has = sorted(map(str, value)) if is_dict else f"a {type(value).__name__}"
            raise DataError(
                source,
                f"{name!r} has the leaves {sorted(map(str, values[0]))} in its first step, but "
                f"{has} in step {step}",
                "record every leaf at every step",
            )
    return {key: [value[key] for value in values] for key in values[0]}
