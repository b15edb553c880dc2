"""Reads RLlib's old JSON recordings: one `SampleBatch` per line, plain, gzipped or zipped."""

import gzip
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import BoundedStream, Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.ids import ids_from_values
from rllib_dt.formats.nested import tree_from_values
from rllib_dt.formats.paths import without_options
from rllib_dt.formats.steps import END_FLAGS, OPTIONAL, REQUIRED, check_columns, step_table
from rllib_dt.spaces.trees import by_leaf, from_leaves, joined, length
from rllib_dt.types import Array, JsonObject, Tree

_OTHER_DATA = (".gz", ".zip", ".parquet", ".pq", ".hdf5", ".h5")

_BYTES_PER_CHARACTER = 24
"""What a character of JSON takes once it is parsed into Python's lists of numbers, roughly."""

_ONE_A_STEP = ("rewards", "eps_id", "t", *END_FLAGS)
"""The columns with one value a step, which is no list in a line that holds one step."""

_BUFFER_BYTES = 2**20

_MAGIC = {".gz": b"\x1f\x8b", ".zip": b"PK\x03\x04"}
"""How packed files begin; no JSON does."""

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
        expansion = Expansion(source, size_of(file), options.max_expansion)
        for lines, name in _text_files(file, source, expansion):
            columns = _columns(lines, name, options, expansion)
            yield from step_table(columns, name).fragments()
    except _DAMAGED as error:
        kind = without_options(source).rsplit(".", 1)[-1]
        raise DataError(
            source, f"it is not a complete {kind} file ({error})", "copy or record it again"
        ) from error


def _text_files(
    file: IO[bytes], source: str, expansion: Expansion
) -> Iterator[tuple[Iterable[str], str]]:
    path = without_options(source)
    start = file.read(max(map(len, _MAGIC.values())))  # a link's name says nothing of its target
    file.seek(0)
    if path.endswith(".zip") or start.startswith(_MAGIC[".zip"]):
        archive = zipfile.ZipFile(file)
        inside = [m for m in archive.infolist() if not m.filename.startswith("__MACOSX")]
        others = [m.filename for m in inside if m.filename.lower().endswith(_OTHER_DATA)]
        if others:
            raise DataError(
                source, f"it holds {others[:3]}, which are not read", "unpack the archive"
            )
        members = [m for m in inside if m.filename.lower().endswith((".json", ".jsonl"))]
        if not members:
            raise DataError(source, "it holds no .json file", "remove it from the input")
        names = Counter[str]()
        for member in members:  # an archive may hold two of one name
            number = names[member.filename]
            names[member.filename] += 1
            with archive.open(member) as inner:
                again = f"#{number}" if number else ""
                yield _text(inner, expansion), f"{source}!{member.filename}{again}"
    elif path.endswith(".gz") or start.startswith(_MAGIC[".gz"]):
        yield _text(cast(IO[bytes], gzip.GzipFile(fileobj=file)), expansion), source
    else:
        yield io.TextIOWrapper(file, "utf-8-sig"), source  # with or without a byte-order mark


def _text(stream: IO[bytes], expansion: Expansion) -> Iterable[str]:
    bounded = BoundedStream(stream, expansion, _BYTES_PER_CHARACTER)
    return io.TextIOWrapper(io.BufferedReader(bounded, _BUFFER_BYTES), "utf-8-sig")


def _columns(
    lines: Iterable[str], source: str, options: ReadOptions, expansion: Expansion
) -> dict[str, Tree]:
    names = options.names
    parsed = [_batch(line, number, source) for number, line in enumerate(lines, 1) if line.strip()]
    for name in ("eps_id", "t", *END_FLAGS):
        _check_everywhere(parsed, names.get(name, name), source)
    one_a_step = {names.get(name, name): name == "eps_id" for name in _ONE_A_STEP}
    batches = list(_merge_rows(parsed, one_a_step))
    if not batches:
        raise DataError(source, "it is empty", "remove it from the input")
    present = set.intersection(*(set(batch) for batch in batches))
    check_columns(present, names, source)
    columns: dict[str, Tree] = {}
    lengths: list[int] | None = None
    for name in (*REQUIRED, *OPTIONAL):
        theirs = names.get(name, name)
        if theirs in present:
            if name == "eps_id":  # text is not a packed array here
                given = [value for batch in batches for value in _list(batch[theirs])]
                ids = ids_from_values(given, source, theirs)
                stops = np.cumsum([len(_list(batch[theirs])) for batch in batches])
                parts = np.split(ids, stops[:-1])
            else:
                parts = [
                    tree_from_values(
                        batch[theirs], source, theirs, expansion, options.choice_of(name)
                    )
                    for batch in batches
                ]
            if not all(map(by_leaf, parts)):
                raise DataError(
                    source,
                    f"{theirs} have no leaf that is read",
                    "record the leaves of the space in every line",
                )
            lengths = lengths or [length(part) for part in parts]
            columns[name] = _joined(parts, lengths, source, theirs)
    return columns


