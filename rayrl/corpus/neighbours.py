"""Texts whose vectors are near: cell by cell, so that no process ever holds all vectors (after SemDeDup).

Vectors are put into cells around centres that k-means found on a sample (faiss), each into its two nearest ones, so
that neighbours on both sides of a border meet; within a cell all are compared (Abbas et al. 2023, arXiv 2303.09540).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.corpus.embed import unit_length
from rayrl.corpus.groups import groups
from rayrl.corpus.minhash import fixed_binary, pairs_table
from rayrl.data.storage import Place

CELLS_A_VECTOR = 2
SAMPLE_A_CELL = 64
_BLOCK = 1024
_ROUNDING = 1e-6
_MANY = 1 << 20
"""Pairs from which on they are thinned out: n texts that are all the same have n * (n - 1) / 2."""


def vector_schema(dimensions: int) -> pa.Schema:
    """A row a vector and cell: the text's place, and the vector in half precision."""
    return pa.schema([("cell", pa.int32()), ("place", pa.int64()), ("vector", pa.binary(2 * dimensions))])


def centres(sample_ND: np.ndarray, cells: int, seed: int) -> np.ndarray:
    """float32 [cells, D] of a sample of vectors."""
    import faiss

    if cells == 1:
        return np.ascontiguousarray(sample_ND.mean(axis=0, keepdims=True), dtype=np.float32)
    faiss.omp_set_num_threads(1)  # sums in one order
    kmeans = faiss.Kmeans(sample_ND.shape[1], cells, niter=10, seed=seed, spherical=True, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(sample_ND, dtype=np.float32))
    return np.asarray(kmeans.centroids, dtype=np.float32)


def into_cells(vectors_ND: np.ndarray, places_N: np.ndarray, centres_CD: np.ndarray) -> pa.Table:
    """Rows of `vector_schema` in the order of cells; a vector of zeros is in none."""
    known = np.flatnonzero(np.abs(vectors_ND).sum(axis=1) > 0)
    nearness = vectors_ND[known] @ centres_CD.T
    number = min(CELLS_A_VECTOR, len(centres_CD))
    cells = np.argsort(-nearness, axis=1, kind="stable")[:, :number].astype(np.int32)
    rows = np.repeat(known, number)
    order = np.lexsort((rows, cells.ravel()))
    rows, cells_M = rows[order], cells.ravel()[order]
    halves = np.ascontiguousarray(vectors_ND[rows].astype(np.float16))
    packed = fixed_binary(halves.view(np.uint8).reshape(len(rows), 2 * vectors_ND.shape[1]))
    columns = [pa.array(cells_M, pa.int32()), pa.array(places_N[rows], pa.int64()), packed]
    return pa.table(columns, schema=vector_schema(vectors_ND.shape[1]))


def near_pairs(cell_files: Sequence[str], cell: int, threshold: float) -> pa.Table:
    """PAIRS of texts in a cell whose cosine reaches the threshold; of very many, as few as make the same groups.

    Block by block, so that besides the vectors in half precision (cells are of all sizes) little is in memory.
    """
    places, halves = _of_cell(cell_files, cell)
    starts = range(0, len(places), _BLOCK)
    found: list[np.ndarray] = [np.empty((0, 2), dtype=np.int64)]
    number = 0
    for start in starts:
        left = _in_full(halves[start : start + _BLOCK])
        for other in range(start, len(places), _BLOCK):
            right = left if other == start else _in_full(halves[other : other + _BLOCK])
            near = left @ right.T >= threshold - _ROUNDING
            a, b = np.nonzero(np.triu(near, k=1) if other == start else near)
            found.append(np.stack([places[a + start], places[b + other]], axis=1))
            number += len(a)
            if number > _MANY:
                found = [_chains(np.concatenate(found))]
                number = len(found[0])
    return pairs_table(np.sort(np.concatenate(found), axis=1))


def _of_cell(cell_files: Sequence[str], cell: int) -> tuple[np.ndarray, np.ndarray]:
    """(places int64 [N], vectors float16 [N, D]) of a cell."""
    places, vectors = [np.empty(0, dtype=np.int64)], []
    for uri in cell_files:
        with Place(uri).open() as stream:
            table = pq.read_table(stream, filters=[("cell", "==", cell)]).combine_chunks()
        if table.num_rows:
            places.append(table["place"].to_numpy())
            column = table["vector"].combine_chunks()
            width = column.type.byte_width
            raw = np.frombuffer(column.buffers()[1], dtype=np.uint8)[column.offset * width :][: len(column) * width]
            vectors.append(raw.view(np.float16).reshape(len(column), -1))
    return np.concatenate(places), np.concatenate(vectors) if vectors else np.empty((0, 0), dtype=np.float16)


def _in_full(halves: np.ndarray) -> np.ndarray:
    """float32, of length 1 again: rounding made them shorter."""
    return unit_length(halves.astype(np.float32))


def _chains(pairs_N2: np.ndarray) -> np.ndarray:
    """int64 [M, 2]: each text of a group with the one before it."""
    places, labels = groups(pairs_N2)
    order = np.argsort(labels, kind="stable")
    same = labels[order[1:]] == labels[order[:-1]]
    return np.stack([places[order[:-1]][same], places[order[1:]][same]], axis=1)
