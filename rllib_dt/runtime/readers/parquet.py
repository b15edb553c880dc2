"""Parquet: our canonical episodes, RLlib's serialised episodes, or one row a step."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rllib_dt.episodes.record import DataError
from rllib_dt.runtime.readers.columns import array_from_arrow, check_no_nulls, is_list
from rllib_dt.runtime.readers.fragments import Fragment, fragments_of_parts
from rllib_dt.runtime.readers.steps import OPTIONAL, REQUIRED, check_columns, step_table

Array = NDArray[Any]

# what damaged or foreign msgpack bytes raise on their way to a fragment
_NO_EPISODE = (ValueError, LookupError, TypeError, AttributeError, msgpack.UnpackException)

# a file of steps that holds more is read in parts of this size
MAX_BYTES_AT_ONCE = 128 * 2**20

FORMAT_VERSION = 1
EPISODE_COLUMNS = ("obs", "actions", "rewards", "terminated", "truncated")


def read_parquet(file: Any, source: str, names: Mapping[str, str]) -> Iterator[Fragment]:
    """Fragments of a Parquet file, whichever of the three layouts it has.

    Args:
        file: an open binary file.
        source: its name, for messages.
        names: RLlib's column names to the file's own (`input_read_schema`).
    """
    try:
        parquet = pq.ParquetFile(file)
        if parquet.metadata.num_rows == 0:
            raise DataError(source, "it is empty", "remove it from the input")
        yield from _layout(parquet.schema_arrow, names)(parquet, source, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            source, f"it is no whole Parquet file ({error})", "copy or record it again"
        ) from error


def _layout(schema: pa.Schema, names: Mapping[str, str]) -> Callable[..., Iterator[Fragment]]:
    if all(names.get(name, name) in schema.names for name in EPISODE_COLUMNS):
        # a row a step may have the same names (input_read_schema), but it holds one reward
        rewards = schema.field(names.get("rewards", "rewards")).type
        if is_list(rewards) or isinstance(rewards, pa.BaseExtensionType):
            return _canonical
    if schema.names == ["item"] and pa.types.is_binary(schema.field("item").type):
        return _serialized
    return _steps


def _canonical(
    parquet: pq.ParquetFile, source: str, names: Mapping[str, str]
) -> Iterator[Fragment]:
    _check_version(parquet.schema_arrow, source)
    index = 0
    for batch in parquet.iter_batches(batch_size=256):
        table = pa.Table.from_batches([batch])
        columns = {name: table[names.get(name, name)] for name in EPISODE_COLUMNS}
        for name in ("terminated", "truncated"):
            check_no_nulls(columns[name], source, names.get(name, name))
        ids = table["episode_id"] if "episode_id" in table.column_names else None
        for row in range(len(table)):
            key = str(ids[row].as_py()) if ids is not None else str(index)
            where = f"{source}, episode {key}"
            obs, actions, rewards = (
                _values(columns[name][row], where, name) for name in ("obs", "actions", "rewards")
            )
            index += 1
            one_more = len(obs) == len(rewards) + 1
            yield Fragment(
                source=source,
                key=key,
                start=0,
                observations=obs[:-1] if one_more else obs,
                actions=actions,
                rewards=rewards,
                next_observation=obs[-1] if one_more else None,
                terminated=bool(columns["terminated"][row].as_py()),
                truncated=bool(columns["truncated"][row].as_py()),
            )


def _check_version(schema: pa.Schema, source: str) -> None:
    written = json.loads((schema.metadata or {}).get(b"rllib_dt", b"{}")).get("version", 1)
    if written > FORMAT_VERSION:
        raise DataError(
            source,
            f"it is of format version {written}, this rllib_dt reads up to {FORMAT_VERSION}",
            "upgrade rllib_dt",
        )


def _values(episode: pa.Scalar, source: str, name: str) -> Array:
    """(T, …) numbers of one row: a list of steps, or one of Ray Data's tensors."""
    if isinstance(episode, pa.ExtensionScalar):
        return np.asarray(episode.as_py())
    values = episode.values if is_list(episode.type) else None
    if values is None or len(values) == 0:
        raise DataError(source, f"{name} are no list of steps, or empty", "remove the episode")
    return array_from_arrow(pa.chunked_array([values]), source, name)


