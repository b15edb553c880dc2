"""Opens HDF5 files, and those of their datasets whose values are in the file itself.

HDF5 can place a dataset's values in any file of the machine: by external storage, by links to other
files, and by virtual datasets. A recording has no use for that, and a hostile one could have a
password file trained on, so all three are refused before a value is read.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.formats.images import decode_images, is_encoded
from rllib_dt.formats.nested import text_array
from rllib_dt.spaces.trees import EVERYTHING, LeafChoice, from_leaves, joined, map_tree
from rllib_dt.types import Array, Tree

_MAX_LINKS = 16
_MAX_OBJECTS = 10_000
_LAYOUT = "use the layout of the format"
_REMEDY = "copy the data into the file itself (h5repack, or h5py's Group.copy with expand_external)"


@dataclass(frozen=True)
class Hdf5Input:
    """An open HDF5 file.

    Attributes:
        source: its name, for messages.
        options: see `ReadOptions`.
        root: the file's top group.
        expansion: what it may take in memory.
    """

    source: str
    options: ReadOptions
    root: h5py.File
    expansion: Expansion

    def group(self, name: str) -> h5py.Group:
        """Opens a group; raises a DataError if it is none, or lies in another file."""
        found = _follow(self.root, name, self.source, _MAX_LINKS)
        if not isinstance(found, h5py.Group):
            raise DataError(self.source, f"{name!r} is not a group", _LAYOUT)
        return found

    def values(self, group: h5py.Group, name: str) -> Array:
        """Reads a dataset of numbers as a whole."""
        values: Array = open_dataset(group, name, self.source, self.expansion)[()]
        return values

    def scalar(self, group: h5py.Group, name: str) -> object:
        """Reads a single value, of a dataset without axes or with one element."""
        found = _follow(group, name, self.source, _MAX_LINKS)
        is_one = isinstance(found, h5py.Dataset) and found.shape is not None and found.size == 1
        if not is_one or found.external or found.is_virtual:
            raise DataError(self.source, f"{name!r} is not a single value of its own", _LAYOUT)
        return found[()].item()

    def tree(
        self,
        group: h5py.Group,
        name: str,
        choice: LeafChoice = EVERYTHING,
        part: Callable[[str], str] = str,
    ) -> Tree:
        """Reads a dataset, or all those of a group, as a whole; see `open_tree`."""
        opened = open_tree(group, name, self.source, self.expansion, choice, part)
        return map_tree(lambda dataset: dataset[:], opened)

    def check_names(self, group: h5py.Group, wanted: Collection[str], where: str = "it") -> None:
        """Raises a DataError that lists what a group lacks, if it lacks anything."""
        present = names(group)
        missing = [name for name in wanted if name not in present]
        if missing:
            raise DataError(
                self.source,
                f"datasets {missing} are missing; {where} has {present}",
                "use the layout of the format (docs/dataset_format.md)",
            )


def names(group: h5py.Group) -> list[str]:
    """Lists the names in a group, without following links."""
    return sorted(group.keys())


def open_dataset(
    group: h5py.Group,
    name: str,
    source: str,
    expansion: Expansion,
    *,
    text: bool = False,
    encoded: bool = False,
) -> h5py.Dataset:
    """Opens a dataset of numbers, or of text, in a group.

    Args:
        group: a group of an open file.
        name: the dataset's name in the group.
        source: the file's name, for messages.
        expansion: what the dataset's declared size counts towards; it can be far more than was
            ever written.
        text: its values are text.
        encoded: its values may be images, as PNG or JPEG of different lengths.

    Raises:
        DataError: its values are not numbers (or text), not all in this file, or too many.
    """
    found = _follow(group, name, source, _MAX_LINKS)
    if not isinstance(found, h5py.Dataset):
        raise DataError(source, f"{name!r} is not a dataset", "use the layout of the format")
    if found.external:
        files = sorted({str(file) for file, *_ in found.external})
        raise DataError(source, f"the values of {name!r} are in other files: {files}", _REMEDY)
    if found.is_virtual:
        raise DataError(source, f"{name!r} is a virtual dataset, made of other datasets", _REMEDY)
    if found.shape is None:
        raise DataError(source, f"{name!r} is empty", "record one value a step")
    if text and h5py.check_string_dtype(found.dtype) is None:
        raise DataError(source, f"{name!r} holds {found.dtype}, not text", "record text")
    is_bytes = encoded and h5py.check_vlen_dtype(found.dtype) == np.uint8
    if not text and not is_bytes and found.dtype.kind not in "biuf":
        raise DataError(
            source,
            f"{name!r} holds {found.dtype}, not numbers",
            "record numbers, or leave out a leaf of text with DTModelConfig(ignore=[…])",
        )
    if found.ndim == 0:
        raise DataError(source, f"{name!r} holds a single value", "record one value a step")
    declared = math.prod(found.shape) * found.dtype.itemsize
    chunk = math.prod(found.chunks or ()) * found.dtype.itemsize  # unpacked as a whole
    expansion.take(max(declared, chunk), f"dataset {name!r}")
    return found


def open_tree(
    group: h5py.Group,
    name: str,
    source: str,
    expansion: Expansion,
    choice: LeafChoice = EVERYTHING,
    part: Callable[[str], str] = str,
) -> Tree:
    """Opens a dataset, or all those of a group, by their paths below it; see `open_dataset`.

    Args:
        group, name, source, expansion: see `open_dataset`.
        choice: which are opened, and which of them are text.
        part: turns a name within a group into a part of a path.
    """
    opener = _Opener(source, expansion, choice, part)
    found = {}
    for number, (path, dataset) in enumerate(opener.leaves(group, name, "")):
        if number > _MAX_OBJECTS:
            raise DataError(source, f"{name!r} holds too many objects", _LAYOUT)
        if dataset is not None:
            found[path] = dataset
    return from_leaves(found)


@dataclass(frozen=True)
class _Converted:
    """A dataset whose rows are converted when they are read."""

    dataset: h5py.Dataset
    convert: Callable[[Any], Array]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: slice) -> Array:
        return self.convert(self.dataset[rows])


@dataclass(frozen=True)
class _Opener:
    """Opens the leaves of a tree; see `open_tree`."""

    source: str
    expansion: Expansion
    choice: LeafChoice
    part: Callable[[str], str]

    def leaves(self, group: h5py.Group, name: str, path: str) -> Iterator[tuple[str, Any]]:
        """Yields the datasets of `group[name]` by path, and None for each object on the way."""
        if self.choice.skips(path):
            return
        found = _follow(group, name, self.source, _MAX_LINKS)
        yield path, None  # counted: groups may be linked in many ways
        if not isinstance(found, h5py.Group):
            yield path, self._leaf(group, name, path)
            return
        if path.count("/") > _MAX_LINKS:
            raise DataError(self.source, f"{name!r} lies too deep", _LAYOUT)
        for each in names(found):
            yield from self.leaves(group, f"{name}/{each}", joined(path, self.part(each)))

    def _leaf(self, group: h5py.Group, name: str, path: str) -> Any:
        source, expansion = self.source, self.expansion
        text = path in self.choice.texts
        dataset = open_dataset(group, name, source, expansion, text=text, encoded=True)
        if text:
            return _Converted(
                dataset, lambda rows: text_array(rows.tolist(), source, name, expansion)
            )
        if not _is_encoded(dataset):
            return dataset
        return _Converted(
            dataset,
            lambda rows: decode_images([row.tobytes() for row in rows], source, name, expansion),
        )


def _is_encoded(dataset: h5py.Dataset) -> bool:
    """Returns whether rows of bytes are images as PNG or JPEG."""
    is_rows = h5py.check_vlen_dtype(dataset.dtype) is not None or dataset.ndim == 2
    is_bytes = dataset.dtype == np.uint8 or h5py.check_vlen_dtype(dataset.dtype) == np.uint8
    return bool(is_rows and is_bytes and len(dataset) and is_encoded(dataset[0].tobytes()))


def _follow(
    group: h5py.Group, path: str, source: str, links_left: int
) -> h5py.Group | h5py.Dataset:
    """Finds an object by its path, and refuses to leave the file."""
    found = group.file["/"] if path.startswith("/") else group
    for part in (part for part in path.split("/") if part not in ("", ".")):
        if not isinstance(found, h5py.Group):
            raise KeyError(path)
        link = found.get(part, getlink=True)
        if link is None:
            raise KeyError(path)
        if isinstance(link, h5py.SoftLink):
            if not links_left:
                raise DataError(source, f"{path!r} is a chain of too many links", _REMEDY)
            found = _follow(found, link.path, source, links_left - 1)
        elif isinstance(link, h5py.HardLink):
            found = found[part]
        else:
            where = getattr(link, "filename", "another file")
            raise DataError(source, f"{part!r} is a link to another file, {where}", _REMEDY)
    return found