def _joined(parts: list[Tree], lengths: list[int], source: str, name: str) -> Tree:
    """Joins a column's batches, leaf by leaf."""
    columns: dict[str, Array] = {}
    for path in by_leaf(parts[0]):
        if any(by_leaf(part).keys() != by_leaf(parts[0]).keys() for part in parts):
            raise DataError(
                source,
                f"column {name!r} has other leaves in some lines",
                "record every leaf in every line",
            )
        arrays = [by_leaf(part)[path] for part in parts]
        where = joined(name, path)
        _check_lengths(lengths, arrays, source, where)
        if len({array.shape[1:] for array in arrays}) > 1:
            shapes = sorted({array.shape[1:] for array in arrays})
            raise DataError(
                source,
                f"column {where!r} is ragged: shapes {shapes}",
                "record arrays of one shape at every step",
            )
        columns[path] = np.concatenate(arrays)
    return from_leaves(columns)


def _check_lengths(lengths: list[int], parts: list[Array], source: str, name: str) -> None:
    # batch by batch: a surplus in one could hide a shortage in another, and shift steps
    for number, (wanted, part) in enumerate(zip(lengths, parts, strict=True), 1):
        if len(part) != wanted:
            raise DataError(
                source,
                f"its columns have different lengths: batch {number} has {len(part)} values of "
                f"{name!r}, but {wanted} of the columns before it",
                "record every column at every step",
            )


def _check_everywhere(batches: Sequence[JsonObject], name: str, source: str) -> None:
    """Refuses a column that tells episodes apart and is missing in some lines."""
    there = [name in batch for batch in batches]
    if any(there) and not all(there):
        raise DataError(
            source,
            f"column {name!r} is missing in line {there.index(False) + 1}, but not in line "
            f"{there.index(True) + 1} (empty lines not counted)",
            "record it in every line, or in none",
        )


def _merge_rows(
    batches: Sequence[JsonObject], one_a_step: Mapping[str, bool]
) -> Iterator[JsonObject]:
    """Turns lines of one step each into one batch for each run of them; other lines stay."""
    rows: list[JsonObject] = []
    for batch in batches:
        # text is a packed array, except for an id
        singles = {name: batch[name] for name in one_a_step.keys() & batch.keys()}
        is_row = len(singles) > 0 and all(
            isinstance(value, str | int | float) if one_a_step[name] else _is_number(value)
            for name, value in singles.items()
        )
        if rows and (not is_row or batch.keys() != rows[0].keys()):
            yield {name: [row[name] for row in rows] for name in rows[0]}
            rows = []
        if is_row:
            rows.append(batch)
        else:
            yield batch
    if rows:
        yield {name: [row[name] for row in rows] for name in rows[0]}


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class DuplicateKeyError(ValueError):
    """A JSON object with two values of one name, of which the first would be lost."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise DuplicateKeyError(names.most_common(1)[0][0])
    return found


def _batch(line: str, number: int, source: str) -> JsonObject:
    try:
        batch: JsonObject = json.loads(line, object_pairs_hook=_without_duplicates)
    except DuplicateKeyError as error:
        raise DataError(
            source, f"line {number} holds the key {error.args[0]!r} twice", "remove one of them"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            source,
            f"line {number} is not a complete JSON value ({error})",
            "the file may be truncated: copy or record it again",
        ) from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, [[[[…
        raise DataError(
            source, f"line {number} cannot be read ({error})", "record it again"
        ) from error
    kind = batch.get("type", "SampleBatch") if isinstance(batch, dict) else type(batch).__name__
    if kind != "SampleBatch":
        raise DataError(
            source, f"line {number} is a {kind}, wanted a SampleBatch", "record a single agent"
        )
    return batch
