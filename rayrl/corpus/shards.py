"""Shards of texts on disk: Parquet files that are written whole and read batch by batch.

A task's output files are named by its number: `00012-0000.parquet`, `00012-0001.parquet`. The same rows in the same
batches give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.data.storage import Place

BATCH_ROWS = 512
_GROUP_BYTES = 8 << 20
_REPEATED = frozenset({"document", "own_id", "source", "genre", "language", "file", "target"})
"""Columns worth a dictionary."""
_COMPRESSION = "lz4"


def read_batches(uri: str, columns: list[str] | None = None, max_rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """A shard's rows, a few at a time; a row group alone is in memory."""
    with Place(uri).open() as stream, pq.ParquetFile(stream) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            for start in range(0, table.num_rows, max_rows):
                yield table.slice(start, max_rows)


def num_rows(uri: str) -> int:
    """Of one shard, from its footer."""
    with Place(uri).open() as stream, pq.ParquetFile(stream) as file:
        return int(file.metadata.num_rows)


class ShardWriter:
    """Writes one task's rows into files of about `shard_bytes`; a block that ends with an error leaves no half file."""

    def __init__(self, folder: Place, number: int, schema: pa.Schema, shard_bytes: int) -> None:
        self._folder, self._number, self._schema, self._shard_bytes = folder, number, schema, shard_bytes
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = self._file_bytes = 0
        self._open = ExitStack()
        self._writer: Any = None
        self.names: list[str] = []
        """Files that are in place, or will be when the block ends."""

    def __enter__(self) -> Self:
        return self

    def write(self, table: pa.Table) -> None:
        """Takes rows; they are on disk at the end of the block."""
        if table.num_rows:
            self._waiting.append(table)
            self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= min(_GROUP_BYTES, self._shard_bytes):
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None:
            self._open.__exit__(kind, error, where)
            return
        with self._open:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        if self._writer is None:
            name = f"{self._number:05d}-{len(self.names):04d}.parquet"
            stream = self._open.enter_context((self._folder / name).written())
            repeated = [name for name in self._schema.names if name in _REPEATED]
            writer = pq.ParquetWriter(stream, self._schema, compression=_COMPRESSION, use_dictionary=repeated)
            self._writer = self._open.enter_context(writer)
            self.names.append(name)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._file_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        if self._file_bytes >= self._shard_bytes:
            self._close()

    def _close(self) -> None:
        self._open.close()
        self._writer, self._file_bytes = None, 0
