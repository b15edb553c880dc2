"""Runs the readers in Ray Data's tasks, and carries fragments back to the driver."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray.data

from rllib_dt.compat import map_with_retries, quiet_ray_data
from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.files import read_file
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.spaces.trees import by_leaf, from_leaves
from rllib_dt.types import JsonObject, Tree

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 5.0
_MAX_TASKS = 64
_RETRIES = 3
"""How often a task is tried again whose process died; Ray Data would try for ever."""
_MIN_BYTES_PER_TASK = 4 * 2**20
_ARRAYS = ("observations", "actions", "rewards", "next_observation")
_HEADER = (
    "source",
    "key",
    "start",
    "terminated",
    "truncated",
    "marks_end",
    "may_drop_tail",
    "notes",
)

_BYTES_PER_TABLE = 16 * 2**20
_SCHEMA = pa.schema(
    [("group", pa.int64()), ("header", pa.string()), ("error", pa.string())]
    + [(name, pa.large_binary()) for name in _ARRAYS]
)


def read_fragments(
    groups: Sequence[Sequence[str]],
    options: ReadOptions,
    filesystem: pafs.FileSystem | None = None,
    *,
    quiet: bool = False,
) -> Iterator[Fragment]:
    """Yields the fragments of files in order, with a Ray Data task for each group of files.

    The tasks reserve no CPU. Otherwise they would wait forever on a small cluster whose CPUs are
    all held by a trial or by learners (`docs/design.md`, "Reading reserves no CPU").

    Args:
        groups: the files of each task.
        options: see `ReadOptions`.
        filesystem: the files' file system; None derives it from each path.
        quiet: do not log progress.
    """
    items = [{"group": i, "paths": list(group)} for i, group in enumerate(groups)]
    dataset = map_with_retries(
        ray.data.from_items(items, override_num_blocks=len(groups)),
        _read_groups,
        _RETRIES,
        fn_kwargs={"options": options, "filesystem": filesystem},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=_concurrency(len(groups))),
    )
    dataset.context.execution_options.preserve_order = True
    # progress is logged below, in steps
    dataset.context.enable_progress_bars = False
    started = time.perf_counter()
    steps, next_report = 0, started + _PROGRESS_SECONDS
    batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    seen = 0
    while True:
        try:
            with quiet_ray_data():  # not while a fragment is out, for the sake of other datasets
                table = next(batches, None)
        except ray.exceptions.WorkerCrashedError as error:
            raise _died(groups[seen:]) from error
        if table is None:
            break
        for fragment in _fragments(table):
            steps += len(fragment)
            yield fragment
        seen = table["group"][-1].as_py() + 1
        if time.perf_counter() > next_report and not quiet:
            next_report = time.perf_counter() + _PROGRESS_SECONDS
            logger.info("read %d steps, from %d of %d groups of files", steps, seen, len(groups))
    if not quiet:
        files, seconds = sum(map(len, groups)), time.perf_counter() - started
        logger.info("read %d files, %d steps in %.1f s", files, steps, seconds)


def _died(unread: Sequence[Sequence[str]]) -> DataError:
    files = [file for group in unread for file in group]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return DataError(
        f"{', '.join(files[:3])}{more}",
        f"the process that read one of these files died {_RETRIES + 1} times",
        "look for a damaged file among them (read them one by one), and whether the node is short "
        "of memory",
    )


def _concurrency(num_groups: int) -> int:
    """Returns the number of tasks at a time; they reserve no CPU, so nothing else bounds it."""
    return max(1, min(num_groups, int(ray.cluster_resources().get("CPU", 1))))


def group_files(files: Sequence[tuple[str, int]]) -> list[list[str]]:
    """Groups neighbouring files by size, since a task costs more than reading a small file."""
    limit = max(1, sum(size for _, size in files) // _MAX_TASKS, _MIN_BYTES_PER_TASK)
    groups: list[list[str]] = [[]]
    filled = 0
    for path, size in files:
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(path)
        filled += size
    return groups


def _read_groups(
    items: pa.Table, options: ReadOptions, filesystem: pafs.FileSystem | None
) -> Iterator[pa.Table]:
    """Yields tables of fragments; a DataError becomes a row, so that it arrives unchanged."""
    for item in items.to_pylist():
        batch: list[JsonObject] = []
        size = 0
        for row in _rows(item["paths"], options, filesystem):
            batch.append(row)
            size += sum(len(row[name]) for name in _ARRAYS if row[name] is not None)
            if size > _BYTES_PER_TABLE:
                yield _table(item["group"], batch)
                batch, size = [], 0
        if batch:
            yield _table(item["group"], batch)


def _table(group: int, rows: list[JsonObject]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in _SCHEMA.names[1:]}
    return pa.table({"group": [group] * len(rows), **columns}, schema=_SCHEMA)


def _rows(
    paths: Sequence[str], options: ReadOptions, filesystem: pafs.FileSystem | None
) -> Iterator[JsonObject]:
    for path in paths:
        try:
            for fragment in read_file(path, options, filesystem):
                yield _to_row(fragment)
        except DataError as error:
            yield {**dict.fromkeys(_SCHEMA.names), "error": json.dumps(error.parts)}
            return


def _to_row(fragment: Fragment) -> JsonObject:
    """Stores arrays as bytes, so that all blocks share one schema for data of any shape."""
    header: JsonObject = {name: getattr(fragment, name) for name in _HEADER}
    row: JsonObject = dict.fromkeys(_ARRAYS)
    for name in _ARRAYS:
        value = getattr(fragment, name)
        if value is not None:
            arrays = {path: np.asarray(a, order="C") for path, a in by_leaf(value).items()}
            header[name] = [[path, a.dtype.str, a.shape] for path, a in arrays.items()]
            # not a memoryview: pyarrow 26 never frees one that became part of a binary column
            row[name] = b"".join(array.tobytes() for array in arrays.values())
    return {**row, "error": None, "header": json.dumps(header)}


def _fragments(table: pa.Table) -> Iterator[Fragment]:
    for row in range(len(table)):
        error = table["error"][row].as_py()
        if error is not None:
            raise DataError(*json.loads(error))
        header = json.loads(table["header"][row].as_py())
        for name in _ARRAYS:
            if name in header:
                header[name] = _tree(header[name], table[name][row].as_buffer())
        yield Fragment(**header)


def _tree(described: list[tuple[str, str, list[int]]], data: pa.Buffer) -> Tree:
    """Rebuilds a tree from the bytes of its arrays, one after another, without copying them."""
    arrays, start = {}, 0
    for path, name, shape in described:
        dtype, count = np.dtype(name), math.prod(shape)
        arrays[path] = np.frombuffer(data, dtype, count, start).reshape(shape)
        start += count * dtype.itemsize
    return from_leaves(arrays)
