"""The stage `dedup`: like texts found across all shards, and of each group the best kept.

near       sketches (a shard each) -> candidates (some bands each) -> halves, similar (a shard each)   minhash.py
semantic   vectors (a shard each) -> centres -> cells (a shard each) -> neighbours (a cell each)       neighbours.py
both       groups -> without (a shard each)                                                           groups.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayrl.config.corpus import SemanticConfig
from rayrl.corpus import minhash
from rayrl.corpus.embed import make_encoder
from rayrl.corpus.groups import links
from rayrl.corpus.neighbours import SAMPLE_A_CELL, centres, into_cells, near_pairs
from rayrl.corpus.records import Tally
from rayrl.corpus.shards import ShardWriter, num_rows, read_batches
from rayrl.data.storage import Place
from rayrl.stages.corpus_work import Counts, Phase, Stage, Worker, files_of, numbered, tally_of

LIKE = "like another text"
_BANDS_A_TASK = 8


class SketchWorker(Worker):
    """A shard to its sketches: one file, of the shard's number."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: a shard's path."""
        with ShardWriter(self.folder, number, minhash.SKETCH, 1 << 62) as writer:
            for table in read_batches(payload):
                writer.write(minhash.sketches(table))
        return {"files": writer.names}


class CandidateWorker(Worker):
    """Some bands to the pairs that share a key in one."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the sketches' files."""
        bands = range(number * _BANDS_A_TASK, (number + 1) * _BANDS_A_TASK)
        found = [minhash.candidates(payload, band) for band in bands]
        pairs = pa.concat_tables(found)
        return self.write_table(number, minhash.pairs_table(np.stack([pairs["a"], pairs["b"]], axis=1)))


class HalfWorker(Worker):
    """A shard's candidates with its texts' signatures."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: candidates' files, and the shard's sketches."""
        return self.write_table(number, minhash.with_signatures(payload["pairs"], payload["sketches"], number))


class SimilarWorker(Worker):
    """A shard's candidates that are similar."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the folder of candidates with signatures and how many shards there are; the shard's sketches."""
        assert self.config.dedup is not None and self.config.dedup.near is not None
        halves = numbered(Place(payload["halves"]), payload["shards"])
        threshold = self.config.dedup.near
        return self.write_table(number, minhash.similar(halves, payload["sketches"], number, threshold))


class VectorWorker(Worker):
    """A shard to vectors, as they are encoded."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(phase)
        self._encode = make_encoder(_semantic(phase).encoder)

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: a shard's path."""
        vectors = [np.empty((0, 1), dtype=np.float16)]
        for table in read_batches(payload, ["text", "language"]):
            made = self._encode(table["text"].to_pylist(), table["language"].to_pylist()).astype(np.float16)
            vectors = [*(one for one in vectors if len(one)), made]
        found = np.concatenate(vectors)
        column = minhash.fixed_binary(np.ascontiguousarray(found).view(np.uint8).reshape(len(found), -1))
        return self.write_table(number, pa.table({"vector": column}))


