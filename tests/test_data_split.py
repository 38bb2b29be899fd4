"""The held-out split: stable, disjoint, and duplicates together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.data.split import check_disjoint, choose, conversation_key, split_heldout
from rayrl.errors import UserError
from rayrl.types import Message, PromptRow


def row(name: str, text: str | None = None, system: str | None = None) -> PromptRow:
    messages: list[Message] = [{"role": "user", "content": text if text is not None else f"question {name}"}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return PromptRow(name, messages)


ROWS = [row(f"p{n}") for n in range(2000)]


def test_about_the_fraction_is_held_out_and_every_row_is_somewhere() -> None:
    train, heldout = split_heldout(ROWS, 0.25)
    assert 430 < len(heldout) < 570  # 500 expected, standard deviation 19
    assert sorted(r.id for r in train + heldout) == sorted(r.id for r in ROWS)
    assert [r.id for r in train] == [r.id for r in ROWS if r in train]  # the order stays


def test_sides_depend_on_the_id_alone() -> None:
    _, heldout = split_heldout(ROWS, 0.25)
    _, reversed_heldout = split_heldout(ROWS[::-1], 0.25)
    assert {r.id for r in heldout} == {r.id for r in reversed_heldout}
    _, of_half = split_heldout(ROWS[:1000], 0.25)
    assert {r.id for r in of_half} == {r.id for r in heldout} & {r.id for r in ROWS[:1000]}
    _, larger = split_heldout(ROWS, 0.5)
    assert {r.id for r in heldout} < {r.id for r in larger}


@given(
    st.lists(st.sampled_from(["My knee  hurts", "my knee\nhurts ", "ＭＹ knee hurts", "other", "third"]), min_size=20)
)
def test_duplicates_stay_on_one_side(texts: list[str]) -> None:
    rows = [row(f"id{n}", text) for n, text in enumerate(texts)] + ROWS[:50]
    train, heldout = split_heldout(rows, 0.5)
    assert not {conversation_key(r) for r in train} & {conversation_key(r) for r in heldout}


def test_what_makes_two_conversations_the_same() -> None:
    assert conversation_key(row("a", "My knee  hurts")) == conversation_key(row("b", "ＭＹ knee\nhurts ", system="S"))
    assert conversation_key(row("a", "x y")) != conversation_key(row("a", "xy"))
    turns: list[Message] = [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]
    assert conversation_key(PromptRow("a", turns)) != conversation_key(row("a", "x user:y"))


def test_a_side_without_prompts_is_an_error() -> None:
    with pytest.raises(UserError, match="leaves no held-out prompt"):
        split_heldout(ROWS[:1], 1e-9)
    with pytest.raises(UserError, match="leaves no training prompt"):
        split_heldout(ROWS[:1], 1 - 1e-9)


def test_held_out_prompts_that_are_trained_on_are_named() -> None:
    check_disjoint(*split_heldout(ROWS, 0.25))
    with pytest.raises(UserError, match=r"1 held-out prompts are also training prompts.*'b' is 'a'"):
        check_disjoint([row("a", "Same")], [row("b", "same"), row("c")])


def test_choose_is_stable_and_independent_of_order() -> None:
    chosen = choose(ROWS, 100)
    assert len({r.id for r in chosen}) == 100
    assert choose(ROWS[::-1], 100) == chosen
    assert choose(ROWS, 50) == chosen[:50]
    assert len(choose(ROWS[:10], 100)) == 10
    # A spread sample, not the first rows: about half of it from each half.
    assert 30 < sum(int(r.id[1:]) < 1000 for r in chosen) < 70
