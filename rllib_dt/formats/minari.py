"""Reads Minari's data sets (Farama; format of minari 0.5): HDF5, Arrow and Parquet.

A data set is a folder with `data/metadata.json`. HDF5 has a group for each episode in one file, the
others a file for each episode, with a last row for the last observation whose other columns are
padding.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import Fragment, end_flags, one_a_step, whole_episode
from rllib_dt.formats.hdf5_input import Hdf5Input, names
from rllib_dt.formats.nested import tree_from_arrow
from rllib_dt.formats.table_input import TableInput
from rllib_dt.spaces.descriptions import space_from_description
from rllib_dt.spaces.trees import by_leaf, from_leaves, joined
from rllib_dt.types import Array, Tree

METADATA = "metadata.json"

COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")

_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")
_EPISODE = re.compile(r"episode_(\d+)")
_IN_TUPLE = re.compile(r"_index_(\d+)")


def find_dataset(name: str) -> str | None:
    """Returns the folder of a data set by its id ("D4RL/door/human-v2"), if it was downloaded.

    It is looked for where minari keeps them: in `MINARI_DATASETS_PATH`, or `~/.minari/datasets`.
    """
    if not _ID.fullmatch(name):
        return None
    default = Path.home() / ".minari" / "datasets"
    folder = Path(os.environ.get("MINARI_DATASETS_PATH") or default).expanduser() / name
    return str(folder) if (folder / "data" / METADATA).is_file() else None


def located(path: str) -> str:
    """Returns a path, or the folder of the data set whose id it is if there is no such path."""
    return path if os.path.exists(path) else find_dataset(path) or path


def metadata_of(path: str) -> list[str]:
    """Lists where the metadata of the data set is that a file may belong to."""
    folder = path.rpartition("/")[0]
    return [f"{folder}/{METADATA}", f"{folder.rpartition('/')[0]}/{METADATA}"]


def spaces_from_metadata(content: bytes) -> tuple[gym.Space, gym.Space] | None:
    """Rebuilds the spaces that a data set's `metadata.json` describes; None if it has none.

    Raises:
        ValueError: they are damaged, or of a type that is not known.
    """
    metadata = json.loads(content)
    described = ("observation_space", "action_space")
    if not isinstance(metadata, dict) or not all(name in metadata for name in described):
        return None
    observation, action = (
        space_from_description(_ours(json.loads(metadata[name]))) for name in described
    )
    return observation, action


def _ours(description: Mapping[str, Any]) -> dict[str, Any]:
    """Translates minari's description of a space to `describe_space`'s."""
    ours = dict(description)
    if "subspaces" in ours:
        inner = ours["subspaces"]
        is_dict = isinstance(inner, Mapping)
        ours["spaces"] = (
            {name: _ours(each) for name, each in inner.items()}
            if is_dict
            else [_ours(each) for each in inner]
        )
    if ours.get("type") == "Box":
        for bound in ("low", "high"):
            ours[bound] = [str(v) for v in np.ravel(ours[bound])]
    return ours


# --- HDF5


def matches_hdf5(given: Hdf5Input) -> bool:
    """Returns whether an HDF5 file has a group for each episode."""
    return any(_EPISODE.fullmatch(name) for name in names(given.root))


def read_hdf5(given: Hdf5Input) -> Iterator[Fragment]:
    """Yields a fragment for each episode's group, in the order of their numbers."""
    given.options.refuse_names(given.source, COLUMNS)
    found = (_EPISODE.fullmatch(name) for name in names(given.root))
    for number, name in sorted((int(match[1]), match[0]) for match in found if match):
        yield _from_group(given, given.group(name), str(number))


def _from_group(given: Hdf5Input, group: h5py.Group, key: str) -> Fragment:
    given.check_names(group, COLUMNS, f"episode {key}")
    options = given.options
    return _fragment(
        {
            "observations": given.tree(group, "observations", options.observed, _part),
            "actions": given.tree(group, "actions", options.acted, _part),
            **{name: given.values(group, name) for name in COLUMNS[2:]},
        },
        given.source,
        key,
    )


def _part(name: str) -> str:
    """Turns a name within a group into a part of a path; Tuples have `_index_0`, …"""
    match = _IN_TUPLE.fullmatch(name)
    return match[1] if match else name


# --- Arrow and Parquet


def matches_table(given: TableInput) -> bool:
    """Returns whether a table has the columns of an episode."""
    return set(COLUMNS) <= set(given.schema.names)


def read_table(given: TableInput) -> Iterator[Fragment]:
    """Yields the fragment of a file, which is one episode; its folder has the episode's number."""
    given.options.refuse_names(given.source, COLUMNS)
    given.announce(COLUMNS)
    table = given.read(COLUMNS)
    if len(table) < 2:
        raise DataError(given.source, "it holds no step", "remove it from the input")
    padded = table.slice(0, len(table) - 1)
    columns = {
        "observations": _tree(table, "observations", "obs", given),
        "actions": _tree(padded, "actions", "actions", given),
        **{name: _tree(padded, name, name, given) for name in COLUMNS[2:]},
    }
    yield _fragment(columns, given.source, Path(given.source).parent.name)


def _tree(table: pa.Table, name: str, column: str, given: TableInput) -> Tree:
    """Converts a column; a Box is flat in the file, and gets the shape that the space has."""
    choice = given.options.choice_of(column)
    values = tree_from_arrow(table[name], given.source, name, given.expansion, choice)
    shaped = {
        path: _shaped(array, given.options.shapes.get(joined(column, path)))
        for path, array in by_leaf(values).items()
    }
    return from_leaves(shaped)


def _shaped(values: Array, shape: tuple[int, ...] | None) -> Array:
    # another size is refused later, with the episode's name
    if shape is None or values.ndim != 2 or values.shape[1] != math.prod(shape):
        return values
    return values.reshape(len(values), *shape)


# --- both


def _fragment(columns: Mapping[str, Tree], source: str, key: str) -> Fragment:
    flags = {}
    for name in ("terminations", "truncations"):
        values = end_flags(columns[name], name, f"{source}, episode {key}")
        if values[:-1].any():
            raise DataError(
                source,
                f"{name} mark step {int(np.argmax(values))} as an end, but the episode has "
                f"{len(values)} steps",
                "record each episode on its own, or remove it",
                episode=key,
            )
        flags[name] = bool(values[-1:].any())
    return whole_episode(
        source=source,
        key=key,
        observations=columns["observations"],
        actions=columns["actions"],
        rewards=one_a_step(columns["rewards"], "rewards", source),
        terminated=flags["terminations"],
        truncated=flags["truncations"],
    )
