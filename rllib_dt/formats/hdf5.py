"""Opens datasets of HDF5 files whose values are in the file itself.

HDF5 can place a dataset's values in any file of the machine: by external storage, by links to other
files, and by virtual datasets. A recording has no use for that, and a hostile one could have a
password file trained on, so all three are refused before a value is read.
"""

import math
from collections.abc import Iterator
from typing import Any

import h5py

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion
from rllib_dt.formats.nested import text_array
from rllib_dt.spaces.trees import EVERYTHING, LeafChoice, from_leaves, joined
from rllib_dt.types import Array, Tree

_MAX_LINKS = 16
_MAX_OBJECTS = 10_000
_LAYOUT = "use the layout of the format"
_REMEDY = "copy the data into the file itself (h5repack, or h5py's Group.copy with expand_external)"


def names(group: h5py.Group) -> list[str]:
    """Lists the names in a group, without following links."""
    return sorted(group.keys())


def open_dataset(
    group: h5py.Group, name: str, source: str, expansion: Expansion, *, text: bool = False
) -> h5py.Dataset:
    """Opens a dataset of numbers, or of text, in a group.

    Args:
        group: a group of an open file.
        name: the dataset's name in the group.
        source: the file's name, for messages.
        expansion: what the dataset's declared size counts towards; it can be far more than was
            ever written.
        text: its values are text.

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
    if not text and found.dtype.kind not in "biuf":
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
) -> Tree:
    """Opens a dataset, or all those of a group, by their paths below it; see `open_dataset`.

    Args:
        group, name, source, expansion: see `open_dataset`.
        choice: which are opened, and which of them are text.
    """
    found = {}
    for number, (path, dataset) in enumerate(
        _open_leaves(group, name, "", source, expansion, choice)
    ):
        if number > _MAX_OBJECTS:
            raise DataError(source, f"{name!r} holds too many objects", _LAYOUT)
        if dataset is not None:
            found[path] = dataset
    return from_leaves(found)


class _Text:
    """A dataset of text, whose rows are read as bytes of one length."""

    def __init__(self, dataset: h5py.Dataset, name: str, source: str, expansion: Expansion):
        self._dataset = dataset
        self._name, self._source, self._expansion = name, source, expansion

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, rows: slice) -> Array:
        texts = self._dataset[rows].tolist()
        return text_array(texts, self._source, self._name, self._expansion)


def _open_leaves(
    group: h5py.Group,
    name: str,
    path: str,
    source: str,
    expansion: Expansion,
    choice: LeafChoice,
) -> Iterator[tuple[str, Any]]:
    inner = joined(name, path)
    if choice.skips(path):
        return
    found = _follow(group, inner, source, _MAX_LINKS)
    yield path, None  # counted: groups may be linked in many ways
    if not isinstance(found, h5py.Group):
        text = path in choice.texts
        dataset = open_dataset(group, inner, source, expansion, text=text)
        yield path, _Text(dataset, inner, source, expansion) if text else dataset
        return
    if path.count("/") > _MAX_LINKS:
        raise DataError(source, f"{inner!r} lies too deep", _LAYOUT)
    for each in names(found):
        below = joined(path, each)
        yield from _open_leaves(group, name, below, source, expansion, choice)


def _follow(
    group: h5py.Group, path: str, source: str, links_left: int
) -> h5py.Group | h5py.Dataset:
    """Finds an object by its path, and refuses to leave the file."""
    found = group.file["/"] if path.startswith("/") else group
    for part in (part for part in path.split("/") if part not in ("", ".")):
        if not isinstance(found, h5py.Group):
            raise KeyError(path)
        link = found.get(part, getlink=True)
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
