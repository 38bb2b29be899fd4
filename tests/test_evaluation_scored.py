"""A judge's scores of single answers: means, people's scores from a CSV, and how far both agree, by hand and scipy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rayrl.errors import UserError
from rayrl.evaluation.numbers import Number
from rayrl.evaluation.question_numbers import agreement_numbers, scored_numbers
from rayrl.evaluation.scored import Agreement, Scored, agreement, read_people
from rayrl.evaluation.statistics import Estimate, mean_interval, proportion_interval

NAMES = ["fluency", "completeness"]


def file(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "people.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def scored(item: str, model: str = "sft", category: str = "", reason: str | None = None, **criteria: float) -> Scored:
    return Scored("heldout", item, category, model, criteria, reason)


def test_the_mean_of_an_answer_s_criteria() -> None:
    assert scored("q1", fluency=4, completeness=3).mean == 3.5
    assert scored("q1", reason="the judge is dead").mean is None


def test_people_s_scores_are_means_over_raters(tmp_path: Path) -> None:
    text = (
        "id,model,rater,fluency,completeness,notes\n"
        "q1,sft,Wang,5,3,good\nq1,sft,Li,4,,\nq1,sft,Zhao,3,2.5,\nq1,ppo,Wang,1,1,\n q2 , sft ,Li, 2 ,５,\n"
    )
    people, rejected = read_people(file(tmp_path, text), NAMES)
    assert people == {
        ("q1", "sft"): {"fluency": 4.0, "completeness": 2.75},
        ("q1", "ppo"): {"fluency": 1.0, "completeness": 1.0},
        ("q2", "sft"): {"fluency": 2.0, "completeness": 5.0},
    }
    assert rejected == []


def test_a_rater_s_second_row_for_an_answer_isn_t_used(tmp_path: Path) -> None:
    path = file(tmp_path, "id,model,rater,fluency\nq1,sft,Li,5\nq1,sft,Li,1\nq1,ppo,Li,2\nq2,sft,Li,3\nq1,sft,Wang,3\n")
    people, rejected = read_people(path, NAMES)
    assert people["q1", "sft"] == {"fluency": 4.0} and len(people) == 3
    assert [(one.line, one.reason) for one in rejected] == [(3, "its rater has scored this answer before")]


def test_without_raters_rows_of_an_answer_are_several_raters(tmp_path: Path) -> None:
    people, rejected = read_people(file(tmp_path, "id,model,fluency\nq1,sft,5\nq1,sft,2\n"), NAMES)
    assert people == {("q1", "sft"): {"fluency": 3.5}} and rejected == []


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_files_as_spreadsheets_save_them(tmp_path: Path, ends: str, mark: bytes) -> None:
    text = 'id,model,completeness\n"q1",sft,4\n\n"q,2",sft,3\n'.replace("\n", ends).encode()
    people, rejected = read_people(file(tmp_path, mark + text), NAMES)
    assert people == {("q1", "sft"): {"completeness": 4.0}, ("q,2", "sft"): {"completeness": 3.0}} and rejected == []


@pytest.mark.parametrize(
    "row", ["q1,sft,good,3", "q1,sft,nan,3", "q1,sft,inf,3", "q1,sft,,", "q1,sft", ",sft,3,3", " ,sft,3,3", "q1,,3,3"]
)
def test_rows_that_can_t_be_used_say_where(tmp_path: Path, row: str) -> None:
    people, rejected = read_people(file(tmp_path, f"id,model,fluency,completeness\n{row}\nq9,sft,3,3\n"), NAMES)
    assert list(people) == [("q9", "sft")]
    assert [one.line for one in rejected] == [2] and "no number in one of fluency, completeness" in rejected[0].reason


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "needs the columns id, model and one of fluency, completeness"),
        ("id,model,safety\nq1,sft,3\n", "needs the columns"),
        ("id,fluency\nq1,3\n", "needs the columns"),
        ("id,model,fluency\n".encode("utf-16"), "can't be read as CSV in UTF-8"),
        ('id,model,fluency\nq1,"sft,3\nq2,sft,4\n', "the row after line 1: unexpected end of data"),
    ],
)
def test_files_that_can_t_be_read(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(UserError, match=f"scored.human: .*{why}"):
        read_people(file(tmp_path, text), NAMES)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_people(str(tmp_path / "nothing.csv"), NAMES)


JUDGE, PEOPLE = [1.0, 2.0, 3.0, 5.0], [2.0, 1.0, 4.0, 5.0]


def of(judge: list[float], people: list[float]) -> Agreement | None:
    rows = [scored(f"q{i}", fluency=score) for i, score in enumerate(judge)]
    found = agreement(rows, {(f"q{i}", "sft"): {"fluency": score} for i, score in enumerate(people)}, NAMES)
    return found[0] if found else None


def test_agreement_by_hand() -> None:
    """Deviations -1.75 -0.75 0.25 2.25 and -1 -2 1 2 (means 2.75 and 3): products 1.75 + 1.5 + 0.25 + 4.5 = 8, squares
    8.75 and 10. Ranks 1 2 3 4 and 2 1 3 4: rho = 1 - 6 * 2 / (4 * 15). Differences -1 1 -1 0.
    """
    found = of(JUDGE, PEOPLE)
    assert found is not None and (found.criterion, found.n) == ("fluency", 4)
    assert found.pearson == pytest.approx(8 / math.sqrt(87.5))
    assert found.spearman == pytest.approx(0.8)
    assert found.difference == mean_interval([-1, 1, -1, 0]) and found.difference.mean == -0.25
    assert found.within_one == 1.0


def test_a_point_apart_is_as_near_as_it_gets() -> None:
    found = of([3.0, 3.0, 3.3, 1.0], [3.0, 4.0, 2.3, 3.0])
    assert found is not None and found.within_one == 0.75


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=3, max_size=30))
def test_agreement_is_scipy_s(pairs: list[tuple[int, int]]) -> None:
    judge, people = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = of(judge, people)
    assert found is not None and found.difference.mean == pytest.approx(np.mean(judge) - np.mean(people))
    if len(set(judge)) == 1 or len(set(people)) == 1:
        assert found.pearson is None and found.spearman is None
        return
    assert found.pearson == pytest.approx(stats.pearsonr(judge, people).statistic)
    ranks = [stats.rankdata(values) for values in (judge, people)]  # Spearman's is Pearson's of the ranks
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize(
    ("judge", "people"),
    [
        ([3.0, 3.0, 3.0, 3.0], PEOPLE),
        (JUDGE, [2.0, 2.0, 2.0, 2.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        ([0.1 + 0.2, 0.3, 0.3, 0.3], PEOPLE),
    ],
)
@pytest.mark.filterwarnings("error")
def test_scores_that_never_vary_have_no_correlation(judge: list[float], people: list[float]) -> None:
    found = of(judge, people)
    assert found is not None and (found.pearson, found.spearman) == (None, None)


def test_only_answers_that_both_scored_count() -> None:
    rows = [
        scored("q1", fluency=4),
        scored("q2", fluency=2),
        scored("q1", "ppo", fluency=1),
        scored("q3", reason="dead"),
    ]
    people = {
        ("q1", "sft"): {"fluency": 3.0, "completeness": 2.0},
        ("q2", "ppo"): {"fluency": 1.0},
        ("q3", "sft"): {"fluency": 1.0},
    }
    (found,) = agreement(rows, people, NAMES)
    assert (found.criterion, found.n, found.difference) == ("fluency", 1, Estimate(1.0, None, None, 1))
    assert agreement([], people, NAMES) == [] and agreement(rows, {}, NAMES) == []


def by_key(numbers: list[Number]) -> dict[tuple[str, str, str], Number]:
    found = {(number.split, number.model, number.measure): number for number in numbers}
    assert len(found) == len(numbers)
    return found


def test_numbers_of_scores_by_hand() -> None:
    rows = [
        *(scored(f"q{i}", "sft", "ENT" if i < 3 else "eye", fluency=i + 1, completeness=5 - i) for i in range(5)),
        scored("q5", "sft", "eye", reason="no scores"),
        scored("q0", "ppo", "ENT", fluency=2),
    ]
    numbers = by_key(list(scored_numbers(rows, 0, 200)))
    assert {(number.section, number.set) for number in numbers.values()} == {("scores", "heldout")}
    share = proportion_interval(5, 6)
    assert numbers["all", "sft", "scored"] == Number.of("scores", "heldout", "all", "sft", "scored", share, "share")
    fluency = numbers["all", "sft", "fluency"]
    assert (fluency.mean, fluency.n, fluency.unit) == (3.0, 5, "score")
    assert fluency.low is not None and fluency.high is not None and 1 < fluency.low < 3 < fluency.high < 5
    mean = numbers["all", "sft", "mean"]  # of every answer it is (i + 1 + 5 - i) / 2
    assert (mean.mean, mean.low, mean.high) == (3.0, 3.0, 3.0)
    assert numbers["category: ENT", "sft", "mean"].n == 3 and numbers["category: eye", "sft", "mean"].n == 2
    single = numbers["all", "ppo", "fluency"]
    assert (single.mean, single.low, single.high, single.n) == (2.0, None, None, 1)
    assert ("all", "ppo", "completeness") not in numbers and ("category: eye", "ppo", "mean") not in numbers


def test_a_model_without_scores_says_so_alone() -> None:
    numbers = list(scored_numbers([scored("q1", reason="dead"), scored("q2", reason="dead")], 0, 50))
    assert [(number.measure, number.mean, number.n) for number in numbers] == [("scored", 0.0, 2)]
    assert list(scored_numbers([], 0, 50)) == []


def test_numbers_of_agreement() -> None:
    whole = Agreement("fluency", 4, 0.855, 0.8, Estimate(-0.25, -1.8, 1.3, 4), 0.75)
    flat = Agreement("safety", 2, None, None, Estimate(0.5, None, None, 2), 1.0)
    numbers = {(n.model, n.measure): n for n in agreement_numbers([whole, flat])}
    assert {key: number.mean for key, number in numbers.items()} == {
        ("fluency", "Pearson"): 0.855,
        ("fluency", "Spearman"): 0.8,
        ("fluency", "at most a point apart"): 0.75,
        ("fluency", "judge minus people"): -0.25,
        ("safety", "at most a point apart"): 1.0,
        ("safety", "judge minus people"): 0.5,
    }
    assert numbers["fluency", "at most a point apart"].unit == "share"
    assert numbers["fluency", "judge minus people"].low == -1.8
    assert {(n.section, n.set, n.split) for n in numbers.values()} == {("judge check", "scores", "all")}
