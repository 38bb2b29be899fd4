"""Near-duplicates among any number of texts: MinHash sketches, pairs that share a band of them, and their estimate.

Each text has a signature of 256 hashes (rensa's R-MinHash). Two texts of Jaccard similarity J share a band of 4 hashes
with probability J^4, and one of 64 bands with 1 - (1 - J^4)^64: 0.98 at J = 0.5, 0.0004 at J = 0.05. Pairs so found are
kept where the share of equal hashes, an estimate of J with a standard deviation of 0.03, reaches the threshold. A
signature is kept in a byte a hash, which two different hashes share once in 256; the estimate takes that into account.

Every part works by shards: sketches a shard each; candidates some bands each; estimates a shard each. No process ever
holds all texts, all signatures or all keys, but for one band's and their order (about 30 bytes a text) with the pairs
found so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.corpus.shards import read_batches
from rayrl.corpus.shingles import flat, mixed, shingles
from rayrl.data.storage import Place

NUM_HASHES = 256
BANDS = 64
_ROWS_A_BAND = NUM_HASHES // BANDS
_SEED = 1
SKETCH = pa.schema(
    [
        ("chars", pa.int32()),
        ("quality", pa.float32()),
        ("signature", pa.binary(NUM_HASHES)),
        *((f"band{band}", pa.uint32()) for band in range(BANDS)),
    ]
)
PAIRS = pa.schema([("a", pa.int64()), ("b", pa.int64())])
"""Two texts by place(shard, row), a < b."""
HALF_PAIRS = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("signature", pa.binary(NUM_HASHES))])
"""Candidates with the signature of `a`."""


def place_of(shard: int, rows: np.ndarray) -> np.ndarray:
    """int64 [N]: a text's number in the corpus, in the order of shards and rows."""
    return (np.int64(shard) << np.int64(32)) + rows.astype(np.int64)


def sketches(table: pa.Table) -> pa.Table:
    """A row of SKETCH for each text."""
    found = [shingles(*pair) for pair in zip(table["text"].to_pylist(), table["language"].to_pylist(), strict=True)]
    digests_NH = signatures(found)
    empty = np.array([not len(one) for one in found], dtype=bool)
    columns = [
        pa.array([len(text) for text in table["text"].to_pylist()], pa.int32()),
        table["quality"].combine_chunks(),
        fixed_binary((digests_NH & np.uint32(0xFF)).astype(np.uint8)),
    ]
    for band in range(BANDS):
        hashes_NR = digests_NH[:, band * _ROWS_A_BAND : (band + 1) * _ROWS_A_BAND].astype(np.uint64)
        key = np.zeros(len(hashes_NR), dtype=np.uint64)
        for row in range(_ROWS_A_BAND):
            key = mixed(key + hashes_NR[:, row] + np.uint64(1))
        columns.append(pa.array((key >> np.uint64(32)).astype(np.uint32), pa.uint32(), mask=empty))
    return pa.table(columns, schema=SKETCH)


def signatures(sets: Sequence[np.ndarray]) -> np.ndarray:
    """uint32 [N, NUM_HASHES] of sets of hashes."""
    from rensa import RMinHash

    hashes, offsets = flat(sets)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, num_perm=NUM_HASHES, seed=_SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(sets), NUM_HASHES)


def candidates(sketch_files: Sequence[str], band: int) -> pa.Table:
    """PAIRS of texts with equal keys in a band: each with the group's first, and with the one before it."""
    keys, places = [], []
    for shard, uri in enumerate(sketch_files):
        start = 0
        for table in read_batches(uri, [f"band{band}"], max_rows=1 << 20):
            column = table[f"band{band}"]
            valid = np.flatnonzero(column.is_valid().to_numpy())
            keys.append(column.drop_null().to_numpy())
            places.append(place_of(shard, valid + start))
            start += table.num_rows
    key_N, place_N = np.concatenate([np.empty(0, np.uint32), *keys]), np.concatenate([np.empty(0, np.int64), *places])
    order = np.argsort(key_N, kind="stable")
    key_N, place_N = key_N[order], place_N[order]
    new = np.ones(len(key_N), dtype=bool)
    new[1:] = key_N[1:] != key_N[:-1]
    first = np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
    later = np.flatnonzero(~new)
    pairs = np.concatenate(
        [np.stack([place_N[first[later]], place_N[later]], 1), np.stack([place_N[later - 1], place_N[later]], 1)]
    )
    return pairs_table(pairs)


