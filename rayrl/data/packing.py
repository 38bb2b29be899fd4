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
    """Every row of a run, in order, and the size of its steps. Flat, since a run may have millions of examples."""

    examples: np.ndarray
    """int64 [E]: the rows' examples, end to end."""
    begins: np.ndarray
    """int64 [rows + 1]: where each row begins."""
    batch_size: int
    steps_per_epoch: int
    """Of the first epoch; others differ by a row or two."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-self.num_rows // self.batch_size)

    @property
    def num_rows(self) -> int:
        """Rows of the run."""
        return len(self.begins) - 1

    def rows(self, start: int = 0, end: int | None = None) -> list[Row]:
        """The rows from `start` to before `end`."""
        end = self.num_rows if end is None else min(end, self.num_rows)
        return [self.examples[self.begins[i] : self.begins[i + 1]].tolist() for i in range(start, end)]

    def step(self, step: int) -> list[Row]:
        """Rows of optimizer step `step`, from 0; the last may have fewer than `batch_size`."""
        return self.rows(step * self.batch_size, (step + 1) * self.batch_size)


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
    parts: list[Rows] = []
    whole, part = int(epochs), epochs % 1
    for epoch in range(whole + (part > 0)):
        order = epoch_examples(sizes, weights, seed, epoch)
        if epoch == whole:
            order = order[: round(len(order) * part)]
        parts.append(_rows(order, lengths, row_tokens))
        if max_steps is not None and sum(len(sizes) for _, sizes in parts) >= max_steps * batch_size:
            break
    return _plan(parts, batch_size, max_steps)


def plan_in_order(
    order: np.ndarray, lengths: np.ndarray, *, batch_size: int, row_tokens: int | None, max_steps: int | None = None
) -> Plan:
    """The plan of a run over examples in a given order; `order`: int64 [E], examples may occur several times."""
    return _plan([_rows(order, lengths, row_tokens)], batch_size, max_steps)


Rows = tuple[np.ndarray, np.ndarray]
"""(examples int64 [E], how many of them each row has int64 [rows])."""


def _rows(order: np.ndarray, lengths: np.ndarray, row_tokens: int | None) -> Rows:
    if row_tokens is None:
        return order, np.ones(len(order), dtype=np.int64)
    examples, sizes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for begin in range(0, len(order), WINDOW):
        window = order[begin : begin + WINDOW]
        packed = pack(lengths[window].tolist(), row_tokens)
        examples.append(window[[i for row in packed for i in row]])
        sizes.append(np.array([len(row) for row in packed], dtype=np.int64))
    return np.concatenate(examples), np.concatenate(sizes)


def _plan(parts: Sequence[Rows], batch_size: int, max_steps: int | None) -> Plan:
    """The plan of epochs, up to `max_steps`."""
    sizes = np.concatenate([np.empty(0, dtype=np.int64), *(sizes for _, sizes in parts)])
    if max_steps is not None:
        sizes = sizes[: max_steps * batch_size]
    begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    examples = np.concatenate([np.empty(0, dtype=np.int64), *(order for order, _ in parts)])[: begins[-1]]
    first = len(parts[0][1]) if parts else 0
    return Plan(examples, begins, batch_size, -(-min(first, len(sizes)) // batch_size))
