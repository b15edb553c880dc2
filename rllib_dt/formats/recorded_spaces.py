"""Finds the spaces that a recording describes: Minari's, and those of the canonical Parquet."""

import json
from collections.abc import Sequence

import gymnasium as gym
import pyarrow.fs as pafs

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import minari
from rllib_dt.formats.files import find_files, open_file
from rllib_dt.formats.parquet_footer import DamagedFooterError, read_footer
from rllib_dt.formats.paths import exists, without_options
from rllib_dt.formats.remote_files import RemoteReadError
from rllib_dt.spaces.descriptions import same_space, space_from_description

Spaces = tuple[gym.Space, gym.Space]
"""The observation space and the action space."""


def recorded_spaces(
    inputs: str | Sequence[str], filesystem: pafs.FileSystem | None = None
) -> Spaces | None:
    """Returns the spaces that the data describes, or None if it describes none.

    Of each folder one file is asked.

    Args:
        inputs, filesystem: see `find_files`.

    Raises:
        DataError: a description is damaged, or two of them differ.
    """
    found: tuple[str, Spaces] | None = None
    asked = set()
    for path, _ in find_files(inputs, filesystem):
        folder = path.rpartition("/")[0]
        if folder in asked:
            continue
        asked.add(folder)
        spaces = _described(path, filesystem)
        if spaces is None:
            continue
        if found is None:
            found = path, spaces
        elif not all(map(same_space, found[1], spaces)):
            raise DataError(
                path,
                f"it was recorded with the spaces {spaces}, but {found[0]} with {found[1]}",
                "give data of one environment",
            )
    return None if found is None else found[1]


def _described(path: str, filesystem: pafs.FileSystem | None) -> Spaces | None:
    try:
        name = without_options(path)
        if name.endswith((".parquet", ".pq")):
            spaces = _of_parquet(path, filesystem)
            if spaces is not None:
                return spaces
        return _of_minari(path, filesystem)
    except (DataError, RemoteReadError):
        raise
    except Exception as error:  # what a damaged description makes gymnasium raise cannot be listed
        raise DataError(
            path,
            f"the description of its spaces cannot be read ({type(error).__name__}: {error})",
            "give environment(observation_space=…, action_space=…)",
        ) from error


def _of_parquet(path: str, filesystem: pafs.FileSystem | None) -> Spaces | None:
    opened, _ = open_file(path, filesystem)
    with opened as file:
        try:
            described = read_footer(file).values(b"rllib_dt")
        except DamagedFooterError as error:
            raise DataError(
                path, f"it is not a complete Parquet file ({error})", "copy or record it again"
            ) from error
    if not described:
        return None
    metadata = json.loads(described[0])
    observation, action = (
        space_from_description(metadata[name]) for name in ("observation_space", "action_space")
    )
    return observation, action


def _of_minari(path: str, filesystem: pafs.FileSystem | None) -> Spaces | None:
    name, mark, options = path.partition("?") if without_options(path) != path else (path, "", "")
    for place in minari.metadata_of(name):
        if not exists(place + mark + options, filesystem):
            continue
        opened, _ = open_file(place + mark + options, filesystem)
        with opened as file:
            spaces = minari.spaces_from_metadata(file.read())
        if spaces is not None:
            return spaces
    return None
