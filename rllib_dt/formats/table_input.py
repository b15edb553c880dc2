"""`TableInput`: what layouts that exist in Parquet and in Arrow files need of either."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from rllib_dt.formats.expansion import Expansion
from rllib_dt.formats.fragments import ReadOptions


class TableInput(Protocol):
    """An open Parquet or Arrow file."""

    @property
    def source(self) -> str:
        """The file's name, for messages."""

    @property
    def options(self) -> ReadOptions:
        """See `ReadOptions`."""

    @property
    def schema(self) -> pa.Schema:
        """The file's schema."""

    @property
    def expansion(self) -> Expansion:
        """What the file may take in memory."""

    def announce(self, columns: Sequence[str]) -> int:
        """Counts what columns will take in memory; returns their size."""

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Reads columns as a whole."""

    def batches(self, columns: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        """Reads columns some rows at a time."""
