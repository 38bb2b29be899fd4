"""Numbers of answers to questions: shares, asking where something is missing, categories, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.evaluation.answers import Answer
from rayrl.evaluation.numbers import Number
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.question_numbers import (
    ASKS_NEEDED,
    ASKS_NOT_NEEDED,
    Answered,
    categories_of,
    match_numbers,
    metric_numbers,
)
from rayrl.evaluation.statistics import mean_interval, proportion_interval
from rayrl.types import PromptRow

ASKING, TELLING = "How long have you had the pain?", "Rest it for a week."


def answered(
    item: int,
    text: str | None,
    model: str = "sft",
    *,
    ended: bool | None = None,
    category: str = "",
    reference: str | None = None,
    **fields: Any,
) -> Answered:
    row = PromptRow(f"q{item}", [{"role": "user", "content": f"My knee {item} hurts."}], reference, fields)
    return Answered("heldout", row, category, model, Answer(f"k{item}", text, ended=ended))


def numbers_of(records: Sequence[Answered], models: Sequence[str] = ("sft",)) -> dict[tuple[str, str, str], Number]:
    numbers = list(metric_numbers("heldout", records, models, "words", "en", 0, 50))
    found = {(number.split, number.model, number.measure): number for number in numbers}
    assert len(found) == len(numbers) and {number.set for number in numbers} == {"heldout"}
    return found


def test_shares_of_answered_and_ended() -> None:
    """Four of five are answered; of three it is known whether they ended, and two did."""
    records = [answered(i, TELLING, ended=ended) for i, ended in enumerate((True, False, True, None))]
    found = numbers_of([*records, answered(4, None)])
    share = found["all", "sft", "answered"]
    assert share == Number.of("metrics", "heldout", "all", "sft", "answered", proportion_interval(4, 5), "share")
    ended = found["all", "sft", "ended"]
    assert (ended.mean, ended.n, ended.unit) == (pytest.approx(2 / 3), 3, "share")
    assert found["all", "sft", "asks"].n == 4
    assert ("all", "sft", "ended") not in numbers_of([answered(0, TELLING)])


def test_a_model_that_answered_nothing_says_so_alone() -> None:
    found = numbers_of([answered(0, None), answered(1, None), answered(0, TELLING, "ppo")], ["sft", "ppo"])
    assert [key[2] for key in found if key[1] == "sft"] == ["answered"]
    assert found["all", "sft", "answered"].mean == 0.0 and found["all", "ppo", "answered"].mean == 1.0
    assert not any("against" in model for _, model, _ in found)


def test_an_empty_answer_is_an_answer() -> None:
    found = numbers_of([answered(0, ""), answered(1, TELLING)])
    assert found["all", "sft", "answered"].mean == 1.0 and found["all", "sft", "length-characters"].mean == 7.5


def test_asking_where_something_is_missing_and_where_nothing_is() -> None:
    """Missing: three of four ask. Nothing missing: one of three. Two rows don't say, and one isn't a list."""
    records = [answered(i, ASKING if i < 3 else TELLING, missing_info=["duration"]) for i in range(4)]
    records += [answered(i, ASKING if i == 4 else TELLING, missing_info=[]) for i in range(4, 7)]
    records += [answered(7, ASKING), answered(8, TELLING), answered(9, ASKING, missing_info=None)]
    found = numbers_of(records)
    for measure, asking, n in ((ASKS_NEEDED, 3, 4), (ASKS_NOT_NEEDED, 1, 3), ("asks", 6, 10)):
        expected = Number.of("metrics", "heldout", "all", "sft", measure, proportion_interval(asking, n), "share")
        assert found["all", "sft", measure] == expected, measure


def test_rows_that_say_nothing_about_what_is_missing_have_no_such_share() -> None:
    found = numbers_of([answered(0, ASKING), answered(1, TELLING)])
    assert not {ASKS_NEEDED, ASKS_NOT_NEEDED} & {measure for *_, measure in found}
    found = numbers_of([answered(0, ASKING, missing_info=[])])
    assert found["all", "sft", ASKS_NOT_NEEDED].mean == 1.0 and ("all", "sft", ASKS_NEEDED) not in found


def test_metrics_against_references_and_their_units() -> None:
    same = "Rest the knee for one whole week."
    found = numbers_of([answered(i, same, reference=same) for i in range(3)] + [answered(3, "Drink tea.")])
    assert found["all", "sft", "rouge-l"].mean == 1.0 and found["all", "sft", "rouge-l"].n == 3
    assert found["all", "sft", "without-reference"].mean == 1
    units = {measure: number.unit for (_, _, measure), number in found.items()}
    assert (units["rouge-l"], units["length"], units["without-reference"], units["asks"]) == (
        "score", "number", "number", "share",
    )  # fmt: skip


def test_differences_are_paired_over_what_both_answered() -> None:
    """ppo asks in q0, q1, q2 and sft in q0 alone, of four that both answered: differences 0 1 1 0; q4 and q5 don't
    count. Lengths without spaces: 25 asking, 15 telling, so 0 10 10 0.
    """
    sft = [answered(i, ASKING if i == 0 else TELLING, missing_info=["x"] if i < 2 else []) for i in range(4)]
    ppo = [answered(i, ASKING if i < 3 else TELLING, "ppo", missing_info=["x"] if i < 2 else []) for i in range(4)]
    lone = [answered(4, ASKING), answered(4, None, "ppo"), answered(5, ASKING, "ppo")]
    found = numbers_of([*sft, *ppo, *lone], ["sft", "ppo"])
    told = {measure: number for (_, model, measure), number in found.items() if model == "ppo against sft"}
    assert {number.section for number in told.values()} == {"differences"}
    for measure, values, unit in (
        ("asks", [0, 1, 1, 0], "points"),
        (ASKS_NEEDED, [0, 1], "points"),
        (ASKS_NOT_NEEDED, [1, 0], "points"),
        ("length-characters", [0, 10, 10, 0], "number"),
    ):
        estimate = mean_interval(values)
        number = told.pop(measure)
        if unit == "points":  # of shares: Newcombe's, which isn't the mean's
            assert number.low is not None and number.high is not None
            assert (number.mean, number.n, number.unit) == (estimate.mean, len(values), unit)
            assert -1 <= number.low < number.mean < number.high <= 1
            continue
        assert (number.mean, number.low, number.high, number.n, number.unit) == (
            estimate.mean, estimate.low, estimate.high, len(values), unit,
        )  # fmt: skip
    assert told == {}


def test_every_later_model_is_told_against_the_first() -> None:
    records = [answered(i, TELLING, model) for model in ("c", "b", "a") for i in range(2)]
    found = numbers_of(records, ["b", "a", "c"])
    pairs = {model for _, model, _ in found if "against" in model}
    assert pairs == {"a against b", "c against b"}


def test_models_that_share_no_question_have_no_difference() -> None:
    found = numbers_of([answered(0, TELLING), answered(1, TELLING, "ppo")], ["sft", "ppo"])
    assert not any("against" in model for _, model, _ in found)


def test_categories_have_the_few_metrics_that_are_shown_by_category() -> None:
    records = [
        answered(i, ASKING if i < 3 else TELLING, category="ENT" if i < 3 else "眼科", reference=TELLING)
        for i in range(6)
    ]
    found = numbers_of(records)
    by_category = {(split, measure): number.mean for (split, _, measure), number in found.items() if split != "all"}
    assert {split for split, _ in by_category} == {"category: ENT", "category: 眼科"}
    assert {measure for _, measure in by_category} == {"rouge-l", "asks", "length"}
    assert by_category["category: ENT", "asks"] == 1.0 and by_category["category: 眼科", "rouge-l"] == 1.0


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (["b"] * 3 + ["a"] * 3, ["a", "b"]),
        (["b"] * 5 + ["a"], ["a", "b"]),
        (["b"] * 4 + ["a"], []),  # 2.5 on average
        (["a"] * 100, []),
        (["a"] * 100 + [""] * 50, []),
        (["a", "b", "", "", "", ""], []),
        (["a", "b"] * 3 + [""] * 9, ["a", "b"]),
        ([], []),
    ],
)
def test_categories_that_are_told_apart(values: list[str], categories: list[str]) -> None:
    assert categories_of(values) == categories
    assert categories_of(iter(reversed(values))) == categories


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_the_parts_of_asking_make_the_whole(asking: list[bool]) -> None:
    records = [
        answered(i, ASKING if asks else TELLING, missing_info=["x"] if i % 3 else []) for i, asks in enumerate(asking)
    ]
    numbers = [n for n in metric_numbers("heldout", records, ["sft"], "words", "en", 0, 2) if n.split == "all"]
    found = {number.measure: number.mean * number.n for number in numbers if number.measure.startswith("asks")}
    assert found["asks"] == pytest.approx(sum(asking))
    assert found["asks"] == pytest.approx(found.get(ASKS_NEEDED, 0) + found.get(ASKS_NOT_NEEDED, 0))


def test_what_has_no_outcome_is_counted_beside_the_rate_or_alone() -> None:
    def match(item: int, outcome: Any, reason: str | None = None) -> Match:
        return Match("heldout", str(item), "", "sft", "ppo", outcome, reason=reason)

    def told(matches: Sequence[Match]) -> dict[str, tuple[float, int]]:
        return {n.measure: (n.mean, n.n) for n in match_numbers("pairwise", matches, ["sft", "ppo"], 0, 10)}

    assert told([match(0, None, "dead"), match(1, None, "dead")]) == {"without outcome": (2, 0)}
    found = told([match(0, "b"), match(1, "tie"), match(2, None, "dead")])
    assert found == {
        "wins": (0.5, 2), "ties": (0.5, 2), "losses": (0.0, 2), "win rate": (0.75, 2), "p (sign test)": (1.0, 2),
        "without outcome": (1, 2),
    }  # fmt: skip
    assert told([]) == {}
