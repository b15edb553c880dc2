"""Finds the data files of an input, and the format of each."""

import glob
import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.fs as pafs

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.arrow import read_arrow
from rllib_dt.formats.d4rl_atari import NAMED, read_d4rl_atari
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.hdf5 import read_hdf5
from rllib_dt.formats.npz import read_npz
from rllib_dt.formats.parquet import read_parquet
from rllib_dt.formats.paths import is_uri, locate, without_options
from rllib_dt.formats.remote_files import PersistentFile, RemoteReadError
from rllib_dt.formats.rlds import read_rlds
from rllib_dt.formats.sample_batch_json import read_sample_batches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A kind of data file.

    Attributes:
        suffixes: the endings of such files' names.
        read: yields the fragments of an open binary file, given its name and the options.
        named: such files are those whose path it finds, instead.
        reads_beside: `read` gets a function as well that opens files by their path relative to
            the folder of its own.
    """

    suffixes: tuple[str, ...]
    read: Callable[..., Iterator[Fragment]]
    named: re.Pattern[str] | None = None
    reads_beside: bool = False

    def matches(self, name: str) -> bool:
        """Returns whether a file's name is that of such a file."""
        if self.named is not None:
            return self.named.search(name) is not None
        return _without_shard(name).endswith(self.suffixes)


FORMATS = (
    Format((".parquet", ".pq"), read_parquet, reads_beside=True),
    Format((".json", ".jsonl", ".json.gz", ".jsonl.gz", ".zip"), read_sample_batches),
    Format((".hdf5", ".h5"), read_hdf5),
    Format((".arrow",), read_arrow),
    Format((".npz",), read_npz),
    Format((".tfrecord",), read_rlds),
    Format(("observation.gz",), read_d4rl_atari, NAMED, reads_beside=True),
)

_COMPANIONS = frozenset(
    {
        "metadata.json",  # Minari
        "namespace_metadata.json",
        "dataset_info.json",  # Hugging Face datasets, RLDS
        "dataset_dict.json",
        "features.json",  # RLDS
    }
)
"""Names of files that describe the data beside them, and hold none."""

SUFFIXES = tuple(suffix for known in FORMATS for suffix in known.suffixes)
_WANTED = f"wanted one of {SUFFIXES}"

_SHARD = re.compile(r"-\d+-of-\d+$")
"""What tensorflow's tools append to the name of each of several files."""


def is_data_name(name: str) -> bool:
    """Returns whether a file's name ends like a known format's."""
    return any(known.matches(name) for known in FORMATS)


def _without_shard(name: str) -> str:
    return _SHARD.sub("", name)