def with_signatures(pair_files: Sequence[str], sketch_file: str, shard: int) -> pa.Table:
    """HALF_PAIRS of the candidates whose `a` lies in a shard, in the order of `b`."""
    pairs = read_pairs(pair_files, "a", shard)
    signature = _signatures_of(sketch_file)[pairs[:, 0] & 0xFFFFFFFF]
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    pairs, signature = pairs[order], signature[order]
    return pa.table([*pairs.T, fixed_binary(signature)], schema=HALF_PAIRS)


def similar(half_files: Sequence[str], sketch_file: str, shard: int, threshold: float) -> pa.Table:
    """PAIRS whose `b` lies in a shard and whose estimated similarity reaches the threshold."""
    signature = _signatures_of(sketch_file)
    found = []
    for uri in half_files:
        table = _of_shard(uri, "b", shard)
        if table.num_rows:
            pairs = np.stack([table["a"].to_numpy(), table["b"].to_numpy()], axis=1)
            theirs = _as_bytes(table["signature"])
            found.append(pairs[estimate(theirs, signature[pairs[:, 1] & 0xFFFFFFFF]) >= threshold])
    return pairs_table(np.concatenate([np.empty((0, 2), np.int64), *found]))


def estimate(a_NH: np.ndarray, b_NH: np.ndarray) -> np.ndarray:
    """float64 [N]: Jaccard similarity by two signatures in bytes; equal by chance once in 256."""
    equal = (a_NH == b_NH).mean(axis=1)
    return np.asarray((equal - 1 / 256) / (1 - 1 / 256))


def pairs_table(pairs_N2: np.ndarray) -> pa.Table:
    """PAIRS, each once, in order."""
    unique = np.unique(pairs_N2, axis=0) if len(pairs_N2) else pairs_N2.reshape(0, 2)
    return pa.table([pa.array(unique[:, side], pa.int64()) for side in (0, 1)], schema=PAIRS)


def read_pairs(files: Sequence[str], side: str | None = None, shard: int = 0) -> np.ndarray:
    """int64 [N, 2]: pairs of all files, each once; of those alone whose `side` lies in a shard."""
    tables = [_of_shard(uri, side, shard) for uri in files]
    pairs = [np.stack([one["a"].to_numpy(), one["b"].to_numpy()], axis=1) for one in tables if one.num_rows]
    return np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), dtype=np.int64)


def fixed_binary(bytes_NH: np.ndarray) -> pa.Array:
    """uint8 [N, H] as N values of H bytes."""
    count, width = bytes_NH.shape
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), count, [None, pa.py_buffer(np.ascontiguousarray(bytes_NH).tobytes())]
    )


def _as_bytes(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    width = array.type.byte_width
    raw = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return raw[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def _signatures_of(sketch_file: str) -> np.ndarray:
    return np.concatenate(list(_signature_batches(sketch_file)))


def _signature_batches(sketch_file: str) -> Iterator[np.ndarray]:
    yield np.empty((0, NUM_HASHES), dtype=np.uint8)
    for table in read_batches(sketch_file, ["signature"], max_rows=1 << 20):
        yield _as_bytes(table["signature"])


def _of_shard(uri: str, side: str | None, shard: int) -> pa.Table:
    filters = None
    if side is not None:
        low = int(place_of(shard, np.zeros(1))[0])
        filters = [(side, ">=", low), (side, "<", low + (1 << 32))]
    with Place(uri).open() as stream:
        return pq.read_table(stream, filters=filters)
