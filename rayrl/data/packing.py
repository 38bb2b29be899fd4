"""Examples into rows of at most so many tokens, and rows into optimizer steps: the whole plan of a supervised run.

Best fit, longest first, inside windows of the shuffled order, so that rows are full and neighbours in a row are still
random (best-fit packing after Ding et al. 2024, arXiv 2404.10830). Rows left over at an epoch's end are steps of their
own epoch's order: the last step of a run may be smaller, and no example is lost.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayrl.data.mixing import epoch_examples

WINDOW = 1024
"""Examples that are packed together."""

Row = list[int]
"""Examples of one row."""


def pack(lengths: Sequence[int], capacity: int) -> list[Row]:
    """Positions of `lengths` in rows whose lengths sum to at most `capacity`; rows in the order of their first example.

    Raises ValueError where one example alone is longer. Example: ([5, 4, 3, 2], 7) -> [[0, 3], [1, 2]]
    """
    if len(lengths) and max(lengths) > capacity:
        raise ValueError(f"an example of {max(lengths)} tokens doesn't fit a row of {capacity}")
    rows: list[Row] = []
    open_rows: list[tuple[int, int]] = []
    """(tokens free, row), sorted."""
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(open_rows, (lengths[i], -1))
        if place < len(open_rows):
            free, row = open_rows.pop(place)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(i)
        bisect.insort(open_rows, (free - lengths[i], row))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


@dataclass(frozen=True)
class Plan:
    """Every row of a run, in order, and the size of its steps."""

    rows: list[Row]
    batch_size: int
    steps_per_epoch: int
    """Of the first epoch; others differ by a row or two."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-len(self.rows) // self.batch_size)

    def step(self, step: int) -> list[Row]:
        """Rows of optimizer step `step`, from 0; the last may have fewer than `batch_size`."""
        return self.rows[step * self.batch_size : (step + 1) * self.batch_size]


def make_plan(
    lengths: np.ndarray,
    sizes: Sequence[int],
    weights: Sequence[float],
    *,
    epochs: float,
    batch_size: int,
    row_tokens: int | None,
    seed: int,
    max_steps: int | None = None,
) -> Plan:
    """The plan of a run over sources of `sizes` examples. `row_tokens` None: one example a row."""
    rows: list[Row] = []
    per_epoch = 0
    whole, part = int(epochs), epochs % 1
    for epoch in range(whole + (part > 0)):
        order = epoch_examples(sizes, weights, seed, epoch)
        if epoch == whole:
            order = order[: round(len(order) * part)]
        rows += _rows(order, lengths, row_tokens)
        if epoch == 0:
            per_epoch = -(-len(rows) // batch_size)
        if max_steps is not None and len(rows) >= max_steps * batch_size:
            rows = rows[: max_steps * batch_size]
            break
    return Plan(rows, batch_size, per_epoch)


def plan_in_order(
    order: np.ndarray, lengths: np.ndarray, *, batch_size: int, row_tokens: int | None, max_steps: int | None = None
) -> Plan:
    """The plan of a run over examples in a given order; `order`: int64 [E], examples may occur several times."""
    rows = _rows(order, lengths, row_tokens)
    if max_steps is not None:
        rows = rows[: max_steps * batch_size]
    return Plan(rows, batch_size, -(-len(rows) // batch_size))


def _rows(order: np.ndarray, lengths: np.ndarray, row_tokens: int | None) -> list[Row]:
    if row_tokens is None:
        return [[int(i)] for i in order]
    rows: list[Row] = []
    for begin in range(0, len(order), WINDOW):
        window = order[begin : begin + WINDOW]
        packed = pack(lengths[window].tolist(), row_tokens)
        rows += [[int(window[i]) for i in row] for row in packed]
    return rows