def find_files(
    inputs: str | Sequence[str], filesystem: pafs.FileSystem | None = None
) -> list[tuple[str, int]]:
    """Lists (path, size in bytes) of every data file among the inputs, in a fixed order.

    Args:
        inputs: files, folders (searched recursively, in the order of names) or patterns.
        filesystem: the file system of the inputs; derived from each path by default.
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
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    return _once([(path, size, filesystem is None or is_local) for path, size in files])


def _once(files: Sequence[tuple[str, int, bool]]) -> list[tuple[str, int]]:
    """Leaves out files that are listed again, by other paths or through links, and says so."""
    places: dict[str, list[tuple[str, int]]] = {}
    for path, size, may_be_local in files:
        is_local = may_be_local and not is_uri(path)
        places.setdefault(os.path.realpath(path) if is_local else path, []).append((path, size))
    again = sum(len(same) - 1 for same in places.values())
    if again:
        example = next(same for same in places.values() if len(same) > 1)
        logger.warning(
            "%d of %d files are listed more than once and are read once, such as %s",
            again,
            len(files),
            " and ".join(path for path, _ in example[:2]),
        )
    # the shortest path: a link to a folder above it makes longer ones
    return [min(same, key=lambda file: file[0].count("/")) for same in places.values()]


def read_file(
    path: str, options: ReadOptions, filesystem: pafs.FileSystem | None = None
) -> Iterator[Fragment]:
    """Yields the fragments of one file; raises a DataError if it cannot be read."""
    opened, inner = open_file(path, filesystem)
    with opened as file:
        if file.size() == 0:
            raise DataError(path, "it is empty", "remove it from the input")
        try:
            known = _format_of(path, inner)
            given = (partial(_open_beside, path, filesystem),) if known.reads_beside else ()
            yield from known.read(cast(IO[bytes], file), path, options, *given)
        except (DataError, RemoteReadError):
            raise
        except Exception as error:  # what damaged bytes make a library raise cannot be listed
            raise DataError(
                path,
                f"it cannot be read ({type(error).__name__}: {error}); it is damaged, or of a "
                "layout that is not supported (docs/dataset_format.md)",
                "copy or record it again",
            ) from error


def _open_beside(path: str, filesystem: pafs.FileSystem | None, relative: str) -> IO[bytes]:
    """Opens a file by its path relative to the folder of another."""
    place, mark, settings = (path, "", "") if not is_uri(path) else path.partition("?")
    opened, _ = open_file(_joined(place.rpartition("/")[0], relative) + mark + settings, filesystem)
    return cast(IO[bytes], opened)


def _joined(folder: str, relative: str) -> str:
    """Joins a path or URI of a folder and a path from there, which may begin with ".."."""
    parts = relative.split("/")
    while parts and parts[0] == "..":
        folder, parts = folder.rpartition("/")[0], parts[1:]
    return "/".join([folder, *parts] if folder else parts)


def open_file(path: str, filesystem: pafs.FileSystem | None = None) -> tuple[Any, str]:
    """Opens a file of the input; returns it and its path in its file system.

    Raises:
        DataError: it cannot be opened.
    """
    system, inner = _locate_data(path, filesystem)
    is_local = isinstance(system, pafs.LocalFileSystem)
    try:
        # a pipe would be waited for
        if is_local and Path(inner).exists() and not Path(inner).is_file():
            raise DataError(path, "it is no longer a file", "put it back and start again")
        opened = system.open_input_file(inner) if is_local else PersistentFile(system, inner, path)
    except FileNotFoundError as error:
        raise DataError(
            path, "it has disappeared since the run began", "put it back and start again"
        ) from error
    except (OSError, RemoteReadError) as error:
        raise DataError(
            path, f"it cannot be opened ({error})", "check that this user may read it"
        ) from error
    return opened, inner


def _format_of(path: str, inner: str) -> Format:
    """Returns the format by the name that was given, or by that of what it is a link to."""
    for name in (without_options(path), inner):
        for known in FORMATS:
            if known.matches(name):
                return known
    raise DataError(path, "its name does not end like any known format's", _WANTED)


def _expand(name: str, filesystem: pafs.FileSystem | None) -> list[str]:
    is_pattern = filesystem is None and not is_uri(name) and glob.has_magic(name)
    if is_pattern and not Path(name).exists():
        return sorted(glob.glob(name, recursive=True))
    return [name]


def _locate_data(name: str, filesystem: pafs.FileSystem | None) -> tuple[pafs.FileSystem, str]:
    """Locates a path like `locate`, and resolves links: hold-out depends on the real path."""
    try:
        system, path = locate(name, filesystem)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(name, f"it is no path ({error})", "check offline_data(input_=…)") from error
    return system, path if filesystem is not None or is_uri(name) else os.path.realpath(path)


def _check_links(folder: str) -> None:
    """Refuses links to nothing, which a listing leaves out: data that was not fetched, say."""
    for root, _, names in os.walk(folder):
        for name in names:
            if is_data_name(name) and not os.path.exists(os.path.join(root, name)):
                raise DataError(
                    os.path.join(root, name),
                    "it is a link to nothing",
                    "fetch what it refers to, or remove it",
                )


def _companions(paths: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths of files, or folders ending in "/", that describe data and hold none."""
    found = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name in _COMPANIONS:
            found.append(path)
        if name == "info.json" and folder.endswith("/meta"):  # LeRobot
            found.append(f"{folder}/")
        if name == "dataset_info.json":  # Hugging Face datasets
            found.append(f"{folder}/state.json")
    return tuple(found)


def _data_files(name: str, filesystem: pafs.FileSystem | None) -> list[tuple[str, int]]:
    system, path = _locate_data(name, filesystem)
    prefix = name.split("://", 1)[0] + "://" if is_uri(name) and filesystem is None else ""
    # a URI's options ("?endpoint_override=…") apply to each file below it
    options = "?" + name.split("?", 1)[1] if prefix and "?" in name else ""

    def quoted(inner: str) -> str:
        # a file's URI is decoded when it is located
        return urllib.parse.quote(inner) if prefix == "file://" else inner

    try:
        info = system.get_file_info(path)
    except (OSError, ValueError) as error:
        raise DataError(name, f"it is no path ({error})", "check offline_data(input_=…)") from error
    if info.type == pafs.FileType.NotFound:
        raise DataError(name, "there is no such file or folder", "check offline_data(input_=…)")
    if info.type == pafs.FileType.Unknown:
        raise DataError(name, "it is neither a file nor a folder", "give files or folders")
    if info.type == pafs.FileType.File:
        if not (is_data_name(path) or is_data_name(without_options(name))):
            raise DataError(name, "its name does not end like any known format's", _WANTED)
        is_link = not prefix and not is_data_name(path)  # to a file of another name
        return [((name if is_link else prefix + quoted(path)) + options, info.size)]
    try:
        inside = system.get_file_info(pafs.FileSelector(path, recursive=True))
    except (OSError, ValueError) as error:  # a name that is no text is a ValueError
        raise DataError(
            name, f"it cannot be listed ({error})", "check that this user may read it"
        ) from error
    companions = _companions([f.path for f in inside])
    named = [
        f
        for f in sorted(inside, key=lambda f: f.path)
        if is_data_name(f.path)
        and not any(p.startswith((".", "_")) for p in Path(f.path).relative_to(path).parts)
        and not f.path.startswith(companions)
    ]
    if isinstance(system, pafs.LocalFileSystem):
        _check_links(path)
    return [
        (prefix + quoted(f.path) + options, f.size) for f in named if f.type == pafs.FileType.File
    ]
