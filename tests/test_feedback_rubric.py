"""The rubric rater: weighted rules, margins, ties, and prompts that a rule can't score."""

from __future__ import annotations

import json

import pytest

from rayrl.config.feedback import RubricConfig
from rayrl.config.judge import JudgeConfig
from rayrl.errors import UserError
from rayrl.feedback.pairs import Pair
from rayrl.feedback.rubric import Rubric
from rayrl.feedback.rubric_server import judge_prompt
from rayrl.judge.prompts import pair_messages
from rayrl.types import Message, Origin, PromptRow

USER: Message = {"role": "user", "content": "My knee hurts."}
ORIGIN = Origin("candidates", "distilled", "instruction", "c.jsonl", 1)
TEN = "one two three four five six seven eight nine ten"
LENGTH = {"rule": "length_window", "options": {"min_units": 10, "max_units": 20, "slack": 10}}


def pair(a: str, b: str, **fields: object) -> Pair:
    return Pair("p/0-1", PromptRow("p", [USER], None, fields), a, b, ORIGIN)


def test_the_weighted_sum_decides_and_its_difference_is_the_margin() -> None:
    rubric = Rubric(RubricConfig.model_validate({"rules": [{**LENGTH, "weight": 2}, {"rule": "repetition"}]}))
    (row,) = rubric.rate([pair("one two three four five", TEN)])
    # a: five words short of ten, half the slack: 2 * 0.5 + 1; b: 2 * 1 + 1.
    assert row.verdict == "b" and row.margin == pytest.approx(1)
    assert row.scores["a"] == {"length_window": 0.5, "repetition": 1.0, "total": 2.0}
    assert row.id == "p/0-1/rubric" and row.rater == "rubric" and row.origin == ORIGIN
    assert rubric.rate([pair(TEN, "one two three four five")])[0].verdict == "a"


def test_differences_within_epsilon_are_ties() -> None:
    for epsilon, verdict in ((0.1, "tie"), (0.09, "b")):
        rubric = Rubric(RubricConfig.model_validate({"rules": [LENGTH], "epsilon": epsilon}))
        (row,) = rubric.rate([pair("one two three four five six seven eight nine", TEN)])
        assert row.verdict == verdict and row.margin == pytest.approx(0.1)


def test_a_prompt_that_a_rule_cant_score_is_set_aside_with_its_reason() -> None:
    rubric = Rubric(RubricConfig.model_validate({"rules": [{"rule": "clarifying_question"}]}))
    (row,) = rubric.rate([pair("Rest it.", "How long has your knee hurt?")])
    assert row.verdict == "set_aside" and row.margin is None and "missing_info" in str(row.reason)
    (row,) = rubric.rate([pair("Rest it.", "How long has your knee hurt?", missing_info=["duration"])])
    assert row.verdict == "b"


def test_unknown_rules_are_the_users_error() -> None:
    with pytest.raises(UserError, match="did you mean 'repetition'"):
        Rubric(RubricConfig.model_validate({"rules": [{"rule": "repetitoin"}]}))


def test_consultations_are_scored_by_what_the_doctor_says() -> None:
    """The one that asks and names the diagnosis beats the one that only advises, whatever the patient says."""
    case = PromptRow("c", [{"role": "user", "content": "I have pain under the ribs after fat meals."}], "Gallstones")
    asks = "Patient: It hurts under my ribs.\n\nDoctor: Since when does it hurt?\n\nPatient: A week.\n\n"
    asks += "Doctor: These may be gallstones. Please have an ultrasound made this week."
    advises = "Patient: It hurts under my ribs. Could it be gallstones? Since when?\n\nDoctor: Rest and drink water."
    config = JudgeConfig().with_criteria(("diagnosis", "inquiry", "fluency"))
    for first, second, better in ((asks, advises, "A"), (advises, asks, "B")):
        scores = json.loads(judge_prompt(pair_messages(case, first, second, config, subject="consultation")))
        worse = "B" if better == "A" else "A"
        assert scores[better]["inquiry"] > scores[worse]["inquiry"] == 1.0
        assert scores[better]["diagnosis"] > scores[worse]["diagnosis"] == 1.0
    silent = "Patient: It hurts."
    scores = json.loads(judge_prompt(pair_messages(case, silent, asks, config, subject="consultation")))
    assert set(scores["A"].values()) == {1.0}
