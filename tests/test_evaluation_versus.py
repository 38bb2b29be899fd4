"""Contests decided by rules, without a judge and without Ray: what needs no asking, what has no outcome, win rates."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rayrl.config.versus import VersusConfig
from rayrl.errors import RunError, UserError
from rayrl.evaluation.pairwise import Match, Outcome
from rayrl.evaluation.statistics import wilson
from rayrl.evaluation.versus import (
    EMPTY,
    SAME,
    UNANSWERED,
    Contest,
    decide,
    require_some,
    stop_on_budget,
    win_metrics,
)
from rayrl.judge.compare import BUDGET_REASON
from rayrl.types import PromptRow

TEN = "one two three four five six seven eight nine ten"
FIVE = "one two three four five"
LENGTH = {"rule": "length_window", "options": {"min_units": 10, "max_units": 20, "slack": 10}}


def config(*rules: dict[str, Any], **more: Any) -> VersusConfig:
    return VersusConfig.model_validate({"rubric": {"rules": list(rules) or [LENGTH], **more}})


def contest(a: str | None, b: str | None, item: str = "q1", **fields: Any) -> Contest:
    row = PromptRow(item, [{"role": "user", "content": "My knee hurts."}], None, fields)
    return Contest("heldout", row, "sft", "ppo", a, b, "orthopaedics")


@pytest.mark.parametrize(
    ("a", "b", "outcome", "reason"),
    [
        (TEN, TEN, "tie", SAME),
        (f" {TEN}\n", TEN, "tie", SAME),
        ("", " \n", "tie", SAME),
        (TEN, "", "a", EMPTY),
        (" \n", FIVE, "b", EMPTY),
        (None, TEN, None, UNANSWERED),
        (TEN, None, None, UNANSWERED),
        (None, None, None, UNANSWERED),
        ("", None, None, UNANSWERED),
        (TEN, FIVE, "a", None),
        (FIVE, TEN, "b", None),
        (TEN, "A " + TEN, "tie", None),  # both of a length within the window
    ],
)
def test_outcomes(a: str | None, b: str | None, outcome: Outcome | None, reason: str | None) -> None:
    (match,) = decide(config(), [contest(a, b)])
    assert (match.outcome, match.reason) == (outcome, reason)
    assert (match.set, match.item, match.category, match.model_a, match.model_b) == (
        "heldout", "q1", "orthopaedics", "sft", "ppo",
    )  # fmt: skip
    assert match.rater == ("rubric" if reason is None else "")


def test_the_weighted_rules_are_kept_beside_the_outcome() -> None:
    """Five words are half of the slack short of ten: 2 * 0.5 + 1 against 2 * 1 + 1."""
    (match,) = decide(config({**LENGTH, "weight": 2}, {"rule": "repetition"}), [contest(FIVE, TEN)])
    assert match.outcome == "b" and match.by_criterion == {}
    assert match.scores == {
        "a": {"length_window": 0.5, "repetition": 1.0, "total": 2.0},
        "b": {"length_window": 1.0, "repetition": 1.0, "total": 3.0},
    }


def test_a_margin_up_to_epsilon_is_a_tie() -> None:
    for epsilon, outcome in ((0.5, "tie"), (0.4, "a")):
        assert decide(config(epsilon=epsilon), [contest(TEN, FIVE)])[0].outcome == outcome


def test_outcomes_come_in_order_whatever_was_asked() -> None:
    contests = [
        contest(TEN, FIVE, "q1"),
        contest(None, TEN, "q2"),
        contest(FIVE, TEN, "q3"),
        contest(TEN, TEN, "q4"),
        contest(TEN, FIVE, "q5"),
    ]
    contests.append(Contest("other", contests[0].row, "sft", "ppo", FIVE, TEN))
    contests.append(Contest("heldout", contests[0].row, "sft", "start", FIVE, TEN))
    found = decide(config(), contests)
    assert [(one.set, one.item, one.model_b) for one in found] == [(c.set, c.row.id, c.model_b) for c in contests]
    assert [one.outcome for one in found] == ["a", None, "b", "tie", "a", "b", "b"]
    assert decide(config(), []) == []


def test_what_a_rule_can_t_score_has_no_outcome_and_says_why() -> None:
    rules = config({"rule": "clarifying_question"})
    answers = ("Rest it.", "How long has your knee hurt?")
    bad, good = decide(rules, [contest(*answers, "q1"), contest(*answers, "q2", missing_info=["duration"])])
    assert bad.outcome is None and bad.reason is not None and "missing_info" in bad.reason
    assert good.outcome == "b" and good.reason is None


def test_swapped_sides_swap_the_outcome() -> None:
    texts = [TEN, FIVE, "", None, "one two"]
    for a in texts:
        for b in texts:
            one, other = decide(config(), [contest(a, b)])[0], decide(config(), [contest(b, a)])[0]
            assert one.outcome == ({"a": "b", "b": "a", "tie": "tie"}[other.outcome] if other.outcome else None), (a, b)


def test_an_unknown_rule_is_named_only_where_it_is_needed() -> None:
    wrong = config({"rule": "repetitoin"})
    assert decide(wrong, [contest(TEN, TEN)])[0].outcome == "tie"
    with pytest.raises(UserError, match="did you mean 'repetition'"):
        decide(wrong, [contest(TEN, FIVE)])


def matches(*outcomes: Outcome | None) -> list[Match]:
    return [Match("heldout", str(i), "", "new", "old", outcome) for i, outcome in enumerate(outcomes)]


def test_metrics_of_a_training_run_by_hand() -> None:
    """Six wins, two ties, two losses: 0.7; test_evaluation_pairwise.py has the interval worked by hand."""
    outcomes: list[Outcome | None] = ["a", "a", "a", "a", "a", "a", "tie", "tie", "b", "b", None, None]
    found = win_metrics(matches(*outcomes))
    low, high = wilson(0.7, 10 * 0.21 / 0.16)
    assert found == pytest.approx(
        {
            "eval/win_rate": 0.7,
            "eval/win_rate_low": low,
            "eval/win_rate_high": high,
            "eval/wins": 0.6,
            "eval/ties": 0.2,
            "eval/losses": 0.2,
        }
    )
    assert all(math.isfinite(value) for value in found.values())


def test_without_an_outcome_there_are_no_metrics() -> None:
    assert win_metrics([]) == {} and win_metrics(matches(None, None)) == {}


def test_one_outcome_alone_has_a_rate() -> None:
    assert win_metrics(matches("b"))["eval/win_rate"] == 0.0 and win_metrics(matches("tie"))["eval/ties"] == 1.0


def test_a_spent_budget_stops_the_run_and_other_reasons_don_t() -> None:
    stop_on_budget(None)
    stop_on_budget("the judge is dead")
    with pytest.raises(RunError, match=r"raise it, and the same command goes on"):
        stop_on_budget(f"{BUDGET_REASON} of 5 requests is spent")


def test_nothing_judged_at_all_is_an_error() -> None:
    require_some([], "no pair")
    require_some(["dead", None], "no pair")
    with pytest.raises(RunError, match=r"no pair of 2 was judged \(dead\); mend it"):
        require_some(["dead", "silent"], "no pair")