def _serialized(
    parquet: pq.ParquetFile, source: str, names: Mapping[str, str]
) -> Iterator[Fragment]:
    row = 0
    for batch in parquet.iter_batches(batch_size=64, columns=["item"]):
        for item in batch.column(0):
            try:
                state = msgpack.unpackb(
                    item.as_py(), object_hook=_decode_array, strict_map_key=False
                )
                yield _fragment_from_state(state, source)
            except _NO_EPISODE as error:
                raise DataError(
                    source,
                    f"row {row} is no episode that RLlib serialised ({error!r})",
                    "record it with output_write_episodes=True, or as columns with False",
                ) from error
            row += 1


def _decode_array(value: dict) -> Any:
    """msgpack-numpy's arrays, but for those of objects, which it would unpickle."""
    value = {k.decode() if isinstance(k, bytes) else k: v for k, v in value.items()}
    if "nd" not in value:
        return value
    kind = value.get("kind", "")
    if kind in (b"O", "O", b"V", "V"):
        return None  # infos: not needed, and no pickle is read from data
    dtype = value["type"].decode() if isinstance(value["type"], bytes) else value["type"]
    array = np.frombuffer(value["data"], np.dtype(dtype))
    return array.reshape(value["shape"]) if value["nd"] else array[0]


def _fragment_from_state(state: dict, source: str) -> Fragment:
    observations, actions, rewards = (
        _after_lookback(state[name], name) for name in ("observations", "actions", "rewards")
    )
    steps = len(rewards)
    if not len(observations) - 1 == len(actions) == steps:
        raise ValueError(
            f"{len(observations)} observations, {len(actions)} actions and {steps} rewards"
        )
    return Fragment(
        source=source,
        key=str(state["id_"]),
        start=int(state["t_started"]),
        observations=observations[:steps],
        actions=actions,
        rewards=rewards,
        next_observation=observations[steps],
        terminated=bool(state["is_terminated"]),
        truncated=bool(state["is_truncated"]),
    )


def _after_lookback(buffer: dict, name: str) -> Array:
    # the lookback repeats the end of the chunk before
    values = np.asarray(buffer["data"])
    if values.dtype == object:
        raise ValueError(f"its {name} are no numbers, or of several shapes")
    return values[buffer.get("lookback", 0) :]


def _steps(parquet: pq.ParquetFile, source: str, names: Mapping[str, str]) -> Iterator[Fragment]:
    present = set(parquet.schema_arrow.names)
    check_columns(present, names, source)
    wanted = [n for n in (*REQUIRED, *OPTIONAL) if names.get(n, n) in present]
    tables = _tables(parquet, [names.get(name, name) for name in wanted])
    parts = (step_table(_columns(t, wanted, source, names), source) for t in tables)
    yield from fragments_of_parts(parts)


def _tables(parquet: pq.ParquetFile, columns: list[str]) -> Iterator[pa.Table]:
    """The whole file, or, of a large one, part after part."""
    size = sum(parquet.metadata.row_group(i).total_byte_size for i in range(parquet.num_row_groups))
    if size <= MAX_BYTES_AT_ONCE:
        yield parquet.read(columns=columns)
        return
    rows = max(1, parquet.metadata.num_rows * MAX_BYTES_AT_ONCE // size)
    for batch in parquet.iter_batches(batch_size=rows, columns=columns):
        yield pa.Table.from_batches([batch])


def _columns(
    table: pa.Table, wanted: list[str], source: str, names: Mapping[str, str]
) -> dict[str, Array]:
    columns = {}
    for name in wanted:
        column = table[names.get(name, name)]
        if name in OPTIONAL and column.null_count == len(column):
            continue
        if name == "eps_id":  # of any type that can be compared
            check_no_nulls(column, source, names.get(name, name))
            columns[name] = column.to_numpy(zero_copy_only=False)
        else:
            columns[name] = array_from_arrow(column, source, names.get(name, name))
    return columns
