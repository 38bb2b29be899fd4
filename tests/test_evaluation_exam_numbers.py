"""Exams' accuracy, what isn't matched or answered, groups of questions, parts and means over exams, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.evaluation.exams.numbers import MEANS, ExamAnswer, accuracy, exam_numbers
from rayrl.evaluation.numbers import Number
from rayrl.evaluation.statistics import Estimate, proportion_interval, wilson
from rayrl.types import ExamItem

OPTIONS = {"A": "ascorbic acid", "B": "retinol", "C": "biotin"}


def answer(
    item: int | str, chosen: str | None, set_name: str = "cmb", model: str = "sft", answered: bool = True, **more: Any
) -> ExamAnswer:
    """The right choice is always A."""
    return ExamAnswer(set_name, ExamItem(str(item), "Which?", OPTIONS, "A", **more), model, chosen, answered)


def some(right: int, n: int, set_name: str = "cmb", model: str = "sft", **more: Any) -> list[ExamAnswer]:
    return [answer(f"{set_name}-{i}", "A" if i < right else "B", set_name, model, **more) for i in range(n)]


def by_key(answers: list[ExamAnswer]) -> dict[tuple[str, str, str, str], Number]:
    numbers = [number for number in exam_numbers(answers, 0, 300) if number.section == "exams"]
    found = {(number.set, number.split, number.model, number.measure): number for number in numbers}
    assert len(found) == len(numbers)
    assert {(number.section, number.unit) for number in numbers} <= {("exams", "share")}
    return found


def test_only_exactly_the_right_letters_are_right() -> None:
    item = ExamItem("1", "Which?", OPTIONS, "AC", multiple=True)
    choices = {"AC": True, "A": False, "ABC": False, None: False}
    assert {chosen: ExamAnswer("cmb", item, "sft", chosen).right for chosen in choices} == choices


def test_accuracy_without_groups_is_wilson_s() -> None:
    assert accuracy(some(6, 8), 0, 100) == proportion_interval(6, 8)


def test_unmatched_and_unanswered_are_told_apart_and_both_are_wrong() -> None:
    """Of ten questions four are right, two wrong, three without a choice, one without an answer."""
    answers = [*some(4, 6), *(answer(f"x{i}", None) for i in range(3)), answer("y", None, answered=False)]
    numbers = by_key(answers)
    assert {key[-1]: number.mean for key, number in numbers.items()} == {
        "accuracy": 0.4,
        "unmatched": 0.3,
        "unanswered": 0.1,
        "accuracy of matched": pytest.approx(4 / 6),
    }
    assert {key[-1]: number.n for key, number in numbers.items()} == {
        "accuracy": 10, "unmatched": 10, "unanswered": 10, "accuracy of matched": 6,
    }  # fmt: skip


def test_where_all_are_matched_nothing_is_said_twice() -> None:
    assert {key[-1]: number.mean for key, number in by_key(some(4, 6)).items()} == {
        "accuracy": pytest.approx(4 / 6),
        "unmatched": 0.0,
    }


def test_where_nothing_is_matched_there_is_no_accuracy_of_matched() -> None:
    numbers = by_key([answer(1, None), answer(2, None, answered=False)])
    assert {key[-1] for key in numbers} == {"accuracy", "unmatched", "unanswered"}


def grouped(shares: list[tuple[int, int]], set_name: str = "cmb") -> list[ExamAnswer]:
    """A group for every (right, questions)."""
    return [
        answer(f"{set_name}-{g}-{i}", "A" if i < right else "B", set_name, group=f"g{g}")
        for g, (right, n) in enumerate(shares)
        for i in range(n)
    ]


def test_questions_of_a_group_count_as_one_draw() -> None:
    """Groups that are wholly right or wrong hold as much as one question each: Wilson's of 20, not of 100."""
    found = accuracy(grouped([(5, 5)] * 10 + [(0, 5)] * 10), 0, 2000)
    assert (found.mean, found.n) == (0.5, 100) and found.low is not None and found.high is not None
    low, high = wilson(0.5, 20)
    assert found.low == pytest.approx(low, abs=0.05) and found.high == pytest.approx(high, abs=0.05)
    alone = accuracy(some(50, 100), 0, 2000)
    assert alone.low is not None and found.low < alone.low - 0.1


def test_accuracy_weighs_groups_by_their_questions() -> None:
    """Four of a case of five and none of two single questions: 4 / 7, not the mean of 0.8, 0 and 0."""
    assert accuracy([*grouped([(4, 5)]), *some(0, 2, "other")], 0, 100).mean == pytest.approx(4 / 7)


@pytest.mark.parametrize(("shares", "mean"), [([(3, 3), (2, 2)], 1.0), ([(0, 3), (0, 2)], 0.0), ([(1, 2)] * 4, 0.5)])
def test_groups_that_are_all_alike_still_have_a_width(shares: list[tuple[int, int]], mean: float) -> None:
    n = sum(questions for _, questions in shares)
    assert accuracy(grouped(shares), 0, 100) == Estimate(mean, *wilson(mean, len(shares)), n)


