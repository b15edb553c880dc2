"""Parquet: our canonical episodes, RLlib's serialised episodes, or one row a step."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rllib_dt.episodes.record import DataError
from rllib_dt.runtime.readers.columns import array_from_arrow
from rllib_dt.runtime.readers.fragments import Fragment
from rllib_dt.runtime.readers.steps import OPTIONAL, REQUIRED, check_columns, step_table

Array = NDArray[Any]

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
    except pa.ArrowInvalid as error:
        raise DataError(
            source, f"it is no whole Parquet file ({error})", "copy or record it again"
        ) from error
    present = set(parquet.schema_arrow.names)
    if parquet.metadata.num_rows == 0:
        raise DataError(source, "it is empty", "remove it from the input")
    if all(names.get(name, name) in present for name in EPISODE_COLUMNS):
        yield from _canonical(parquet, source, names)
    elif present == {"item"} and pa.types.is_binary(parquet.schema_arrow.field("item").type):
        yield from _serialized(parquet, source)
    else:
        yield from _steps(parquet, source, names)


def _canonical(
    parquet: pq.ParquetFile, source: str, names: Mapping[str, str]
) -> Iterator[Fragment]:
    index = 0
    for batch in parquet.iter_batches(batch_size=256):
        table = pa.Table.from_batches([batch])
        columns = {name: table[names.get(name, name)] for name in EPISODE_COLUMNS}
        ids = table["episode_id"] if "episode_id" in table.column_names else None
        for row in range(len(table)):
            key = str(ids[row].as_py()) if ids is not None else str(index)
            where = f"{source}, episode {key}"
            obs, actions, rewards = (
                array_from_arrow(_items(columns[name], row, where, name), where, name)
                for name in ("obs", "actions", "rewards")
            )
            index += 1
            steps = len(rewards)
            yield Fragment(
                source=source,
                key=key,
                start=0,
                observations=obs[:steps],
                actions=actions,
                rewards=rewards,
                next_observation=obs[steps] if len(obs) > steps else None,
                terminated=bool(columns["terminated"][row].as_py()),
                truncated=bool(columns["truncated"][row].as_py()),
            )


def _items(column: pa.ChunkedArray, row: int, source: str, name: str) -> pa.ChunkedArray:
    values = column[row].values if column[row].is_valid else None
    if values is None or len(values) == 0:
        raise DataError(source, f"{name} are empty", "remove the episode")
    return pa.chunked_array([values])


def _serialized(parquet: pq.ParquetFile, source: str) -> Iterator[Fragment]:
    row = 0
    for batch in parquet.iter_batches(batch_size=64, columns=["item"]):
        for item in batch.column(0):
            try:
                state = msgpack.unpackb(
                    item.as_py(), object_hook=_decode_array, strict_map_key=False
                )
                yield _fragment_from_state(state, source)
            except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
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
        np.asarray(state[name]["data"])[state[name].get("lookback", 0) :]
        for name in ("observations", "actions", "rewards")
    )
    steps = len(rewards)
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


def _steps(parquet: pq.ParquetFile, source: str, names: Mapping[str, str]) -> Iterator[Fragment]:
    present = set(parquet.schema_arrow.names)
    check_columns(present, names, source)
    wanted = [n for n in (*REQUIRED, *OPTIONAL) if names.get(n, n) in present]
    table = parquet.read(columns=[names.get(name, name) for name in wanted])
    columns = {}
    for name in wanted:
        column = table[names.get(name, name)]
        if name == "eps_id":
            columns[name] = column.to_numpy(zero_copy_only=False)
        elif column.null_count == len(column) and name in OPTIONAL:
            continue
        else:
            columns[name] = array_from_arrow(column, source, names.get(name, name))
    yield from step_table(columns, source).fragments()
