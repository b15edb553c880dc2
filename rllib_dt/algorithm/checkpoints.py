"""Checkpoints that are complete or refused: a manifest of all files is written last.

A local folder is written under a temporary name, listed with sizes and digests, and renamed in one
step, so a process that dies while writing leaves nothing under the final name. On other file
systems the manifest is uploaded last, and a folder without one is refused. A file that was
truncated or changed later is detected before anything is restored.
"""

import ctypes
import errno
import json
import os
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgpack
import pyarrow.fs as pafs
from packaging.version import Version
from ray.rllib.utils.checkpoints import CHECKPOINT_VERSION_LEARNER_AND_ENV_RUNNER

from rllib_dt.formats.paths import locate
from rllib_dt.policy.manifest import (
    MANIFEST,
    MANIFEST_VERSION,
    CheckpointError,
    digest,
    listed_files,
)
from rllib_dt.types import JsonObject

_STATE_SUFFIXES = (".pkl", ".pickle", ".msgpack")
_RLLIB_METADATA = "rllib_checkpoint.json"

STATES = (
    "algorithm_state",
    "learner_group/learner/state",
    "learner_group/learner/rl_module/default_policy/module_state",
)
"""The files that a checkpoint of a `DT` must hold, each as .pkl or .msgpack."""

_UNHARMED = "earlier checkpoints are unharmed"


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
            target = Path(os.path.realpath(final))  # what a link points to is written
            _check_replaceable(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = _draft_beside(target)
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
                _move(draft, target)
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


def verify_component(
    path: str | Path, component: str, filesystem: pafs.FileSystem | None = None
) -> None:
    """Checks a component's part of a checkpoint.

    Args:
        path: the component's folder, in a checkpoint of an algorithm or saved on its own; or the
            algorithm's checkpoint.
        component: its name, such as "learner_group/learner/rl_module".
        filesystem: its file system; derived from the path by default.

    Raises:
        CheckpointError: see `verify`. A component that was saved on its own has no manifest.
    """
    system, folder = locate(path, filesystem)
    folder = folder.rstrip("/")
    if system.get_file_info(f"{folder}/{MANIFEST}").type == pafs.FileType.File:
        verify(path, filesystem)
    elif folder.endswith(f"/{component}"):
        whole = folder.removesuffix(f"/{component}")
        names = (MANIFEST, _RLLIB_METADATA)
        if any(system.get_file_info(f"{whole}/{n}").type == pafs.FileType.File for n in names):
            verify(whole, system, within=f"{component}/")


def verify(
    path: str | Path, filesystem: pafs.FileSystem | None = None, *, within: str = ""
) -> None:
    """Checks that every file of a checkpoint exists and is unchanged.

    Args:
        path: the checkpoint.
        filesystem: its file system; derived from the path by default.
        within: check only the files whose names begin so.

    Raises:
        CheckpointError: the manifest or a file is missing, truncated or changed; a state is there
            that the manifest does not list; or a newer version wrote the checkpoint.
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
    files = listed_files(text, path)
    _check_rllib_version(system, folder, path)
    _check_unlisted(system, folder, within, files, path)
    for name, wanted in files.items():
        if not name.startswith(within):
            continue
        info = system.get_file_info(f"{folder}/{name}")
        if info.type != pafs.FileType.File:
            problem = "is missing"
        elif info.size != wanted["size"]:
            problem = f"has {info.size} bytes, but {wanted['size']} were written"
        else:
            with system.open_input_stream(f"{folder}/{name}") as file:
                same = digest(file.read()) == wanted["digest"]
            problem = "" if same else "contains other bytes than were written"
        if problem:
            raise CheckpointError(
                f"the checkpoint {path} is damaged: {name} {problem}; restore from an earlier one"
            )


def _check_unlisted(
    system: pafs.FileSystem, folder: str, within: str, listed: JsonObject, path: str | Path
) -> None:
    """Refuses states that were put there later: RLlib would prefer a .msgpack to a .pkl."""
    selector = pafs.FileSelector(f"{folder}/{within}".rstrip("/"), recursive=True)
    for info in system.get_file_info(selector):
        name = PurePosixPath(info.path).relative_to(folder).as_posix()
        is_state = info.type == pafs.FileType.File and name.endswith(_STATE_SUFFIXES)
        if is_state and name not in listed:
            raise CheckpointError(
                f"{path} holds {name}, which was not there when the checkpoint was written; remove "
                "it, or restore from another checkpoint"
            )


def _check_rllib_version(system: pafs.FileSystem, folder: str, path: str | Path) -> None:
    """Refuses checkpoints of a newer layout of RLlib's."""
    file = f"{folder}/{_RLLIB_METADATA}"
    if system.get_file_info(file).type != pafs.FileType.File:
        return
    with system.open_input_stream(file) as stream:
        try:
            saved = Version(str(json.loads(stream.read()).get("checkpoint_version", "0")))
        except (ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path}/{_RLLIB_METADATA} is damaged ({error}); restore from an earlier checkpoint"
            ) from error
    if saved > CHECKPOINT_VERSION_LEARNER_AND_ENV_RUNNER:
        raise CheckpointError(
            f"{path} is a checkpoint of RLlib's version {saved}, this RLlib reads up to "
            f"{CHECKPOINT_VERSION_LEARNER_AND_ENV_RUNNER}; upgrade Ray"
        )


def _manifest(folder: Path) -> JsonObject:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": len(content), "digest": digest(content)}
    return {"version": MANIFEST_VERSION, "files": files}


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


def _draft_beside(target: Path) -> Path:
    """Returns a new folder's path from which everything can be renamed into `target`.

    It is beside the target, or inside it if the target cannot itself be replaced: it is where
    another file system is mounted, or the folder above it may not be written to.
    """
    name = f".{target.name}.unfinished-{uuid.uuid4().hex[:8]}"
    is_fixed = target.is_dir() and (target.is_mount() or not os.access(target.parent, os.W_OK))
    return (target if is_fixed else target.parent) / name


def _move(draft: Path, final: Path) -> None:
    if draft.parent == final:
        _move_into(draft, final)
        return
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


def _move_into(draft: Path, final: Path) -> None:
    """Moves a draft's content into the folder that it lies in, the manifest last.

    A checkpoint that is there loses its manifest first, so what is between the two is refused.
    """
    before = [path for path in final.iterdir() if path != draft]
    (final / MANIFEST).unlink(missing_ok=True)
    for path in before:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(final / path.name)


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
