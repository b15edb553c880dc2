"""Which files an input means, and which reader each needs."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from rllib_dt.episodes.record import DataError
from rllib_dt.runtime.readers.fragments import Fragment
from rllib_dt.runtime.readers.hdf5 import read_d4rl
from rllib_dt.runtime.readers.parquet import read_parquet
from rllib_dt.runtime.readers.sample_batch_json import read_sample_batches
from rllib_dt.runtime.remote_files import PersistentFile

_PARQUET = (".parquet", ".pq")
_JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".zip")
_HDF5 = (".hdf5", ".h5")
SUFFIXES = (*_PARQUET, *_JSON, *_HDF5)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the readers must know beside the file.

    Attributes:
        names: RLlib's column names to the data's own.
        time_limit: the environment's, for D4RL files without `timeouts`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    time_limit: int | None = None


def find_files(
    inputs: str | Sequence[str], filesystem: pafs.FileSystem | None = None
) -> list[tuple[str, int]]:
    """(path, bytes) of every data file that the inputs name, in a fixed order.

    Args:
        inputs: files, folders (searched through, in the order of names) or patterns.
        filesystem: where they are; from their URI, or local, by default.
    """
    files: list[tuple[str, int]] = []
    for name in [inputs] if isinstance(inputs, str) else list(inputs):
        found = [
            file for path in _expand(name, filesystem) for file in _data_files(path, filesystem)
        ]
        if not found:
            raise DataError(
                name, "it holds no data file", f"give files that end in one of {SUFFIXES}"
            )
        files.extend(found)
    return files


def _expand(name: str, filesystem: pafs.FileSystem | None) -> list[str]:
    if (
        filesystem is None
        and "://" not in name
        and glob.has_magic(name)
        and not Path(name).exists()
    ):
        return sorted(glob.glob(name, recursive=True))
    return [name]


def _locate(name: str, filesystem: pafs.FileSystem | None) -> tuple[pafs.FileSystem, str]:
    if filesystem is not None:
        return filesystem, name.split("://", 1)[-1]
    if "://" in name:
        return pafs.FileSystem.from_uri(name)
    return pafs.LocalFileSystem(), str(Path(name).expanduser().resolve())


def _data_files(name: str, filesystem: pafs.FileSystem | None) -> list[tuple[str, int]]:
    system, path = _locate(name, filesystem)
    prefix = name.split("://", 1)[0] + "://" if "://" in name and filesystem is None else ""
    # a URI's options ("?endpoint_override=…") belong to each file below it
    options = "?" + name.split("?", 1)[1] if prefix and "?" in name else ""
    info = system.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise DataError(name, "there is no such file or folder", "check offline_data(input_=…)")
    if info.type == pafs.FileType.File:
        if not path.endswith(SUFFIXES):
            raise DataError(name, "its format is not known by its name", f"wanted {SUFFIXES}")
        return [(prefix + path + options, info.size)]
    inside = system.get_file_info(pafs.FileSelector(path, recursive=True))
    return [
        (prefix + f.path + options, f.size)
        for f in sorted(inside, key=lambda f: f.path)
        if f.type == pafs.FileType.File
        and f.path.endswith(SUFFIXES)
        and not any(p.startswith((".", "_")) for p in Path(f.path).relative_to(path).parts)
    ]


def read_file(
    path: str, options: ReadOptions, filesystem: pafs.FileSystem | None = None
) -> Iterator[Fragment]:
    """The fragments of one file; DataError where it cannot be read."""
    system, inner = _locate(path, filesystem)
    is_local = isinstance(system, pafs.LocalFileSystem)
    try:
        opened = system.open_input_file(inner) if is_local else PersistentFile(system, inner, path)
    except FileNotFoundError as error:
        raise DataError(
            path, "it was there when the run began, and is no more", "put it back; then go on"
        ) from error
    with opened as file:
        if file.size() == 0:
            raise DataError(path, "it is empty", "remove it from the input")
        if inner.endswith(_PARQUET):
            yield from read_parquet(file, path, options.names)
        elif inner.endswith(_JSON):
            yield from read_sample_batches(file, path, options.names)
        else:
            yield from read_d4rl(file, path, options.time_limit)


def time_limit_of(env: Any) -> int | None:
    """The step limit that an environment was registered with, if any."""
    spec = getattr(env, "spec", None)
    return getattr(spec, "max_episode_steps", None)
