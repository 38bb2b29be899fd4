"""Pairs of like texts to groups, and which text of a group stays.

The best of a group stays: the one with the highest quality (in hundredths), then the longest, then the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayrl.corpus.exact import LINKS
from rayrl.corpus.shards import read_batches


def groups(pairs_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places int64 [M] that occur, in order; the group of each int64 [M]): connected components."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places, inverse = np.unique(pairs_N2, return_inverse=True)
    left, right = inverse.reshape(-1, 2).T
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(len(places), len(places)))
    _, labels = connected_components(graph, directed=False)
    return places, np.asarray(labels, dtype=np.int64)


def links(pairs_N2: np.ndarray, sketch_files: Sequence[str]) -> tuple[pa.Table, Counter[str]]:
    """LINKS of all texts that go, and how many groups there are of each size."""
    if not len(pairs_N2):
        return LINKS.empty_table(), Counter()
    places, labels = groups(pairs_N2)
    quality, chars = _measures(places, sketch_files)
    order = np.lexsort((places, -chars, -np.round(quality * 100), labels))  # the last key is the first
    sorted_labels = labels[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = sorted_labels[1:] != sorted_labels[:-1]
    best = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    gone, kept = places[order[~first]], places[best[~first]]
    by_place = np.argsort(gone)
    columns = [side[by_place] for side in (gone >> 32, gone & 0xFFFFFFFF, kept >> 32, kept & 0xFFFFFFFF)]
    sizes = Counter(
        f"groups of {size}" if size < 10 else "groups of 10 or more" for size in np.bincount(labels).tolist()
    )
    return pa.table([pa.array(column, pa.int32()) for column in columns], schema=LINKS), sizes


def _measures(places: np.ndarray, sketch_files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(quality, characters) of texts; quality 0 where it wasn't measured."""
    quality, chars = np.zeros(len(places)), np.zeros(len(places), dtype=np.int64)
    for shard, uri in enumerate(sketch_files):
        mine = np.flatnonzero(places >> 32 == shard)
        if not len(mine):
            continue
        tables = list(read_batches(uri, ["quality", "chars"], max_rows=1 << 20))
        table = pa.concat_tables(tables).take(places[mine] & 0xFFFFFFFF)
        quality[mine] = table["quality"].fill_null(0.0).to_numpy()
        chars[mine] = table["chars"].to_numpy()
    return quality, chars
