"""The manifest of a checkpoint: its files with their sizes and digests."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

MANIFEST = "rllib_dt_manifest.json"
MANIFEST_VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or is incomplete or damaged."""


def digest(content: bytes) -> str:
    """Returns what the manifest says of a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_listed(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Reads files of a local checkpoint, as the manifest lists them.

    Raises:
        CheckpointError: the manifest or a file is missing or damaged, or a newer version wrote it.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        version, listed = int(content["version"]), content["files"]
        wanted = {name: listed[name]["digest"] for name in names}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a complete checkpoint: it has no {MANIFEST}, which is written last"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}/{MANIFEST} is damaged, or lists no {error}; take an earlier checkpoint"
        ) from error
    if version > MANIFEST_VERSION:
        raise CheckpointError(
            f"{folder} has version {version} of {MANIFEST}, this rllib_dt reads up to "
            f"{MANIFEST_VERSION}; upgrade rllib_dt"
        )
    found = {}
    for name in names:
        file = folder / name
        found[name] = file.read_bytes() if file.is_file() else b""
        if digest(found[name]) != wanted[name]:
            raise CheckpointError(
                f"the checkpoint {folder} is damaged: {name} is missing, or holds other bytes than "
                "were written; take an earlier checkpoint"
            )
    return found
