"""`rayrl corpus`: from raw text to instructions, stage by stage, each in a folder of its own (corpus_folder.py).

    read/ extract/ segment/ ...   shards and a manifest each
    config.yaml, summary.json, report.html

A stage's tasks are the shards of the stage before (files, for the first): workers do them in any order, the driver
counts. What is done isn't done again; a run that was cut goes on with the tasks that are missing and ends with the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from cluster.session import connect
from rayrl.config.corpus import CorpusConfig
from rayrl.config.load import config_hash, dump, load
from rayrl.config.strict import Strict
from rayrl.corpus.exact import ROWS_A_PART
from rayrl.corpus.pieces import Listing, list_pieces
from rayrl.corpus.records import Tally
from rayrl.corpus.shards import num_rows
from rayrl.data.lock import LOCK, only_run
from rayrl.data.stage_folder import MANIFEST
from rayrl.data.storage import Place
from rayrl.errors import UserError
from rayrl.judge.service import ModelService
from rayrl.placement import thread_env
from rayrl.stages.corpus_folder import REJECTED, CorpusFolder
from rayrl.stages.corpus_steps import STEPS
from rayrl.stages.corpus_work import (
    TASK,
    ExactWorker,
    Phase,
    ReadWorker,
    StepWorker,
    WithoutWorker,
    Worker,
)
from rayrl.stages.pool import NUMBER, Pool, answers
from rayrl.tracking.progress import duration

logger = logging.getLogger(__name__)

SAY_EVERY_S = 5.0


def main(config_path: str) -> None:
    """Runs or resumes the stages. Raises UserError for bad input, RunError where a stage fails."""
    config = load(CorpusConfig, config_path)
    root = Place.of(config.output_dir)
    if root.local is None:
        Corpus(config, root).run()
        return
    root.local.mkdir(parents=True, exist_ok=True)
    with only_run(root.local):
        Corpus(config, root).run()
    (root.local / LOCK).unlink(missing_ok=True)


class Corpus:
    """One run over the stages."""

    def __init__(self, config: CorpusConfig, root: Place) -> None:
        self._config, self._root = config, root

    def run(self) -> None:
        """Does what isn't done yet of the stages that are asked for."""
        config = self._config
        listing = list_pieces(config.sources, config.read.split_mb << 20)
        for source, others in listing.skipped.items():
            told = ", ".join(f"{number} {suffix}" for suffix, number in sorted(others.items()))
            logger.info("%s: files that aren't read: %s", source, told)
        stages = config.stages()
        first, last = self._asked(stages)
        self._clear(stages)
        (self._root / "config.yaml").write_bytes(dump(config).encode())
        before: CorpusFolder | None = None
        with ExitStack() as connection:
            for name in stages[: last + 1]:
                folder = self._folder(name, listing, before)
                if folder.done:
                    logger.info("%s is done: %s", name, _headline(folder.manifest()["counts"]))
                elif stages.index(name) < first:
                    raise UserError(f"{name} isn't done yet: run the command without --only or --from first")
                else:
                    if not ray.is_initialized():
                        at = connect(config.ray.address, object_store_mb=config.ray.object_store_mb)
                        connection.enter_context(at)
                    StageRun(config, folder, before, listing).run()
                before = folder

    def _asked(self, stages: Sequence[str]) -> tuple[int, int]:
        """Numbers of the first and last stage that this run may do."""
        config = self._config
        named = config.only or config.from_stage
        if named is not None and named not in stages:
            raise UserError(f"the configuration has no stage {named}; its stages: {', '.join(stages)}")
        first = 0 if named is None else stages.index(named)
        return first, first if config.only is not None else len(stages) - 1

    def _clear(self, stages: Sequence[str]) -> None:
        """Removes what is to be made anew."""
        config = self._config
        if config.from_stage is not None:
            for name in stages[stages.index(config.from_stage) :]:
                CorpusFolder(self._root, name, {}, config.seed).clear()

    def _folder(self, name: str, listing: Listing, before: CorpusFolder | None) -> CorpusFolder:
        """The stage's folder, by what it depends on: its section, and its input."""
        config = self._config
        sections: list[Strict] = [getattr(config, name)]
        if before is None:
            sections += config.sources
            entries = json.dumps([[entry.uri, entry.size, entry.mtime_ns] for entry in listing.entries])
            inputs = {"sources": hashlib.sha256(entries.encode()).hexdigest()}
        else:
            manifest = (before.place / MANIFEST).read_bytes()
            inputs = {before.name: hashlib.sha256(manifest).hexdigest()}
        hashes = "".join(config_hash(section) for section in sections)
        own = hashlib.sha256(f"{config.seed} {hashes}".encode()).hexdigest()
        return CorpusFolder(self._root, name, {"config": own, **inputs}, config.seed)


