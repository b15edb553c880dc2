"""From files to episodes, through Ray Data: parsing in its tasks, assembly on the driver."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import ray.data

from rllib_dt.episodes.record import DataError
from rllib_dt.runtime.readers.files import ReadOptions, find_files, read_file
from rllib_dt.runtime.readers.fragments import (
    Assembly,
    Fragment,
    IncompletePolicy,
    assemble,
)

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 5.0
_MAX_TASKS = 64
_ARRAYS = ("observations", "actions", "rewards", "next_observation")
_FLAGS = ("source", "key", "start", "terminated", "truncated", "marks_end", "may_drop_tail")


def read_episodes(
    inputs: str | Sequence[str],
    options: ReadOptions,
    *,
    filesystem: pafs.FileSystem | None = None,
    incomplete: IncompletePolicy = "error",
) -> Assembly:
    """Reads every file that the inputs name and joins what they hold to episodes.

    The tasks ask for no CPU of their own: with one, they would wait for ever behind a trial or
    learners that hold all of a small cluster's (`docs/design.md`, "Reading").

    Raises:
        DataError: naming file, episode and remedy, on data that cannot be trained on.
    """
    files = find_files(inputs, filesystem)
    started = time.perf_counter()
    groups = _group(files)
    dataset = ray.data.from_items(
        [{"index": i, "paths": group} for i, group in enumerate(groups)],
        override_num_blocks=len(groups),
    ).flat_map(
        _read_group,
        fn_kwargs={"options": options, "filesystem": filesystem},
        num_cpus=0,
        concurrency=_concurrency(len(groups)),
    )
    parts: list[list[Fragment]] = [[] for _ in groups]
    steps, next_report = 0, started + _PROGRESS_SECONDS
    for row in dataset.iter_rows():
        if row["error"]:
            raise DataError(*json.loads(row["error"]))
        fragment = _from_row(row)
        parts[row["index"]].append(fragment)
        steps += len(fragment)
        if time.perf_counter() > next_report:
            next_report += _PROGRESS_SECONDS
            seen = sum(bool(part) for part in parts)
            logger.info("read %d steps, from %d of %d groups of files", steps, seen, len(groups))
    assembly = assemble((f for part in parts for f in part), incomplete)
    seconds = time.perf_counter() - started
    logger.info("read %d files, %d steps in %.1f s", len(files), steps, seconds)
    for message in assembly.dropped:
        logger.warning("left out: %s", message)
    return assembly


def _concurrency(num_groups: int) -> int:
    return max(1, min(num_groups, int(ray.cluster_resources().get("CPU", 1))))


def _group(files: Sequence[tuple[str, int]]) -> list[list[str]]:
    """Neighbouring files in groups of similar size, since a task costs more than a small file."""
    limit = max(1, sum(size for _, size in files) // _MAX_TASKS, 4 * 2**20)
    groups: list[list[str]] = [[]]
    filled = 0
    for path, size in files:
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(path)
        filled += size
    return groups


def _read_group(
    item: dict[str, Any], options: ReadOptions, filesystem: pafs.FileSystem | None
) -> Iterator[dict[str, Any]]:
    """One row a fragment; a DataError becomes a row, so that it arrives as it was raised."""
    for path in item["paths"]:
        try:
            for fragment in read_file(path, options, filesystem):
                yield {"index": item["index"], "error": "", **_to_row(fragment)}
        except DataError as error:
            yield {"index": item["index"], "error": json.dumps(error.parts), **_to_row(None)}
            return


def _to_row(fragment: Fragment | None) -> dict[str, Any]:
    """Arrays as bytes, so that every block has one plain schema whatever the data's shapes."""
    header: dict[str, Any] = {}
    row: dict[str, Any] = {name: b"" for name in _ARRAYS}
    if fragment is not None:
        header = {name: getattr(fragment, name) for name in _FLAGS}
        for name in _ARRAYS:
            value = getattr(fragment, name)
            if value is not None:
                array = np.ascontiguousarray(value)
                header[name] = [array.dtype.str, array.shape]
                row[name] = array.tobytes()
    return {**row, "header": json.dumps(header)}


def _from_row(row: dict[str, Any]) -> Fragment:
    header = json.loads(row["header"])
    for name in _ARRAYS:
        if name in header:
            dtype, shape = header[name]
            header[name] = np.frombuffer(row[name], np.dtype(dtype)).reshape(shape)
    return Fragment(**header)
