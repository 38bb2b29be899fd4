"""Who wins: the tie rules, win rates and their intervals, the sign test, ranks of several models, all by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.evaluation.pairwise import Match, Outcome, TieRule, outcome_of, rank, sign_test, tally
from rayrl.evaluation.question_numbers import match_numbers
from rayrl.evaluation.statistics import wilson

CRITERIA = ["safety", "professionalism", "fluency"]


def scores(ab: tuple[float, float], ba: tuple[float, float]) -> dict[str, list[float]]:
    return {"ab": list(ab), "ba": list(ba)}


@pytest.mark.parametrize(
    ("ab", "ba", "consistent", "points", "by_sum"),
    [
        ((8, 6), (7, 5), "a", "a", "a"),
        ((8, 6), (7, 7), "tie", "a", "a"),  # 10 + 5 against 0 + 5
        ((8, 6), (5, 6), "tie", "tie", "a"),  # each order for whatever stands first: 10:0 and 0:10, but 13 to 12
        ((7, 7), (7, 7), "tie", "tie", "tie"),
        ((6, 8), (6, 6), "tie", "b", "b"),
        ((6, 8), (3, 9), "b", "b", "b"),
    ],
)
def test_tie_rules(
    ab: tuple[float, float], ba: tuple[float, float], consistent: Outcome, points: Outcome, by_sum: Outcome
) -> None:
    expected: dict[TieRule, Outcome] = {"consistent": consistent, "points": points, "sum": by_sum}
    for rule, outcome in expected.items():
        assert outcome_of(scores(ab, ba), rule, [])[0] == outcome, rule


def test_the_first_criterion_that_wins_in_both_orders_decides() -> None:
    """Safety's orders disagree, professionalism is b's in both, fluency a's: Zhongjing's order gives it to b."""
    ab = [{"safety": 9, "professionalism": 5, "fluency": 9}, {"safety": 7, "professionalism": 6, "fluency": 5}]
    ba = [{"safety": 6, "professionalism": 4, "fluency": 9}, {"safety": 8, "professionalism": 8, "fluency": 6}]
    found = {"ab": [7.7, 6.0], "ba": [6.3, 7.3], "criteria": {"ab": ab, "ba": ba}}
    outcome, by_criterion = outcome_of(found, "priority", CRITERIA)
    assert by_criterion == {"safety": "tie", "professionalism": "b", "fluency": "a"}
    assert outcome == "b"
    assert outcome_of(found, "priority", ["fluency", *CRITERIA[:2]])[0] == "a"
    assert outcome_of(found, "consistent", CRITERIA)[0] == "tie"


def test_a_tally_counts_ties_half() -> None:
    counts = tally(["a"] * 6 + ["tie"] * 2 + ["b"] * 2 + [None])
    assert (counts.wins, counts.ties, counts.losses, counts.left_out, counts.n) == (6, 2, 2, 1, 10)
    assert counts.win_rate is not None
    assert counts.win_rate.mean == pytest.approx(0.7)
    # mean of squares (6 + 2/4) / 10 = 0.65, so the variance is 0.16 and 10 questions count as 10 * 0.21 / 0.16
    assert (counts.win_rate.low, counts.win_rate.high) == pytest.approx(wilson(0.7, 10 * 0.21 / 0.16))


def test_without_ties_the_interval_is_wilsons() -> None:
    rate = tally(["a"] * 30 + ["b"] * 10).win_rate
    assert rate is not None
    assert (rate.low, rate.high) == pytest.approx(wilson(0.75, 40))


@pytest.mark.parametrize("outcome", ["a", "tie", "b"])
def test_outcomes_that_are_all_the_same_still_have_a_width(outcome: Outcome) -> None:
    rate = tally([outcome] * 20).win_rate
    assert rate is not None and rate.low is not None and rate.high is not None
    assert rate.high - rate.low > 0.1


def test_nothing_judged_has_no_rate() -> None:
    counts = tally([None, None])
    assert (counts.win_rate, counts.p_value, counts.left_out) == (None, None, 2)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(9, 1, 22 / 1024), (1, 9, 22 / 1024), (5, 5, 1.0), (0, 0, 1.0), (8, 0, 2 / 256), (3, 1, 10 / 16)],
)
def test_sign_test(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p)


def test_sign_test_is_scipys() -> None:
    from scipy.stats import binomtest

    for wins, losses in [(17, 8), (60, 41), (2, 30)]:
        assert sign_test(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue)


@given(st.lists(st.sampled_from(["a", "tie", "b"]), min_size=1, max_size=60))
def test_a_rate_lies_in_its_interval_and_mirrors(outcomes: list[Outcome]) -> None:
    mirrored: list[Outcome] = [{"a": "b", "b": "a", "tie": "tie"}[one] for one in outcomes]  # type: ignore[misc]
    one, other = tally(outcomes).win_rate, tally(mirrored).win_rate
    assert one is not None and other is not None and one.low is not None and one.high is not None
    assert 0 <= one.low <= one.mean <= one.high <= 1
    assert other.mean == pytest.approx(1 - one.mean) and other.low == pytest.approx(1 - one.high)


def match(item: int, a: str, b: str, outcome: Outcome, category: str = "") -> Match:
    return Match("set", str(item), category, a, b, outcome)


def test_two_models_strengths_by_hand() -> None:
    """a wins 3 of 4. Each also ties once with an average model, of strength 0: by symmetry the strengths are x and -x,
    and x solves 3 + 1/2 = 4 s(2x) + s(x), s the logistic function.
    """
    found = {one.model: one for one in rank([match(i, "a", "b", "a" if i else "b") for i in range(4)], 50, 0)}
    x = found["a"].log_odds.mean
    assert found["b"].log_odds.mean == pytest.approx(-x)
    assert 4 / (1 + math.exp(-2 * x)) + 1 / (1 + math.exp(-x)) == pytest.approx(3.5)
    assert found["a"].win_rate == pytest.approx(1 / (1 + math.exp(-x)))


def test_strengths_of_many_matches_are_found_within_their_intervals() -> None:
    truth = {"weak": -1.0, "middle": 0.2, "strong": 0.8}
    rng = np.random.default_rng(5)
    matches = []
    for item in range(300):
        for a, b in (("weak", "middle"), ("middle", "strong"), ("weak", "strong")):
            chance = 1 / (1 + math.exp(truth[b] - truth[a]))
            matches.append(match(item, a, b, "a" if rng.random() < chance else "b"))
    ranked = rank(matches, 200, 0)
    assert [one.model for one in ranked] == ["strong", "middle", "weak"]
    for one in ranked:
        assert one.log_odds.low is not None and one.log_odds.high is not None
        assert one.log_odds.low < truth[one.model] < one.log_odds.high
        assert one.log_odds.high - one.log_odds.low < 0.8


def test_a_model_that_never_lost_has_a_finite_strength() -> None:
    ranked = rank([match(i, "best", "worst", "a") for i in range(50)], 20, 0)
    assert ranked[0].model == "best" and 1 < ranked[0].log_odds.mean < 10


def test_nothing_to_rank() -> None:
    with pytest.raises(ValueError, match="no comparison has an outcome"):
        rank([Match("set", "1", "", "a", "b", None)], 10, 0)


def test_numbers_tell_the_later_model_against_the_earlier_one_and_rank_only_whole_tournaments() -> None:
    matches = [match(i, "first", "second", "b" if i < 6 else "a", "ab"[i % 2]) for i in range(8)]
    numbers = list(match_numbers("pairwise", matches, ["first", "second"], 0, 20))
    assert {number.model for number in numbers} == {"second against first"}
    whole = {number.measure: number.mean for number in numbers if number.split == "all"}
    assert (whole["wins"], whole["losses"], whole["win rate"]) == (0.75, 0.25, 0.75)
    assert {number.split for number in numbers} == {"all", "category: a", "category: b"}
    three = [*matches, *(match(i, "first", "third", "a") for i in range(8))]
    assert "ranking" not in {n.section for n in match_numbers("pairwise", three, ["first", "second", "third"], 0, 20)}
    three += [match(i, "second", "third", "a") for i in range(8)]
    ranked = [
        n for n in match_numbers("pairwise", three, ["first", "second", "third"], 0, 20) if n.section == "ranking"
    ]
    assert [n.model for n in ranked if n.measure.startswith("strength")] == ["second", "first", "third"]
