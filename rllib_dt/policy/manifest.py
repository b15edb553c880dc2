"""The manifest of a checkpoint: its files with their sizes and digests."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rllib_dt.types import JsonObject

MANIFEST = "rllib_dt_manifest.json"
MANIFEST_VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or is incomplete or damaged."""


def digest(content: bytes) -> str:
    """Returns what the manifest says of a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def listed_files(text: bytes, path: str | Path) -> dict[str, JsonObject]:
    """Returns the size and digest of each file that a manifest lists.

    Args:
        text: the manifest.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: the manifest is damaged, or a newer version wrote it.
    """
    try:
        content = json.loads(text)
        version, files = int(content["version"]), dict(content["files"])
        damaged = [name for name, file in files.items() if not {"size", "digest"} <= set(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}/{MANIFEST} is damaged ({error}); restore from an earlier checkpoint"
        ) from error
    if version > MANIFEST_VERSION:
        raise CheckpointError(
            f"{path} has version {version} of {MANIFEST}, this rllib_dt reads up to "
            f"{MANIFEST_VERSION}; upgrade rllib_dt"
        )
    if damaged:
        raise CheckpointError(
            f"{path}/{MANIFEST} is damaged ({damaged}); restore from an earlier checkpoint"
        )
    return files


def read_listed(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Reads files of a local checkpoint, as the manifest lists them.

    Raises:
        CheckpointError: the manifest or a file is missing or damaged, or a newer version wrote it.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} is not a complete checkpoint: it has no {MANIFEST}, which is written last"
        )
    listed = listed_files((folder / MANIFEST).read_bytes(), folder)
    found = {}
    for name in names:
        file = folder / name
        found[name] = file.read_bytes() if file.is_file() else b""
        if digest(found[name]) != listed.get(name, {}).get("digest"):
            raise CheckpointError(
                f"the checkpoint {folder} is damaged: {name} is missing, or holds other bytes than "
                "were written; take an earlier checkpoint"
            )
    return found
