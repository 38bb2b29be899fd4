"""A rank's share of a batch: order, round trips, equal numbers of micro-batches, and the schedule over them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import make_rollout

from rayrl.learners.schedule import minibatch_schedule
from rayrl.learners.shard import Shard, accumulation_steps

lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=12)


def make_shard(rows: list[tuple[int, int]], num_micro_batches: int) -> Shard:
    rollouts = [make_rollout([1] * p, list(range(10 * i + 1, 10 * i + 1 + t))) for i, (p, t) in enumerate(rows)]
    return Shard(rollouts, num_micro_batches, 0, torch.device("cpu"))


@given(lengths, st.data())
def test_rows_is_the_inverse_of_tokens_in_the_rollouts_own_order(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    shard = make_shard(rows, data.draw(st.integers(1, len(rows))))
    values = [np.arange(t, dtype=np.float32) + 100 * i for i, (_, t) in enumerate(rows)]
    tensors = shard.tokens(values)
    assert [tuple(x.shape) for x in tensors] == [tuple(b.mask_BT.shape) for b in shard.batches]
    assert [row.tolist() for row in shard.rows(tensors)] == [row.tolist() for row in values]
    assert shard.num_tokens == sum(int(batch.mask_BT.sum()) for batch in shard.batches)


@given(lengths, st.data())
def test_scalars_and_tokens_stay_with_their_own_rollout(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    shard = make_shard(rows, data.draw(st.integers(1, len(rows))))
    for batch, numbers in zip(shard.batches, shard.scalars(range(len(rows))), strict=True):
        assert ((batch.response_ids_BT[:, 0] - 1) // 10).tolist() == numbers.int().tolist()


@given(lengths, st.data())
def test_micro_batches_are_as_many_as_asked_and_sorted_by_length(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(rows)))
    shard = make_shard(rows, count)
    assert len(shard.batches) == count
    sizes = [len(batch.mask_BT) for batch in shard.batches]
    assert sum(sizes) == len(rows) and max(sizes) - min(sizes) <= 1
    widths = [batch.ids_BL.shape[1] for batch in shard.batches]
    assert widths == sorted(widths)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))
def test_accumulation_never_exceeds_the_micro_batch_size(per_minibatch: int, minibatches: int, size: int) -> None:
    """Config makes sure that minibatches divide a rank's rows."""
    rows = per_minibatch * minibatches
    steps = accumulation_steps(rows, minibatches, size)
    largest = -(-rows // (steps * minibatches))
    assert largest <= size
    assert steps == 1 or -(-rows // ((steps - 1) * minibatches)) > size  # and no more passes than needed


def test_accumulation_worked_by_hand() -> None:
    assert accumulation_steps(16, 2, 4) == 2
    assert accumulation_steps(6, 2, 2) == 2  # 3 rows a minibatch, 2 at a time
    assert accumulation_steps(4, 4, 8) == 1


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
def test_each_epoch_uses_each_micro_batch_once(per: int, minibatches: int, epochs: int, seed: int, step: int) -> None:
    count = per * minibatches
    schedule = list(minibatch_schedule(count, epochs, minibatches, seed, step))
    assert [len(part) for part in schedule] == [per] * (epochs * minibatches)
    for epoch in range(epochs):
        part = schedule[epoch * minibatches : (epoch + 1) * minibatches]
        assert sorted(i for indices in part for i in indices) == list(range(count))
    assert schedule == list(minibatch_schedule(count, epochs, minibatches, seed, step))
