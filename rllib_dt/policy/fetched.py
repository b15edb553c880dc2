"""Fetches what a policy needs of a remote checkpoint or folder, without Ray."""

import os
import posixpath
import re
from pathlib import Path

_LEFT_OUT = ("optimizer", "offline_data", "env_runner", "eval_env_runner")
"""Parts of names of files that only training needs; optimisers are twice as large as weights."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URI, such as "s3://bucket/run"."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(path)) is not None


def fetch(uri: str, into: Path) -> None:
    """Copies a remote folder, without what only training needs.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the storage cannot be read.
    """
    import pyarrow as pa  # takes a moment to import, and local folders need none of it
    import pyarrow.fs as pafs

    try:
        system, root = pafs.FileSystem.from_uri(uri)
        found = system.get_file_info(pafs.FileSelector(root, recursive=True))
    except (pa.ArrowException, ValueError) as error:
        raise FileNotFoundError(f"{uri} is no folder that can be read: {error}") from error
    files = [info for info in found if info.type == pafs.FileType.File]
    for info in files:
        name = posixpath.relpath(info.path, root)
        is_needed = not any(part.startswith(_LEFT_OUT) for part in name.split("/"))
        if not is_needed or name.startswith(".."):
            continue
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with system.open_input_stream(info.path) as source, open(target, "wb") as out:
            while content := source.read(16 * 2**20):
                out.write(content)
