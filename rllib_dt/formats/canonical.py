"""Reads and writes canonical Parquet, one row per episode (`docs/dataset_format.md`)."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.formats.columns import (
    array_from_arrow,
    array_from_values,
    check_no_nulls,
    is_list,
    tensors,
)
from rllib_dt.formats.expansion import Expansion
from rllib_dt.formats.fragments import Fragment, end_flag, whole_episode
from rllib_dt.formats.ids import ids_from_arrow
from rllib_dt.formats.nested import arrow_leaves, tree_from_values
from rllib_dt.formats.parquet_input import ParquetInput
from rllib_dt.spaces.composites import check_names, wanted
from rllib_dt.spaces.descriptions import describe_space
from rllib_dt.spaces.leaves import step_layout
from rllib_dt.spaces.trees import LeafChoice, by_leaf, from_leaves, is_composite, joined, leaves
from rllib_dt.types import Array, Tree

RecordedEpisode = Mapping[str, Any]
"""An episode as passed to `write_episodes`: a dict with the columns of the format."""

FORMAT_VERSION = 1
_ID = "episode_id"
_OF_PARTS = ("t", "eps_id")
"""Columns of other layouts, which tell whether a row is a part of an episode."""

EPISODE_COLUMNS = ("obs", "actions", "rewards", "terminated", "truncated")

_BYTES_PER_FILE = 64 * 2**20
_ROWS_AT_ONCE = 256


def matches(given: ParquetInput) -> bool:
    """Returns whether the file has the columns of episodes, and a list of rewards in each row."""
    schema, names = given.schema, given.options.names
    if not all(names.get(name, name) in schema.names for name in EPISODE_COLUMNS):
        return False
    # rows of single steps may have the same names (input_read_schema), but hold one reward each
    rewards = schema.field(names.get("rewards", "rewards")).type
    return is_list(rewards) or isinstance(rewards, pa.BaseExtensionType)


def read(given: ParquetInput) -> Iterator[Fragment]:
    """Yields a fragment for each row; a row is a whole episode."""
    source, expansion = given.source, given.expansion
    _check_version(given.schema, source)
    wanted = [given.name(name) for name in EPISODE_COLUMNS]
    if _ID in given.schema.names:
        wanted.append(_ID)
    beside = [given.name(name) for name in _OF_PARTS if given.name(name) in given.schema.names]
    given.announce(wanted + beside)
    first = 0
    seen: set[object] = set()
    for batch in given.batches(wanted + beside, _ROWS_AT_ONCE):
        for name in beside:
            _check_whole(batch[name], given, name, seen, first)
        columns = {name: batch[given.name(name)] for name in EPISODE_COLUMNS}
        for name in ("terminated", "truncated"):
            check_no_nulls(columns[name], source, given.name(name))
        if _ID in wanted:
            ids = ids_from_arrow(pa.chunked_array([batch[_ID]]), source, _ID, expansion)
        else:
            ids = None
        for row in range(len(batch)):
            episode = {name: column.slice(row, 1) for name, column in columns.items()}
            key = None if ids is None else str(ids[row])
            yield _fragment(episode, source, key, first + row, given)
        first += len(batch)


def _fragment(
    row: Mapping[str, pa.Array],
    source: str,
    key: str | None,
    number: int,
    given: ParquetInput,
) -> Fragment:
    """Converts one episode, columns of one row each."""
    where = f"{source}, episode {number if key is None else key}"
    expansion = given.expansion
    obs, actions = (
        _tree(row[name], where, name, expansion, given.options.choice_of(name))
        for name in ("obs", "actions")
    )
    return whole_episode(
        source=source,
        key=key,
        observations=obs,
        actions=actions,
        rewards=_values(row["rewards"], where, "rewards", expansion),
        terminated=end_flag(row["terminated"][0].as_py(), "terminated", where),
        truncated=end_flag(row["truncated"][0].as_py(), "truncated", where),
    )


def _check_whole(
    column: pa.Array, given: ParquetInput, name: str, seen: set[object], first: int
) -> None:
    """Refuses rows that are parts of episodes, as columns of other layouts tell."""
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    values = pc.list_element(column, 0) if is_list(column.type) else column
    for row, value in enumerate(values.to_pylist(), first):
        is_part = value in seen if name == given.name("eps_id") else value not in (0, None)
        if is_part:
            raise DataError(
                given.source,
                f"row {row} begins with {name}={value!r}, so rows are parts of episodes, but in "
                "this layout each row is a whole one",
                f"join the parts, or remove the column {name!r} if rows are whole",
            )
        if name == given.name("eps_id"):
            seen.add(value)


def _check_version(schema: pa.Schema, source: str) -> None:
    try:
        written = int(json.loads((schema.metadata or {}).get(b"rllib_dt", b"{}"))["version"])
    except KeyError:  # written by other programs
        return
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            source, f"its metadata 'rllib_dt' is damaged ({error})", "write the file again"
        ) from error
    if written > FORMAT_VERSION:
        raise DataError(
            source,
            f"it has format version {written}, this rllib_dt reads up to {FORMAT_VERSION}",
            "upgrade rllib_dt",
        )


def _tree(
    episode: pa.Array, where: str, name: str, expansion: Expansion, choice: LeafChoice
) -> Tree:
    """Converts one row, a struct of lists of steps for a composite space."""
    return from_leaves(
        {
            path: _values(leaf, where, joined(name, path), expansion)
            for path, leaf in arrow_leaves(episode, where, name, choice)
        }
    )


def _values(episode: pa.Array, where: str, name: str, expansion: Expansion) -> Array:
    """Converts one row, a list of steps or a tensor, to (T, …) numbers."""
    if isinstance(episode, pa.ExtensionArray) and not episode.null_count:
        array: Array = tensors(episode, where, name)[0]
        if array.ndim == 0:
            raise DataError(where, f"{name} are a single number", "record a list of steps")
        return array
    values = episode[0].values if is_list(episode.type) else None
    if values is None or len(values) == 0:
        raise DataError(where, f"{name} are not a list of steps, or empty", "remove the episode")
    return array_from_arrow(pa.chunked_array([values]), where, name, expansion)


def write_episodes(
    episodes: Iterable[RecordedEpisode],
    folder: str | Path,
    observation_space: gym.Space,
    action_space: gym.Space,
) -> list[Path]:
    """Writes episodes as Parquet, one row per episode, in files of about 64 MB.

    Args:
        episodes: dicts with `obs` (T+1 or T items), `actions` (T), `rewards` (T), `terminated`
            and `truncated` (bool), in the environment's units; `episode_id` is optional. Values of
            a Dict or Tuple space are dicts or tuples of arrays, or lists of one for each step.
        folder: created if needed; it must not hold Parquet files already.
        observation_space: the space of each observation.
        action_space: the space of each action.

    Returns:
        The paths of the files, in the order of the episodes.

    Raises:
        FileExistsError: the folder holds Parquet files.
        UnsupportedSpaceError: a space cannot be written.
        DataError: an episode does not fit the spaces, has no end, or holds NaN or infinity.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.parquet")):
        raise FileExistsError(f"{folder} already holds Parquet files; choose an empty folder")
    for space in (observation_space, action_space):
        check_names(space)
    schema = _schema(observation_space, action_space)
    checked = _checked(episodes, observation_space, action_space)
    files = []
    for number, batch in enumerate(_batches(checked)):
        path = folder / f"part-{number:05d}.parquet"
        unfinished = path.with_suffix(".tmp")
        pq.write_table(
            _table(batch, schema), unfinished, compression="zstd", write_page_checksum=True
        )
        unfinished.rename(path)  # so that a half-written file never looks whole
        files.append(path)
    return files


