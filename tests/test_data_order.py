"""The order of prompts: a pure function of the step, every prompt once a pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.data.order import PromptOrder


def test_unshuffled_batches_run_across_passes() -> None:
    order = PromptOrder(5, 2, seed=0, shuffle=False)
    assert [order.batch(step) for step in range(5)] == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]


def test_a_batch_may_be_larger_than_a_pass() -> None:
    assert PromptOrder(2, 5, seed=0, shuffle=False).batch(1) == [1, 0, 1, 0, 1]


@given(num=st.integers(1, 60), batch=st.integers(1, 40), seed=st.integers(0, 2**32), shuffle=st.booleans())
def test_each_prompt_once_a_pass(num: int, batch: int, seed: int, shuffle: bool) -> None:
    order = PromptOrder(num, batch, seed, shuffle)
    steps = -(-3 * num // batch)
    stream = [index for step in range(steps) for index in order.batch(step)]
    for start in range(0, 3 * num, num):
        assert sorted(stream[start : start + num]) == list(range(num))


def test_a_step_needs_no_history() -> None:
    """What step 37 trains on doesn't depend on which steps were asked for before (that is what resuming does)."""
    order = PromptOrder(100, 8, seed=3)
    forward = [order.batch(step) for step in range(40)]
    again = PromptOrder(100, 8, seed=3)
    assert again.batch(37) == forward[37]
    assert again.batch(2) == forward[2]


def test_passes_and_seeds_differ() -> None:
    one = PromptOrder(50, 50, seed=1)
    assert one.batch(0) != one.batch(1)
    assert one.batch(0) != PromptOrder(50, 50, seed=2).batch(0)


def test_the_order_is_the_same_for_ever() -> None:
    """Fixed numbers: a changed order would break the resuming of runs that are under way."""
    assert PromptOrder(8, 8, seed=0).batch(0) == [3, 2, 1, 6, 0, 7, 4, 5]


def test_nonsense_is_refused() -> None:
    for num, batch, seed in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ValueError):
            PromptOrder(num, batch, seed)
    with pytest.raises(ValueError):
        PromptOrder(1, 1, 0).batch(-1)
