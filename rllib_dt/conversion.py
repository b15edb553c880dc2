"""`convert`: recordings of any format to canonical Parquet, episode by episode."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from rllib_dt.cards import EpisodeReader
from rllib_dt.formats.canonical import RecordedEpisode, write_episodes
from rllib_dt.formats.recorded_spaces import Spaces, recorded_spaces
from rllib_dt.spaces.trees import unflatten


def convert(
    data: str | Sequence[str],
    folder: str | Path,
    *,
    spaces: Spaces | None = None,
    filesystem: pafs.FileSystem | None = None,
    on_episode: Callable[[int, float], None] | None = None,
    **options: Any,
) -> list[Path]:
    """Writes recordings as Parquet with one row per episode; they are never in memory as a whole.

    Args:
        data: like `offline_data(input_=…)`.
        folder: see `write_episodes`.
        spaces: the observation and the action space; those that the data describes by default.
        filesystem: the data's file system; derived from each path by default.
        on_episode: called after each episode with its steps and the share of the files' bytes
            that were read before its file.
        options: see `report`.

    Returns:
        The paths of the files.

    Raises:
        DataError: the data cannot be trained on; files that were written are left.
        ValueError: no spaces are given, and the data describes none.
    """
    found = recorded_spaces(data, filesystem) if spaces is None else spaces
    if found is None:
        raise ValueError(
            "the data does not describe its spaces; name its environment (--env), or give "
            "convert(spaces=(observation_space, action_space))"
        )
    reader = EpisodeReader(data, found, filesystem, **options)
    return write_episodes(_episodes(reader, found, on_episode), folder, *found)


def _episodes(
    reader: EpisodeReader, spaces: Spaces, on_episode: Callable[[int, float], None] | None
) -> Iterator[RecordedEpisode]:
    total = max(1, sum(size for _, size in reader.files))
    before, done = {}, 0
    for path, size in reader.files:
        before[path] = done / total
        done += size
    for episode in reader.episodes(strict=True):
        yield {
            "episode_id": episode.id,
            "obs": unflatten(spaces[0], episode.observations),
            "actions": unflatten(spaces[1], episode.actions),
            "rewards": episode.rewards,
            "terminated": episode.terminated,
            "truncated": episode.truncated,
        }
        if on_episode is not None:
            on_episode(len(episode), before.get(episode.source, 0.0))