class StageRun:
    """One stage, phase by phase."""

    def __init__(
        self, config: CorpusConfig, folder: CorpusFolder, before: CorpusFolder | None, listing: Listing
    ) -> None:
        self._config, self._folder, self._before, self._listing = config, folder, before, listing

    def run(self) -> None:
        """Runs or resumes it, and publishes it."""
        began = time.monotonic()
        self._folder.begin()
        tally = self._read() if self._before is None else self._step(self._before)
        total = {side: sizes.total() for side, sizes in tally.sizes.items()}
        counts = {
            "in": total["in"]["rows"],
            "out": total["out"]["rows"],
            "dropped": {reason: entry["rows"] for reason, entry in sorted(tally.dropped.items())},
            "sizes": {side: sizes.rows() for side, sizes in tally.sizes.items()},
            "reasons": dict(sorted(tally.dropped.items())),
            "notes": dict(sorted(tally.notes.items())),
        }
        if not counts["out"]:
            raise UserError(f"{self._folder.name} keeps none of {counts['in']} rows: {counts['dropped']}")
        self._folder.publish(counts)
        logger.info("%s: %s, %s", self._folder.name, _headline(counts), duration(time.monotonic() - began))

    def _read(self) -> Tally:
        tasks = [[asdict(piece) for piece in pieces] for pieces in self._listing.tasks]
        if self._config.read.duplicates == "keep":
            counts = self._phase("documents", self._folder.place, ReadWorker, tasks)
            self._rejected(counts)
            return _tally(counts)
        work = self._folder.work
        documents = self._phase("documents", work / "texts", ReadWorker, tasks)
        self._rejected(documents)
        tally = _tally(documents)
        kept = self._without_repeated([(work / "texts" / name).uri for one in documents for name in one["files"]])
        tally.sizes["out"] = kept.sizes["out"]
        tally.dropped.update(kept.dropped)
        return tally

    def _without_repeated(self, shards: list[str]) -> Tally:
        """Finds exact duplicates across shards and writes the shards without them."""
        parts = -(-sum(map(num_rows, shards)) // ROWS_A_PART) or 1
        links = self._folder.work / "links"
        self._phase("exact", links, ExactWorker, [{"shards": shards, "parts": parts}] * parts)
        files = [(links / f"{part:05d}.parquet").uri for part in range(parts)]
        tasks = [{"shard": shard, "links": files} for shard in shards]
        return _tally(self._phase("without", self._folder.place, WithoutWorker, tasks))

    def _step(self, before: CorpusFolder) -> Tally:
        name = self._folder.name
        service = self._model_service(name)  # kept while workers ask: its actor lives as long as the first that asked
        counts = self._phase(name, self._folder.place, StepWorker, before.shards(), *STEPS[name])
        del service
        return _tally(counts)

    def _rejected(self, documents: Sequence[dict[str, Any]]) -> None:
        """Writes rejected.jsonl. Raises UserError where too much of the input gave no document."""
        rejected = [row for one in documents for row in one["rejected"]]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
        (self._folder.place / REJECTED).write_bytes(lines.encode("utf-8", "backslashreplace"))
        rows = sum(size["rows"] for one in documents for size in one["sizes"]["in"])
        limit = self._config.max_rejected_fraction
        if len(rejected) > limit * (rows + len(rejected)):
            first = "; ".join(f"{row['file']} at {row['position']}: {row['reason']}" for row in rejected[:3])
            raise UserError(
                f"{len(rejected)} of {rows + len(rejected)} documents can't be read, more than the {limit:.1%} of "
                f"max_rejected_fraction (all in {(self._folder.place / REJECTED).uri}). First: {first}"
            )

    def _phase(
        self, name: str, folder: Place, worker: type[Worker], payloads: Sequence[Any], *arguments: Any
    ) -> list[dict[str, Any]]:
        """Does the tasks that aren't done; the counts of all, in order."""
        phase = Phase(name, folder.uri, self._folder.work.uri, self._config)
        if folder.local is not None:
            folder.local.mkdir(parents=True, exist_ok=True)
        counted = {entry.uri.rsplit("/", 1)[-1].partition(".")[0] for entry in (self._folder.work / name).files()}
        tasks = {
            number: pa.Table.from_pylist([{NUMBER: number, "payload": json.dumps(payload)}], schema=TASK)
            for number, payload in enumerate(payloads)
            if f"{number:05d}" not in counted
        }
        if tasks:
            say = _Progress(name, len(payloads), len(payloads) - len(tasks))
            for answer in answers(tasks, worker, (phase, *arguments), self._pool(name)):
                say(answer)
        return [phase.counts_file(number).read_json() for number in range(len(payloads))]

    def _model_service(self, name: str) -> ModelService | None:
        unify = self._config.unify
        asks = name in ("unify", "check") and unify is not None and unify.endpoint is not None
        return ModelService(unify.endpoint) if asks else None  # type: ignore[union-attr,arg-type]

    def _pool(self, name: str) -> Pool:
        unify, cpus = self._config.unify, self._config.cpus_per_worker
        if name in ("unify", "check") and unify is not None and unify.engine is not None:
            rollout = unify.engine.rollout
            return Pool(
                "an engine",
                rollout.engines,
                rollout.cpus_per_engine,
                rollout.gpus_per_engine * rollout.tensor_parallel,
                self._config.ray.start_timeout_s,
                thread_env(rollout.threads, rollout.cpus_per_engine),
            )
        there = ray.cluster_resources().get("CPU", 1.0)
        size = self._config.workers or max(1, int(there // cpus))
        # A worker's numerical libraries must not take the cores that the others were given.
        env = {"OMP_NUM_THREADS": str(max(1, int(cpus)))}
        return Pool(f"a worker of {name}", size, cpus, 0.0, self._config.ray.start_timeout_s, env)


def _tally(counts: Sequence[dict[str, Any]]) -> Tally:
    tally = Tally()
    for one in counts:
        tally.add(one)
    return tally


def _headline(counts: dict[str, Any]) -> str:
    """Example: "1,200 of 3,000 texts, 4.1 of 9.9 million characters\""""
    chars = {side: sum(row["chars"] for row in counts["sizes"][side]) / 1e6 for side in ("in", "out")}
    return f"{counts['out']:,} of {counts['in']:,} texts, {chars['out']:,.2f} of {chars['in']:,.2f} million characters"


class _Progress:
    """A line every few seconds: tasks, speed, what is left."""

    def __init__(self, name: str, tasks: int, done_before: int) -> None:
        self._name, self._tasks, self._before = name, tasks, done_before
        self._done = self._bytes = 0
        self._began = self._said = time.monotonic()

    def __call__(self, answer: dict[str, Any]) -> None:
        self._done += 1
        self._bytes += answer["bytes"]
        now = time.monotonic()
        left = self._tasks - self._before - self._done
        if left and now - self._said < SAY_EVERY_S:
            return
        if not left and now - self._began < SAY_EVERY_S:
            return
        self._said = now
        rate = self._bytes / (now - self._began)
        logger.info(
            "  %s: task %d of %d, %.1f MB/s%s",
            self._name,
            self._before + self._done,
            self._tasks,
            rate / 1e6,
            f", {duration((now - self._began) / self._done * left)} left" if left else "",
        )
