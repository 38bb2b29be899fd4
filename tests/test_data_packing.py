"""Packing, mixing and the plan of a run: by hand, and that nothing is lost or doubled."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.data.mixing import epoch_examples
from rayrl.data.packing import Plan, make_plan, pack


def test_packing_by_hand() -> None:
    """Longest first: 5 opens a row (2 free), 4 another (3 free), 3 fits the second exactly, 2 the first."""
    assert pack([5, 4, 3, 2], 7) == [[0, 3], [1, 2]]
    assert pack([3, 3, 3], 6) == [[0, 1], [2]]
    assert pack([], 6) == []


def test_the_fullest_row_that_fits_is_taken() -> None:
    """6 and 5 leave 4 and 5 free; 4 goes to the row it fills, so that 5 finds room."""
    assert pack([6, 5, 5, 4], 10) == [[0, 3], [1, 2]]


def test_an_example_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="an example of 8 tokens doesn't fit a row of 7"):
        pack([3, 8], 7)


@given(st.lists(st.integers(1, 50), max_size=80))
def test_packing_loses_nothing_and_overfills_nothing(lengths: list[int]) -> None:
    rows = pack(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)
    half_empty = [row for row in rows if sum(lengths[i] for i in row) <= 25]
    assert len(half_empty) <= 1  # two of them would have been one


def test_weights_are_passes_an_epoch() -> None:
    """Sources of 4, 3 and 2 examples with weights 1, 2 and 0.5."""
    counts = Counter(epoch_examples([4, 3, 2], [1, 2, 0.5], seed=1, epoch=0).tolist())
    assert [counts[i] for i in range(7)] == [1, 1, 1, 1, 2, 2, 2]
    assert sorted([counts[7], counts[8]]) == [0, 1]


def test_what_an_epoch_leaves_out_comes_in_the_next() -> None:
    first, second = (epoch_examples([5], [0.4], seed=3, epoch=epoch).tolist() for epoch in (0, 1))
    assert len(first) == len(second) == 2
    assert not set(first) & set(second)


@given(st.integers(1, 30), st.floats(0.05, 3.0), st.integers(1, 6))
def test_over_epochs_no_example_is_ahead_by_more_than_one(size: int, weight: float, epochs: int) -> None:
    drawn = Counter(i for epoch in range(epochs) for i in epoch_examples([size], [weight], 0, epoch).tolist())
    counts = [drawn[i] for i in range(size)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == round(size * weight * epochs)


def test_order_follows_seed_and_epoch() -> None:
    order = epoch_examples([40, 20], [1, 1], seed=0, epoch=0)
    assert order.tolist() == epoch_examples([40, 20], [1, 1], seed=0, epoch=0).tolist()
    assert order.tolist() != epoch_examples([40, 20], [1, 1], seed=1, epoch=0).tolist()
    assert order.tolist() != epoch_examples([40, 20], [1, 1], seed=0, epoch=1).tolist()
    assert any(a < 40 <= b for a, b in zip(order[:30], order[30:], strict=True))  # sources are mixed


def plan(**keys: Any) -> Plan:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "row_tokens": 10, "seed": 0, **keys}
    return make_plan(np.array([4, 6, 3, 7, 5, 5, 10]), [5, 2], [1, 1], **settings)


def test_a_plan_holds_every_example_once_an_epoch() -> None:
    whole = plan()
    assert Counter(i for row in whole.rows() for i in row) == dict.fromkeys(range(7), 2)
    assert whole.num_rows == 8
    assert whole.steps == 2 and whole.steps_per_epoch == 1


def test_steps_of_a_plan() -> None:
    """One example a row: 14 rows of two epochs in steps of 4 leave 2 for the last."""
    single = plan(row_tokens=None)
    assert single.steps == 4
    assert [len(single.step(i)) for i in range(4)] == [4, 4, 4, 2]
    assert [row for i in range(4) for row in single.step(i)] == single.rows()


def test_half_an_epoch_and_a_limit_of_steps() -> None:
    assert plan(row_tokens=None, epochs=1.5).num_rows == 7 + 4
    assert plan(row_tokens=None, max_steps=2).num_rows == 8
    assert plan(row_tokens=None, max_steps=2).rows() == plan(row_tokens=None).rows(0, 8)
