"""What a worker of `rayrl corpus` does with a task, and how a stage has its tasks done.

Every task writes its own files, whole, and then its counts: a task that has counts is done, whoever asks again.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from rayrl.config.corpus import CorpusConfig
from rayrl.corpus.personal import mask
from rayrl.corpus.records import TEXT, Result, Step, Tally, keep
from rayrl.corpus.shards import ShardWriter, read_batches
from rayrl.data.storage import Place
from rayrl.errors import RunError
from rayrl.placement import thread_env
from rayrl.stages.corpus_folder import CorpusFolder
from rayrl.stages.corpus_progress import Progress
from rayrl.stages.pool import NUMBER, Pool, answers

TASK = pa.schema([(NUMBER, pa.int64()), ("payload", pa.string())])
DONE = pa.schema([(NUMBER, pa.int64()), ("rows", pa.int64()), ("bytes", pa.int64()), ("seconds", pa.float64())])
Counts = dict[str, Any]
_kept_steps: dict[tuple[str, ...], Step] = {}
"""Of this process, by phase."""


@dataclass(frozen=True)
class Phase:
    """One pass over a stage's tasks. Files go to `folder`, counts to the stage's `work` under `name`."""

    name: str
    folder: str
    work: str
    config: CorpusConfig

    def counts_file(self, number: int) -> Place:
        """Where a task that is done has said so."""
        return Place(self.work) / self.name / f"{number:05d}.json"


class Worker(ABC):
    """The base of all: what Ray Data calls with a task in its actor."""

    def __init__(self, phase: Phase) -> None:
        self.phase, self.config = phase, phase.config
        if _key(phase) not in _kept_steps:
            _kept_steps.clear()  # another phase's lexicon would stay in memory
        self.folder = Place(phase.folder)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Does one task: a row of TASK in, a row of DONE out."""
        (row,) = table.to_pylist()
        began = time.monotonic()
        try:
            counts = self.do(row[NUMBER], json.loads(row["payload"]))
            self.phase.counts_file(row[NUMBER]).write_json(counts)
        except OSError as error:
            raise RunError(f"{self.phase.name}, task {row[NUMBER]}: {error}; the same command goes on") from error
        sizes = counts.get("sizes", {}).get("in", [])
        done = {
            NUMBER: row[NUMBER],
            "rows": sum(one["rows"] for one in sizes),
            "bytes": sum(one["bytes"] for one in sizes),
            "seconds": time.monotonic() - began,
        }
        return pa.Table.from_pylist([done], schema=DONE)

    @abstractmethod
    def do(self, number: int, payload: Any) -> Counts:
        """Writes the task's files; its counts."""

    def write_results(
        self, number: int, results: Iterator[tuple[pa.Table, Result]], schema: pa.Schema = TEXT
    ) -> Counts:
        """Writes what steps made of batches, as shards."""
        masks = self.config.clean is not None and self.config.clean.mask
        tally = Tally(_masked if masks else str)
        rejected: list[dict[str, Any]] = []
        listed: list[Any] = []
        with ShardWriter(self.folder, number, schema, int(self.config.read.shard_mb * 2**20)) as writer:
            for table, result in results:
                writer.write(result.table)
                tally.result(table, result)
                rejected += [asdict(one) for one in result.rejected]
                listed += result.listed
        for entry in self.folder.files():  # of a try before this one, which was cut and had more of them
            name = Place(entry.uri).name
            if name.startswith(f"{number:05d}-") and name not in writer.names:
                Place(entry.uri).remove()
        return {**tally.as_json(), "rejected": rejected, "listed": listed, "files": writer.names}

    def write_table(self, number: int, table: pa.Table) -> Counts:
        """Writes one intermediate file."""
        with (self.folder / f"{number:05d}.parquet").written() as stream:
            # Small groups: who reads a part of a sorted file, reads little beside it.
            pq.write_table(table, stream, row_group_size=1 << 12)
        return {"found": table.num_rows}


def _masked(text: str) -> str:
    """For examples, also of texts that went before `clean` could mask them."""
    return mask(text, names=True)[0]


class StepWorker(Worker):
    """A shard through a step. `make`: makes the step from the phase; its models are the worker's own."""

    def __init__(self, phase: Phase, make: Callable[[Phase], Step], schema: pa.Schema = TEXT) -> None:
        super().__init__(phase)
        self._step, self._schema = _made(make, phase), schema

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: a shard's path."""
        results = ((table, self._step(table)) for table in read_batches(payload))
        return self.write_results(number, results, self._schema)


