"""The stage `read`: documents from files, then without those that are the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rayrl.corpus.exact import ROWS_A_PART, repeated
from rayrl.corpus.pieces import Listing, Piece
from rayrl.corpus.reader import THE_SAME, Reader
from rayrl.corpus.records import Tally
from rayrl.errors import UserError
from rayrl.stages.corpus_folder import REJECTED
from rayrl.stages.corpus_work import Counts, Phase, Stage, Worker, files_of, numbered, tally_of


class ReadWorker(Worker):
    """Pieces of files to shards of documents."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(phase)
        self._read = Reader(phase.config.sources, phase.config.read)

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: pieces."""
        return self.write_results(number, self._read([Piece(**piece) for piece in payload]))


class ExactWorker(Worker):
    """One part of all keys to the rows that repeat an earlier one."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: all shards' paths, and how many parts there are."""
        return self.write_table(number, repeated(payload["shards"], number, payload["parts"]))


def read(stage: Stage, listing: Listing) -> Tally:
    """Does the stage. Raises UserError where too much of the input gives no document."""
    tasks = [[asdict(piece) for piece in pieces] for pieces in listing.tasks]
    if stage.config.read.duplicates == "keep":
        counts = stage.phase("documents", ReadWorker, tasks, light=True)
        _rejected(stage, counts)
        return tally_of(counts)
    documents = stage.work("texts")
    counts = stage.phase("documents", ReadWorker, tasks, to=documents, light=True)
    _rejected(stage, counts)
    shards = files_of(documents, counts)
    tally = tally_of(counts)
    parts = -(-tally.sizes["out"].total()["rows"] // ROWS_A_PART) or 1
    links = stage.work("links")
    stage.phase("exact", ExactWorker, [{"shards": shards, "parts": parts}] * parts, to=links, light=True)
    for one in stage.without("without", shards, numbered(links, parts), THE_SAME, move=True):
        changed = one["sizes"]  # of shards that were written anew
        less = [{**row, **{key: -row[key] for key in ("rows", "chars", "bytes")}} for row in changed["in"]]
        tally.add({**one, "sizes": {"in": [], "out": changed["out"] + less}})
    return tally


def _rejected(stage: Stage, documents: Sequence[Counts]) -> None:
    """Writes rejected.jsonl, and stops where it is too long."""
    rejected = [row for one in documents for row in one["rejected"]]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
    file = stage.folder.place / REJECTED
    file.write_bytes(lines.encode("utf-8", "backslashreplace"))
    total = len(rejected) + sum(size["rows"] for one in documents for size in one["sizes"]["in"])
    limit = stage.config.max_rejected_fraction
    if len(rejected) > limit * total:
        first = "; ".join(f"{row['file']} at {row['position']}: {row['reason']}" for row in rejected[:3])
        raise UserError(
            f"{len(rejected)} of {total} documents can't be read, more than the {limit:.1%} of max_rejected_fraction "
            f"(all in {file.uri}). First: {first}"
        )
