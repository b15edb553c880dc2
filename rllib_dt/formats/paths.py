"""Resolves all paths and URIs of the package to a file system and a path within it."""

import os
from pathlib import Path

import pyarrow.fs as pafs


def is_uri(path: str) -> bool:
    """Returns whether the path names its own file system, as in `s3://bucket/folder`."""
    return "://" in path


def without_options(path: str) -> str:
    """Returns a URI without its options ("?endpoint_override=…"); a local path may hold a "?"."""
    return path.split("?", 1)[0] if is_uri(path) else path


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns a local path made absolute, for every process to use; a URI unchanged."""
    name = os.fspath(path)
    # `..` is kept: after a link it does not mean the folder above the link
    return name if is_uri(name) else str(Path(name).expanduser().absolute())


def locate(
    path: str | Path, filesystem: pafs.FileSystem | None = None
) -> tuple[pafs.FileSystem, str]:
    """Returns the file system that a path or URI belongs to, and the path within it.

    Args:
        path: a local path, a URI, or a path within `filesystem`.
        filesystem: the path's file system; derived from the path by default.
    """
    name = str(path)
    if filesystem is not None:
        return filesystem, name.split("://", 1)[-1]
    if is_uri(name):
        system, inner = pafs.FileSystem.from_uri(name)
        return system, inner
    return pafs.LocalFileSystem(), absolute(name)


def exists(path: str | Path, filesystem: pafs.FileSystem | None = None) -> bool:
    """Returns whether there is a file or folder at a path or URI; see `locate`."""
    system, inner = locate(path, filesystem)
    return bool(system.get_file_info(inner.rstrip("/")).type != pafs.FileType.NotFound)
