"""Reads RLlib's episode recordings: Parquet with a row of msgpack per `SingleAgentEpisode`."""

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np

try:  # not `msgpack.unpackb`, which msgpack_numpy.patch() replaces by one that reads pickles
    from msgpack._cmsgpack import unpackb
except ImportError:  # without the compiled module
    from msgpack.fallback import unpackb

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.columns import is_bytes
from rllib_dt.formats.fragments import Fragment, end_flag
from rllib_dt.formats.nested import tree_from_values
from rllib_dt.formats.parquet_input import ParquetInput
from rllib_dt.spaces.trees import EVERYTHING, LeafChoice, at, by_leaf, length
from rllib_dt.types import Tree

# raised when damaged or foreign msgpack bytes are turned into a fragment
_NO_EPISODE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    msgpack.UnpackException,
)


ITEM = "item"
"""The column of serialised episodes."""

_ROWS_AT_ONCE = 64

_BYTES_PER_BYTE = 8
"""What a byte of msgpack takes as Python's lists and dicts, roughly."""


def matches(given: ParquetInput) -> bool:
    """Returns whether the file has a column of bytes named `item`."""
    schema = given.schema
    return ITEM in schema.names and is_bytes(schema.field(ITEM).type)


def read(given: ParquetInput) -> Iterator[Fragment]:
    """Yields a fragment for each serialised episode."""
    row = 0
    size = max(1, given.announce([ITEM]))
    # a dictionary may repeat the longest value in every row
    for batch in given.batches([ITEM], max(1, min(_ROWS_AT_ONCE, given.expansion.left // size))):
        given.expansion.take(batch.nbytes * _BYTES_PER_BYTE, "column 'item'")
        for item in batch.column(0):
            try:
                state = unpackb(item.as_py(), object_pairs_hook=_decode_pairs, strict_map_key=False)
                yield _fragment_from_state(state, given.source, given.options.observed)
            except DataError:
                raise
            except _NO_EPISODE as error:
                raise DataError(
                    given.source,
                    f"row {row} is not an episode that RLlib serialised ({error!r})",
                    "record it with output_write_episodes=True, or as columns with "
                    "output_write_episodes=False",
                ) from error
            row += 1


def _decode_pairs(pairs: list[tuple[Any, Any]]) -> Any:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a map holds a key twice")
    return _decode_array(value)


def _decode_array(value: dict) -> Any:
    """Decodes msgpack-numpy's arrays, except those of objects, which it would unpickle."""
    value = {k.decode() if isinstance(k, bytes) else k: v for k, v in value.items()}
    if not {"nd", "type", "data"} <= value.keys():
        return value
    kind = value.get("kind", "")
    if kind in (b"O", "O", b"V", "V"):
        return None  # infos, which are not needed; pickles in data are never loaded
    dtype = value["type"].decode() if isinstance(value["type"], bytes) else value["type"]
    array = np.frombuffer(value["data"], np.dtype(dtype))
    if value["nd"]:
        return array.reshape(value["shape"])
    if len(array) != 1:
        raise ValueError(f"a number of {len(array)} values")
    return array[0]


def _fragment_from_state(state: dict, source: str, observed: LeafChoice) -> Fragment:
    observations = _after_lookback(state["observations"], "observations", source, observed)
    actions, rewards = (
        _after_lookback(state[name], name, source) for name in ("actions", "rewards")
    )
    steps = length(rewards)
    counts = [
        {len(array) for array in by_leaf(value).values()} for value in (observations, actions)
    ]
    if counts != [{steps + 1}, {steps}]:
        raise ValueError(f"{counts[0]} observations, {counts[1]} actions and {steps} rewards")
    return Fragment(
        source=source,
        key=_name(state["id_"]),
        start=_timestep(state["t_started"]),
        observations=at(observations, slice(steps)),
        actions=actions,
        rewards=rewards,
        next_observation=at(observations, steps),
        terminated=end_flag(state["is_terminated"], "is_terminated", source),
        truncated=end_flag(state["is_truncated"], "is_truncated", source),
    )


def _name(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"its id_ is {value!r:.40}")
    return str(value)


def _timestep(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"its t_started is {value!r:.40}")
    return int(value)


def _after_lookback(buffer: dict, name: str, source: str, choice: LeafChoice = EVERYTHING) -> Tree:
    # the lookback repeats the end of the previous chunk
    first = _timestep(buffer.get("lookback", 0))
    if not _is_nested(buffer["data"]):
        try:
            values = np.asarray(buffer["data"])
        except ValueError:  # several shapes
            values = np.empty(0, object)
        if values.dtype == object:
            raise ValueError(
                f"its {name} are not numbers, or have several shapes; those of a Tuple space "
                "cannot be told from lists of steps"
            )
        return values[first:]
    values = tree_from_values(buffer["data"], source, name, choice=choice)
    return at(values, slice(first, None))


def _is_nested(data: object) -> bool:
    """Returns whether values are of a Dict space: a dict of batches, or a dict for each step."""
    return isinstance(data, dict) or (
        isinstance(data, list) and len(data) > 0 and isinstance(data[0], dict)
    )