def _checked(
    episodes: Iterable[RecordedEpisode], observation_space: gym.Space, action_space: gym.Space
) -> Iterator[Episode]:
    for number, given in enumerate(episodes):
        spaces = observation_space, action_space
        episode = _episode(given, str(given.get("episode_id", number)), *spaces)
        if not (episode.terminated or episode.truncated):
            raise episode.error(
                "it is neither terminated nor truncated", "write whole episodes only"
            )
        yield episode.conform(observation_space, action_space)


def _episode(
    given: RecordedEpisode, name: str, observation_space: gym.Space, action_space: gym.Space
) -> Episode:
    missing = [column for column in EPISODE_COLUMNS if column not in given]
    if missing:
        raise DataError(
            "write_episodes",
            f"{missing} are missing; it has {sorted(given)}",
            f"give {', '.join(EPISODE_COLUMNS)}",
            episode=name,
        )
    where = f"write_episodes, episode {name}"
    observations, actions = (
        tree_from_values(_named(space, given[column]), where, column, choice=wanted(space))
        for space, column in ((observation_space, "obs"), (action_space, "actions"))
    )
    rewards = array_from_values(given["rewards"], where, "rewards")
    return Episode(
        id=name,
        source="write_episodes",
        observations=observations,
        actions=actions,
        rewards=rewards.astype(np.float64),
        terminated=end_flag(given["terminated"], "terminated", where),
        truncated=end_flag(given["truncated"], "truncated", where),
    )