def test_one_group_alone_has_no_interval() -> None:
    assert accuracy(grouped([(2, 3)]), 0, 100) == Estimate(2 / 3, None, None, 3)


def test_parts_by_exam_year_and_type() -> None:
    answers = [
        answer(1, "A", exam="clinical", year="2020"),
        answer(2, "B", exam="clinical", year="2021"),
        answer(3, "A", exam="clinical", year="2021", type="multiple"),
        answer(4, "A", exam="clinical", year="", type="multiple"),
    ]
    parts = {key[1]: (number.mean, number.n) for key, number in by_key(answers).items() if key[1] != "all"}
    assert parts == {  # one exam is no part
        "year: 2020": (1.0, 1),
        "year: 2021": (0.5, 2),
        "type: multiple": (1.0, 2),
        "type: single": (0.5, 2),
    }
    two = [*answers, answer(5, "B", exam="nursing", year="2020")]
    assert by_key(two)["cmb", "exam: nursing", "sft", "accuracy"].mean == 0.0


def test_means_over_exams_by_hand() -> None:
    """3 of 4 and 10 of 20 are right: 0.625 unweighted, 13 / 24 by questions."""
    numbers = by_key([*some(3, 4), *some(10, 20, "cmexam")])
    unweighted, weighted = (numbers[MEANS, "all", "sft", name] for name in ("unweighted", "by questions"))
    assert (unweighted.mean, unweighted.n) == (0.625, 2)
    ends = [wilson(0.75, 4), wilson(0.5, 20)]
    assert unweighted.low == pytest.approx(0.625 - math.hypot(0.75 - ends[0][0], 0.5 - ends[1][0]) / 2)
    assert unweighted.high == pytest.approx(0.625 + math.hypot(ends[0][1] - 0.75, ends[1][1] - 0.5) / 2)
    expected = proportion_interval(13, 24)
    assert (weighted.mean, weighted.low, weighted.high, weighted.n) == (expected.mean, expected.low, expected.high, 24)


def test_the_unweighted_mean_s_interval_knows_groups_and_keeps_a_width() -> None:
    alone = by_key([*some(50, 100), *some(50, 100, "cmexam")])[MEANS, "all", "sft", "unweighted"]
    cases = [*grouped([(5, 5)] * 10 + [(0, 5)] * 10), *grouped([(5, 5)] * 10 + [(0, 5)] * 10, "cmexam")]
    of_cases = by_key(cases)[MEANS, "all", "sft", "unweighted"]
    assert alone.low is not None and of_cases.low is not None and of_cases.low < alone.low - 0.05
    perfect = by_key([*some(9, 9), *some(9, 9, "cmexam")])[MEANS, "all", "sft", "unweighted"]
    assert perfect.low is not None and (perfect.mean, perfect.high) == (1.0, 1.0) and 0.7 < perfect.low < 0.9
    without = by_key([*grouped([(2, 3)]), *some(9, 9, "cmexam")])[MEANS, "all", "sft", "unweighted"]
    assert (without.low, without.high) == (None, None)


def test_a_model_that_lacks_an_exam_has_no_mean() -> None:
    numbers = by_key([*some(3, 4), *some(1, 4, "cmexam"), *some(2, 4, model="ppo")])
    assert {key[2] for key in numbers if key[0] == MEANS} == {"sft"}
    assert numbers["cmb", "all", "ppo", "accuracy"].mean == 0.5


def test_models_are_compared_question_by_question() -> None:
    """ppo is right on 0, 1, 2 and sft on 0 and 3 of four questions: +1 and +1 and -1 in three, so +25 points."""
    sft = [answer(i, "A" if i in (0, 3) else "B") for i in range(4)]
    ppo = [answer(i, "A" if i < 3 else "B", model="ppo") for i in range(4)]
    (number,) = [one for one in exam_numbers([*sft, *ppo], 0, 10) if one.section == "differences"]
    assert (number.model, number.measure, number.mean, number.n) == ("ppo against sft", "accuracy", 0.25, 4)
    assert number.low is not None and number.high is not None and number.low < 0 < number.high


def test_one_exam_has_no_mean_and_none_has_no_numbers() -> None:
    assert MEANS not in {key[0] for key in by_key(some(3, 4))} and list(exam_numbers([], 0, 10)) == []


@given(
    st.lists(st.tuples(st.sampled_from(["A", "B", None]), st.sampled_from([None, "g1", "g2"])), min_size=1, max_size=25)
)
def test_an_accuracy_lies_in_its_interval(rows: list[tuple[str | None, str | None]]) -> None:
    answers = [answer(i, chosen, group=group) for i, (chosen, group) in enumerate(rows)]
    found = accuracy(answers, 0, 50)
    assert found.mean == pytest.approx(sum(chosen == "A" for chosen, _ in rows) / len(rows)) and found.n == len(rows)
    if found.low is not None and found.high is not None:
        assert -1e-12 <= found.low <= found.mean + 1e-12 and found.mean - 1e-12 <= found.high <= 1 + 1e-12
