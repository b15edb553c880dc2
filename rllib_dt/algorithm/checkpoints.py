"""Checkpoints that are complete or refused: a manifest of all files is written last.

A local folder is written under a temporary name, listed with sizes and digests, and renamed in one
step, so a process that dies while writing leaves nothing under the final name. On other file
systems the manifest is uploaded last, and a folder without one is refused. A file that was
truncated or changed later is detected before anything is restored.
"""

import ctypes
import errno
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pyarrow.fs as pafs

from rllib_dt.formats.paths import locate
from rllib_dt.types import JsonObject

MANIFEST = "rllib_dt_manifest.json"
_RLLIB_METADATA = "rllib_checkpoint.json"

STATES = (
    "algorithm_state",
    "learner_group/learner/state",
    "learner_group/learner/rl_module/default_policy/module_state",
)
"""The files that a checkpoint of a `DT` must hold, each as .pkl or .msgpack."""

_UNHARMED = "earlier checkpoints are unharmed"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or is incomplete or damaged."""


@contextmanager
def writing(path: str | Path, filesystem: pafs.FileSystem | None = None) -> Iterator[Path]:
    """Yields a local folder to write a checkpoint to, and moves or uploads it to `path` afterwards.

    Raises:
        CheckpointError: it could not be written. A local `path` is as it was before; a remote one
            has no manifest, so it is refused.
    """
    system, final = locate(path, filesystem)
    is_local = isinstance(system, pafs.LocalFileSystem)
    try:
        if is_local:
            target = Path(final)
            _check_replaceable(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.parent / f".{target.name}.unfinished-{uuid.uuid4().hex[:8]}"
        else:
            if system.get_file_info(f"{final}/{MANIFEST}").type == pafs.FileType.File:
                raise CheckpointError(
                    f"{path} already holds a checkpoint, and this file system cannot replace it in "
                    "one step; choose another path"
                )
            draft = Path(tempfile.mkdtemp(prefix="dt-checkpoint-")) / "draft"
        try:
            draft.mkdir()
            yield draft
            _check_written(draft)
            (draft / MANIFEST).write_text(json.dumps(_manifest(draft), indent=1))
            if is_local:
                _move(draft, Path(final))
            else:
                _upload(draft, system, final)
        finally:
            shutil.rmtree(draft if is_local else draft.parent, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            f"the checkpoint {path} could not be written ({error}); {_UNHARMED}; "
            + ("free some space on the disk" if full else "check that the folder can be written")
        ) from error


def verify(path: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
    """Checks that every file of a checkpoint exists and is unchanged.

    Raises:
        CheckpointError: the manifest or a file is missing, truncated or changed.
        FileNotFoundError: there is nothing at `path`.
    """
    system, folder = locate(path, filesystem)
    manifest = f"{folder}/{MANIFEST}"
    if system.get_file_info(manifest).type != pafs.FileType.File:
        if system.get_file_info(folder).type == pafs.FileType.NotFound:
            raise FileNotFoundError(f"there is no checkpoint {path}")
        raise CheckpointError(
            f"{path} is not a complete checkpoint: it has no {MANIFEST}, which is written last; "
            "restore from an earlier one"
        )
    with system.open_input_stream(manifest) as file:
        text = file.read()
    try:
        listed = json.loads(text)["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}/{MANIFEST} is damaged ({error}); restore from an earlier checkpoint"
        ) from error
    for name, wanted in listed.items():
        info = system.get_file_info(f"{folder}/{name}")
        if info.type != pafs.FileType.File:
            problem = "is missing"
        elif info.size != wanted["size"]:
            problem = f"has {info.size} bytes, but {wanted['size']} were written"
        else:
            with system.open_input_stream(f"{folder}/{name}") as file:
                same = _digest(file.read()) == wanted["digest"]
            problem = "" if same else "contains other bytes than were written"
        if problem:
            raise CheckpointError(
                f"the checkpoint {path} is damaged: {name} {problem}; restore from an earlier one"
            )


def _manifest(folder: Path) -> JsonObject:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": len(content), "digest": _digest(content)}
    return {"version": 1, "files": files}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _check_written(folder: Path) -> None:
    """Reads the states back: RLlib ignores whether a remote learner's write succeeded."""
    for state in STATES:
        pickled, packed = folder / f"{state}.pkl", folder / f"{state}.msgpack"
        try:
            if packed.is_file():
                msgpack.unpackb(packed.read_bytes(), strict_map_key=False)
            else:
                pickle.loads(pickled.read_bytes())
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"the checkpoint was written only in part: {pickled.name} of {pickled.parent.name} "
                f"({error!r}); {_UNHARMED}; check whether the learners' disk is full"
            ) from error


def _check_replaceable(final: Path) -> None:
    """Refuses to replace anything but a checkpoint, since the whole folder is removed."""
    if not final.is_dir() or not any(final.iterdir()):
        return
    if not any((final / name).is_file() for name in (MANIFEST, _RLLIB_METADATA)):
        raise CheckpointError(
            f"{final} holds things other than a checkpoint, which would be lost; choose a folder "
            "that is empty or does not exist"
        )


def _move(draft: Path, final: Path) -> None:
    if not final.is_dir() or not any(final.iterdir()):
        draft.rename(final)  # replaces an empty folder in one step
        return
    if _exchange(draft, final):
        # the new one is in place: failing to remove the old one is not an error
        shutil.rmtree(draft, ignore_errors=True)
        return
    replaced = draft.with_name(f"{draft.name}.replaced")
    final.rename(replaced)
    try:
        draft.rename(final)
    except OSError:
        replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)  # the new one is in place


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders' names in one step; returns False if the system cannot.

    renameat2(2) with RENAME_EXCHANGE: Linux, on most local file systems.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange = -100, 2
    failed = renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange)
    return not failed


def _upload(draft: Path, system: pafs.FileSystem, final: str) -> None:
    content = (draft / MANIFEST).read_bytes()
    (draft / MANIFEST).unlink()
    system.create_dir(final, recursive=True)
    pafs.copy_files(str(draft), final, pafs.LocalFileSystem(), system)
    with system.open_output_stream(f"{final}/{MANIFEST}") as file:
        file.write(content)
