"""Reads RLlib's old JSON recordings: one `SampleBatch` per line, plain, gzipped or zipped."""

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

import numpy as np
import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.columns import array_from_values
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.steps import OPTIONAL, REQUIRED, check_columns, step_table
from rllib_dt.types import Array, JsonObject

# raised by damaged bytes: in gzip, zip or UTF-8, or when seeking outside the file
_DAMAGED = (
    EOFError,
    OSError,
    RuntimeError,
    UnicodeDecodeError,
    pa.ArrowInvalid,
    zipfile.BadZipFile,
    zlib.error,
)


def read_sample_batches(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields the fragments of a JSON file of sample batches, plain, gzipped or zipped."""
    try:
        for lines, name in _text_files(file, source):
            columns = _columns(lines, name, options.names)
            yield from step_table(columns, name).fragments()
    except _DAMAGED as error:
        kind = source.split("?", 1)[0].rsplit(".", 1)[-1]
        raise DataError(
            source, f"it is not a complete {kind} file ({error})", "copy or record it again"
        ) from error


def _text_files(file: IO[bytes], source: str) -> Iterator[tuple[Iterable[str], str]]:
    path = source.split("?", 1)[0]  # a URI may end in options
    if path.endswith(".zip"):
        archive = zipfile.ZipFile(file)
        members = [m for m in archive.namelist() if m.endswith((".json", ".jsonl"))]
        members = [m for m in members if not m.startswith("__MACOSX")]
        if not members:
            raise DataError(source, "it holds no .json file", "remove it from the input")
        for member in members:
            with archive.open(member) as inner:
                yield io.TextIOWrapper(inner, "utf-8"), f"{source}!{member}"
    elif path.endswith(".gz"):
        yield io.TextIOWrapper(gzip.GzipFile(fileobj=file), "utf-8"), source
    else:
        yield io.TextIOWrapper(file, "utf-8"), source


def _columns(lines: Iterable[str], source: str, names: Mapping[str, str]) -> dict[str, Array]:
    batches = [_batch(line, number, source) for number, line in enumerate(lines, 1) if line.strip()]
    if not batches:
        raise DataError(source, "it is empty", "remove it from the input")
    present = set.intersection(*(set(batch) for batch in batches))
    check_columns(present, names, source)
    columns = {}
    lengths: list[int] | None = None
    for name in (*REQUIRED, *OPTIONAL):
        theirs = names.get(name, name)
        if theirs in present:
            if name == "eps_id":  # ids have any type, and text is not a packed array here
                parts = [np.asarray(batch[theirs]) for batch in batches]
            else:
                parts = [array_from_values(batch[theirs], source, theirs) for batch in batches]
            lengths = lengths or [len(part) for part in parts]
            _check_lengths(lengths, parts, source, theirs)
            if len({part.shape[1:] for part in parts}) > 1:
                shapes = sorted({part.shape[1:] for part in parts})
                raise DataError(
                    source,
                    f"column {theirs!r} is ragged: shapes {shapes}",
                    "record arrays of one shape at every step",
                )
            columns[name] = np.concatenate(parts)
    return columns


def _check_lengths(lengths: list[int], parts: list[Array], source: str, name: str) -> None:
    # batch by batch: a surplus in one could hide a shortage in another, and shift steps
    for number, (length, part) in enumerate(zip(lengths, parts, strict=True), 1):
        if len(part) != length:
            raise DataError(
                source,
                f"its columns have different lengths: batch {number} has {len(part)} values of "
                f"{name!r}, but {length} of the columns before it",
                "record every column at every step",
            )


def _batch(line: str, number: int, source: str) -> JsonObject:
    try:
        batch: JsonObject = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            source,
            f"line {number} is not a complete JSON value ({error})",
            "the file may be truncated: copy or record it again",
        ) from error
    kind = batch.get("type", "SampleBatch") if isinstance(batch, dict) else type(batch).__name__
    if kind != "SampleBatch":
        raise DataError(
            source, f"line {number} is a {kind}, wanted a SampleBatch", "record a single agent"
        )
    return batch
