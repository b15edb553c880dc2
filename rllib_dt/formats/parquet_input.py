"""Opens Parquet files: checked before pyarrow sees them, and bounded in what they may take."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.arrow_schema import extension_types
from rllib_dt.formats.columns import announce_columns, check_extension, check_types
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.formats.parquet_footer import Footer, read_footer


@dataclass(frozen=True)
class ParquetInput:
    """An open Parquet file.

    Attributes:
        source: its name, for messages.
        options: see `ReadOptions`.
        schema: the file's schema; text and bytes may be dictionaries.
        expansion: what it may take in memory.
        beside: opens files by their path relative to the file's folder; None if there are none.
    """

    source: str
    options: ReadOptions
    schema: pa.Schema
    expansion: Expansion
    _parquet: pq.ParquetFile
    _footer: Footer
    beside: Callable[[str], IO[bytes]] | None = None

    def name(self, column: str) -> str:
        """Returns the file's own name of one of our columns."""
        return self.options.names.get(column, column)

    def announce(self, columns: Sequence[str]) -> int:
        """Counts what columns will take in memory; returns their size, encoded or decoded."""
        decoded = announce_columns(self._footer, columns, self.expansion)
        return max(decoded, self._footer.num_bytes)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Reads columns as a whole."""
        table = self._parquet.read(columns=list(columns))
        self._check_rows(len(table))
        return table

    def batches(self, columns: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        """Reads columns some rows at a time."""
        seen = 0
        for batch in self._parquet.iter_batches(batch_size=num_rows, columns=list(columns)):
            seen += len(batch)
            yield batch
        self._check_rows(seen)

    def _check_rows(self, seen: int) -> None:
        """Refuses a file that ends early: pyarrow says nothing if a column does."""
        if seen != self.num_rows:
            raise DataError(
                self.source,
                f"it holds {seen} of the {self.num_rows} rows that it declares",
                "copy or record it again",
            )

    @property
    def num_rows(self) -> int:
        """The rows that the file declares."""
        return self._footer.num_rows


def open_parquet(
    file: IO[bytes], source: str, options: ReadOptions, *, as_they_are: Sequence[str] = ()
) -> ParquetInput:
    """Opens a Parquet file.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: see `ReadOptions`.
        as_they_are: columns of text or bytes whose values are few, so that they need no dictionary.

    Raises:
        DataError: it is empty, or holds what could run code.
        DamagedFooterError, DamagedSchemaError, pa.ArrowException: it is no Parquet file.
    """
    expansion = Expansion(source, size_of(file), options.max_expansion)
    footer = read_footer(file)
    _check_extensions(footer, source)
    parquet = pq.ParquetFile(
        file,
        # values that a dictionary repeats are counted before they are unpacked
        read_dictionary=sorted(_repeated(footer) - set(as_they_are)),
        page_checksum_verification=True,
    )
    if not footer.num_rows:
        raise DataError(source, "it is empty", "remove it from the input")
    schema = parquet.schema_arrow
    check_types(schema, source)
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(
            source, f"it has several columns of the names {twice}", "rename or remove all but one"
        )
    return ParquetInput(source, options, schema, expansion, parquet, footer)


def _check_extensions(footer: Footer, source: str) -> None:
    """Refuses extension types by name, before pyarrow rebuilds any of them."""
    for schema in footer.values(b"ARROW:schema"):
        for found in extension_types(schema):
            check_extension(found.name, found.column, source)
            try:
                json.loads(found.metadata)
            except ValueError as error:  # Ray 2.49 to 2.54 pickled it
                raise DataError(
                    source,
                    f"column {found.column!r} is a tensor whose description is no JSON ({error}); "
                    "it could hold code",
                    "write it again with a current version of Ray, or as lists",
                ) from error


def _repeated(footer: Footer) -> set[str]:
    """Names columns of text or bytes whose values may be repeated by reference."""
    return {c.path for c in footer.columns if c.width is None and c.has_dictionary}
