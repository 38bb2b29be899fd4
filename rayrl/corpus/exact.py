"""Exact duplicates among any number of texts, by parts of their keys: each part in memory alone.

Which row of a group is kept: the first, in the order of files and lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayrl.corpus.shards import read_batches

ROWS_A_PART = 4_000_000
LINKS = pa.schema([("shard", pa.int32()), ("row", pa.int32()), ("kept_shard", pa.int32()), ("kept_row", pa.int32())])
"""A row that goes, and the row that stays in its place: the shard's number in the list of shards, the row in it."""


def repeated(shards: Sequence[str], part: int, parts: int) -> pa.Table:
    """LINKS of all rows whose key came before, among the keys of one part."""
    keys = [np.empty((0, 2), dtype=np.uint64)]
    places = [np.empty((0, 2), dtype=np.int32)]
    for number, uri in enumerate(shards):
        row = 0
        for table in read_batches(uri, ["key"], max_rows=1 << 20):
            found = _as_numbers(table["key"])
            mine = np.flatnonzero(found[:, 0] % np.uint64(parts) == part)
            keys.append(found[mine])
            places.append(np.stack([np.full(len(mine), number), mine + row], axis=1).astype(np.int32))
            row += len(found)
    key_N2, place_N2 = np.concatenate(keys), np.concatenate(places)
    order = np.lexsort((key_N2[:, 1], key_N2[:, 0]))  # stable: the first of a group stays first
    key_N2, place_N2 = key_N2[order], place_N2[order]
    first = np.ones(len(key_N2), dtype=bool)
    first[1:] = (key_N2[1:] != key_N2[:-1]).any(axis=1)
    kept = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    gone = np.flatnonzero(~first)
    gone = gone[np.lexsort((place_N2[gone, 1], place_N2[gone, 0]))]
    columns = [*place_N2[gone].T, *place_N2[kept[gone]].T]
    return pa.table([pa.array(column, pa.int32()) for column in columns], schema=LINKS)


def _as_numbers(keys: pa.ChunkedArray) -> np.ndarray:
    """uint64 [N, 2] of 16-byte keys."""
    raw = keys.combine_chunks()
    at = raw.offset * 16
    return np.frombuffer(raw.buffers()[1], dtype=np.uint64)[at // 8 : at // 8 + 2 * len(raw)].reshape(-1, 2)
