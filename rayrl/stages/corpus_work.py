"""What workers of `rayrl corpus` do with a task, in their own processes: read files, take a step, find duplicates.

Every task writes its own files, whole, and then its counts: a task that has counts is done, whoever asks again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.config.corpus import CorpusConfig
from rayrl.corpus.exact import repeated
from rayrl.corpus.pieces import Piece
from rayrl.corpus.reader import Reader
from rayrl.corpus.records import TEXT, Result, Step, Tally, keep
from rayrl.corpus.shards import ShardWriter, read_batches
from rayrl.data.storage import Place
from rayrl.errors import RunError
from rayrl.stages.pool import NUMBER

TASK = pa.schema([(NUMBER, pa.int64()), ("payload", pa.string())])
DONE = pa.schema([(NUMBER, pa.int64()), ("rows", pa.int64()), ("bytes", pa.int64()), ("seconds", pa.float64())])


@dataclass(frozen=True)
class Phase:
    """One pass over a stage's tasks. Its files lie in `folder`, its counts in the stage's `work` under `name`."""

    name: str
    folder: str
    work: str
    config: CorpusConfig

    def counts_file(self, number: int) -> Place:
        """Where a task that is done has said so."""
        return Place(self.work) / self.name / f"{number:05d}.json"


class Worker:
    """The base of all: what Ray Data calls with a task in its actor."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._folder = Place(phase.folder)
        self._shard_bytes = phase.config.read.shard_mb << 20

    def __call__(self, table: pa.Table) -> pa.Table:
        """Does one task: a row of TASK in, a row of DONE out."""
        (row,) = table.to_pylist()
        began = time.monotonic()
        try:
            counts = self.do(row[NUMBER], json.loads(row["payload"]))
            self._phase.counts_file(row[NUMBER]).write_json(counts)
        except OSError as error:
            raise RunError(f"{self._phase.name}, task {row[NUMBER]}: {error}; the same command goes on") from error
        sizes = counts.get("sizes", {}).get("in", [])
        done = {
            NUMBER: row[NUMBER],
            "rows": sum(one["rows"] for one in sizes),
            "bytes": sum(one["bytes"] for one in sizes),
            "seconds": time.monotonic() - began,
        }
        return pa.Table.from_pylist([done], schema=DONE)

    def do(self, number: int, payload: Any) -> dict[str, Any]:
        """Writes the task's files; its counts."""
        raise NotImplementedError

    def _written(self, number: int, results: Iterator[tuple[pa.Table, Result]], schema: pa.Schema) -> dict[str, Any]:
        """Writes what steps made of batches."""
        tally = Tally()
        rejected: list[dict[str, Any]] = []
        with ShardWriter(self._folder, number, schema, self._shard_bytes) as writer:
            for table, result in results:
                writer.write(result.table)
                tally.result(table, result)
                rejected += [asdict(one) for one in result.rejected]
        return {**tally.as_json(), "rejected": rejected, "files": writer.names}


class ReadWorker(Worker):
    """Pieces of files to shards of documents."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(phase)
        self._read = Reader(phase.config.sources, phase.config.read)

    def do(self, number: int, payload: Any) -> dict[str, Any]:
        """`payload`: pieces."""
        return self._written(number, self._read([Piece(**piece) for piece in payload]), TEXT)


class StepWorker(Worker):
    """A shard through a step. `make`: makes the step from the configuration; its models are the worker's own."""

    def __init__(self, phase: Phase, make: Callable[[CorpusConfig], Step], schema: pa.Schema = TEXT) -> None:
        super().__init__(phase)
        self._step, self._schema = make(phase.config), schema

    def do(self, number: int, payload: Any) -> dict[str, Any]:
        """`payload`: a shard's path."""
        results = ((table, self._step(table)) for table in read_batches(payload))
        return self._written(number, results, self._schema)


class ExactWorker(Worker):
    """One part of all keys to the rows that repeat an earlier one."""

    def do(self, number: int, payload: Any) -> dict[str, Any]:
        """`payload`: all shards' paths, and how many parts there are."""
        found = repeated(payload["shards"], number, payload["parts"])
        with (self._folder / f"{number:05d}.parquet").written() as stream:
            pq.write_table(found, stream)
        return {"found": found.num_rows}


class WithoutWorker(Worker):
    """A shard without the rows that links say are to go."""

    REASON: ClassVar[str] = "the same as an earlier text"

    def do(self, number: int, payload: Any) -> dict[str, Any]:
        """`payload`: the shard's path, and the files of links."""
        gone: set[int] = set()
        for uri in payload["links"]:
            with Place(uri).open() as stream:
                links = pq.read_table(stream, filters=[("shard", "==", number)], columns=["shard", "row"])
            gone.update(links["row"].to_pylist())
        return self._written(number, self._kept(payload["shard"], gone), TEXT)

    def _kept(self, shard: str, gone: set[int]) -> Iterator[tuple[pa.Table, Result]]:
        start = 0
        for table in read_batches(shard):
            reasons = [self.REASON if row in gone else None for row in range(start, start + table.num_rows)]
            yield table, keep(table, reasons)
            start += table.num_rows