def _batches(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    batch: list[Episode] = []
    size = 0
    for episode in episodes:
        batch.append(episode)
        for value in (episode.observations, episode.actions):
            size += sum(array.nbytes for array in by_leaf(value).values())
        if size > _BYTES_PER_FILE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _named(space: gym.Space, value: Any) -> Any:
    """Turns the tuples of Tuple spaces, batches or one for each step, into dicts by number.

    Tuples elsewhere are sequences of steps or numbers.
    """
    if isinstance(space, gym.spaces.Dict):
        if isinstance(value, Mapping):
            inner = space.spaces
            return {k: _named(inner[k], v) if k in inner else v for k, v in value.items()}
        if isinstance(value, list | tuple) and all(isinstance(v, Mapping) for v in value):
            return [_named_step(space, step) for step in value]
    if isinstance(space, gym.spaces.Tuple) and isinstance(value, list | tuple):
        is_batch = isinstance(value, tuple) and len(value) == len(space.spaces)
        if is_batch:
            return {str(i): _named(s, v) for i, (s, v) in enumerate(zip(space, value, strict=True))}
        return [_named_step(space, step) for step in value]
    if isinstance(space, gym.spaces.Text) and isinstance(value, tuple | np.ndarray):
        return list(value)
    return value


def _named_step(space: gym.Space, value: Any) -> Any:
    if isinstance(space, gym.spaces.Dict) and isinstance(value, Mapping):
        inner = space.spaces
        return {k: _named_step(inner[k], v) if k in inner else v for k, v in value.items()}
    is_tuple = isinstance(space, gym.spaces.Tuple) and isinstance(value, list | tuple)
    if is_tuple and len(value) == len(space.spaces):
        steps = zip(space, value, strict=True)
        return {str(i): _named_step(s, v) for i, (s, v) in enumerate(steps)}
    return value


def nested_struct(kinds: Mapping[str, pa.DataType]) -> pa.StructType:
    """Returns the struct whose fields, level by level, are at the paths."""
    fields: dict[str, Any] = {}
    for path, kind in kinds.items():
        first, _, rest = path.partition("/")
        if rest:
            fields.setdefault(first, {})[rest] = kind
        else:
            fields[first] = kind
    return pa.struct(
        [
            pa.field(name, nested_struct(kind) if isinstance(kind, dict) else kind, nullable=False)
            for name, kind in fields.items()
        ]
    )


def _schema(observation_space: gym.Space, action_space: gym.Space) -> pa.Schema:
    metadata = {
        "version": FORMAT_VERSION,
        "observation_space": describe_space(observation_space),
        "action_space": describe_space(action_space),
    }
    return pa.schema(
        [
            pa.field("episode_id", pa.string(), nullable=False),
            pa.field("obs", _list_of_steps(observation_space), nullable=False),
            pa.field("actions", _list_of_steps(action_space), nullable=False),
            pa.field("rewards", pa.list_(pa.float64()), nullable=False),
            pa.field("terminated", pa.bool_(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
        ],
        metadata={"rllib_dt": json.dumps(metadata)},
    )


def _list_of_steps(space: gym.Space) -> pa.DataType:
    """Returns the type of an episode's values: a struct of lists for a composite space."""
    if is_composite(space):
        return nested_struct({path: _list_of_steps(leaf) for path, leaf in leaves(space).items()})
    shape, dtype = step_layout(space)
    kind = pa.from_numpy_dtype(dtype)
    for length in reversed(shape):
        kind = pa.list_(kind, length)
    return pa.list_(kind)


def _table(episodes: list[Episode], schema: pa.Schema) -> pa.Table:
    columns = {
        "episode_id": pa.array([e.id for e in episodes], pa.string()),
        "obs": _column([e.observations for e in episodes], schema.field("obs").type),
        "actions": _column([e.actions for e in episodes], schema.field("actions").type),
        "rewards": _nested([e.rewards.astype(np.float64) for e in episodes]),
        "terminated": pa.array([e.terminated for e in episodes]),
        "truncated": pa.array([e.truncated for e in episodes]),
    }
    return pa.table(columns, schema=schema)


def _column(trees: list[Tree], kind: pa.DataType, path: str = "") -> pa.Array:
    """Turns trees of arrays (T_i, …) into a column of lists, or of structs of lists."""
    if not isinstance(kind, pa.StructType):
        return _nested([by_leaf(tree)[path] for tree in trees])
    names = [field.name for field in kind]
    inner = [_column(trees, field.type, joined(path, field.name)) for field in kind]
    return pa.StructArray.from_arrays(inner, names=names)


def _nested(arrays: list[Array]) -> pa.Array:
    """Turns arrays (T_i, …) into lists of steps, without a Python object for each number."""
    flat = np.concatenate(arrays)
    values: pa.Array = pa.array(flat.ravel())
    for length in reversed(flat.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