def _made(make: Callable[[Phase], Step], phase: Phase) -> Step:
    """The phase's step, made once in a process: light workers are many, lexicons and classifiers take their time."""
    key = _key(phase)
    if key not in _kept_steps:
        _kept_steps[key] = make(phase)
    return _kept_steps[key]


def _key(phase: Phase) -> tuple[str, ...]:
    return phase.work, phase.name, phase.config.model_dump_json()


class WithoutWorker(Worker):
    """A shard without the rows that links say are to go.

    Args:
        reason: why they are.
        move: a shard that loses no row is moved, and isn't counted.
    """

    def __init__(self, phase: Phase, reason: str, move: bool) -> None:
        super().__init__(phase)
        self._reason, self._move = reason, move

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the shard's path, and the files of links."""
        gone: set[int] = set()
        for uri in payload["links"]:
            with Place(uri).open() as stream:
                links = pq.read_table(stream, filters=[("shard", "==", number)], columns=["row"])
            gone.update(links["row"].to_pylist())
        if self._move and not gone:
            name = f"{number:05d}-0000.parquet"
            Place(payload["shard"]).move(self.folder / name)
            return {**Tally().as_json(), "rejected": [], "listed": [], "files": [name]}
        return self.write_results(number, self._kept(payload["shard"], gone))

    def _kept(self, shard: str, gone: set[int]) -> Iterator[tuple[pa.Table, Result]]:
        start = 0
        for table in read_batches(shard):
            reasons = [self._reason if row in gone else None for row in range(start, start + table.num_rows)]
            yield table, keep(table, reasons)
            start += table.num_rows


class Stage:
    """A stage at work, in the driver."""

    def __init__(self, config: CorpusConfig, folder: CorpusFolder) -> None:
        self.config, self.folder = config, folder

    def work(self, name: str) -> Place:
        """A folder for intermediate files, which go when the stage is done."""
        place = self.folder.work / name
        if place.local is not None:
            place.local.mkdir(parents=True, exist_ok=True)
        return place

    def phase(
        self,
        name: str,
        worker: type[Worker],
        payloads: Sequence[Any],
        *arguments: Any,
        to: Place | None = None,
        pool: Pool | None = None,
        light: bool = False,
    ) -> list[Counts]:
        """Has the tasks done that aren't; the counts of all, in order.

        Args:
            name: of the phase, unique in the stage.
            payloads: a task's each.
            arguments: of the worker, after the phase.
            to: where files go; by default the stage's own folder, as shards.
            pool: by default one of plain workers; `light` ones, where they hold nothing.
        """
        phase = Phase(name, (to or self.folder.place).uri, self.folder.work.uri, self.config)
        counted = {Place(entry.uri).name.partition(".")[0] for entry in (self.folder.work / name).files()}
        tasks = {
            number: pa.Table.from_pylist([{NUMBER: number, "payload": json.dumps(payload)}], schema=TASK)
            for number, payload in enumerate(payloads)
            if f"{number:05d}" not in counted
        }
        if tasks:
            say = Progress(name, len(payloads), len(payloads) - len(tasks))
            for answer in answers(tasks, worker, (phase, *arguments), pool or self.pool(name, light)):
                say(answer["bytes"])
        return [phase.counts_file(number).read_json() for number in range(len(payloads))]

    def without(
        self, name: str, shards: Sequence[str], links: Sequence[str], reason: str, move: bool = False
    ) -> list[Counts]:
        """Writes the shards without the rows that `links` (files) name; `move`: see WithoutWorker."""
        payloads = [{"shard": shard, "links": list(links)} for shard in shards]
        return self.phase(name, WithoutWorker, payloads, reason, move, light=True)

    def pool(self, name: str, light: bool = False) -> Pool:
        """Plain workers, as many as the cluster has room for."""
        cpus = self.config.cpus_per_worker
        there = ray.cluster_resources().get("CPU", 1.0)
        size = self.config.workers or max(1, int(there // cpus))
        # A worker's numerical libraries must not take the cores that the others were given.
        env = thread_env(None, cpus)
        return Pool(f"a worker of {name}", size, cpus, 0.0, self.config.ray.start_timeout_s, env, light)


def files_of(folder: Place, counts: Sequence[Counts]) -> list[str]:
    """Shards that tasks have written, in order."""
    return [(folder / name).uri for one in counts for name in one["files"]]


def numbered(folder: Place, count: int) -> list[str]:
    """Intermediate files of so many tasks."""
    return [(folder / f"{number:05d}.parquet").uri for number in range(count)]


def tally_of(counts: Sequence[Counts]) -> Tally:
    """What tasks counted, together."""
    tally = Tally()
    for one in counts:
        tally.add(one)
    return tally