class CentreWorker(Worker):
    """The one task that places the cells."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the vectors' files and how many cells there are to be."""
        every = max(1, payload["rows"] // (SAMPLE_A_CELL * payload["cells"]))
        sample = np.concatenate([read_vectors(uri)[::every].copy() for uri in payload["vectors"]])
        found = centres(sample.astype(np.float32), payload["cells"], self.config.seed)
        column = minhash.fixed_binary(found.astype(np.float16).view(np.uint8).reshape(len(found), -1))
        return self.write_table(number, pa.table({"vector": column}))


class CellWorker(Worker):
    """A shard's vectors into cells."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the shard's vectors, and the centres."""
        vectors = read_vectors(payload["vectors"]).astype(np.float32)
        places = minhash.place_of(number, np.arange(len(vectors)))
        return self.write_table(
            number, into_cells(vectors, places, read_vectors(payload["centres"]).astype(np.float32))
        )


class NeighbourWorker(Worker):
    """A cell to the pairs of near texts in it."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the folder of vectors in cells, and how many shards there are."""
        files = numbered(Place(payload["cells"]), payload["shards"])
        return self.write_table(number, near_pairs(files, number, _semantic(self.phase).threshold))


class GroupWorker(Worker):
    """The one task that makes groups of pairs: it holds their places, not their texts."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: pairs' files, and the sketches."""
        found, sizes = links(minhash.read_pairs(payload["pairs"]), payload["sketches"])
        return {**self.write_table(number, found), "sizes_of_groups": dict(sizes)}


def dedup(stage: Stage, shards: Sequence[str]) -> Tally:
    """Does the stage."""
    config = stage.config.dedup
    assert config is not None
    folder = stage.work("sketches-files")
    sketches = files_of(folder, stage.phase("sketches", SketchWorker, shards, to=folder, light=True))
    pairs = _near(stage, sketches) if config.near is not None else []
    if config.semantic is not None:
        pairs += _semantic_pairs(stage, shards, config.semantic)
    to = stage.work("links")
    (found,) = stage.phase("groups", GroupWorker, [{"pairs": pairs, "sketches": sketches}], to=to, light=True)
    tally = tally_of(stage.without("without", shards, numbered(to, 1), LIKE))
    tally.notes.update(found["sizes_of_groups"])
    return tally


def read_vectors(uri: str) -> np.ndarray:
    """float16 [N, D] of a file of vectors."""
    import pyarrow.parquet as pq

    with Place(uri).open() as stream:
        column = pq.read_table(stream)["vector"].combine_chunks()
    width = column.type.byte_width
    raw = np.frombuffer(column.buffers()[1], dtype=np.uint8)[column.offset * width :][: len(column) * width]
    return raw.view(np.float16).reshape(len(column), -1)


def _near(stage: Stage, sketches: Sequence[str]) -> list[str]:
    """Files of near pairs."""
    candidates, halves, similar = (stage.work(f"{name}-files") for name in ("candidates", "halves", "similar"))
    tasks = minhash.BANDS // _BANDS_A_TASK
    stage.phase("candidates", CandidateWorker, [list(sketches)] * tasks, to=candidates, light=True)
    pairs = numbered(candidates, tasks)
    payloads: list[Any] = [{"pairs": pairs, "sketches": one} for one in sketches]
    stage.phase("halves", HalfWorker, payloads, to=halves, light=True)
    payloads = [{"halves": halves.uri, "shards": len(sketches), "sketches": one} for one in sketches]
    stage.phase("similar", SimilarWorker, payloads, to=similar, light=True)
    return numbered(similar, len(sketches))


def _semantic_pairs(stage: Stage, shards: Sequence[str], config: SemanticConfig) -> list[str]:
    """Files of pairs that mean the same."""
    vectors, middle, cells, near = (stage.work(f"{name}-files") for name in ("vectors", "centres", "cells", "near"))
    stage.phase("vectors", VectorWorker, shards, to=vectors, light=config.encoder.kind == "ngrams")
    files = numbered(vectors, len(shards))
    rows = sum(map(num_rows, shards))
    count = max(1, -(-rows // config.cell_size))
    stage.phase("centres", CentreWorker, [{"vectors": files, "rows": rows, "cells": count}], to=middle, light=True)
    (centre,) = numbered(middle, 1)
    stage.phase("cells", CellWorker, [{"vectors": one, "centres": centre} for one in files], to=cells, light=True)
    payloads = [{"cells": cells.uri, "shards": len(shards)}] * count
    stage.phase("neighbours", NeighbourWorker, payloads, to=near, light=True)
    return numbered(near, count)


def _semantic(phase: Phase) -> SemanticConfig:
    assert phase.config.dedup is not None and phase.config.dedup.semantic is not None
    return phase.config.dedup.semantic
