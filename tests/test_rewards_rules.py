"""The other shipped rules, with numbers worked by hand."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.rewards.rules import (
    RULES,
    language_match,
    length_window,
    make_rule,
    presentation,
    reference_overlap,
    repetition,
)
from rayrl.rewards.text import sentences, units
from rayrl.types import PromptRow

GOOD = "Rest your knee for a few days. See a doctor if it swells."


def row(patient: str = "My knee hurts.", reference: str | None = "Rest your knee.") -> PromptRow:
    return PromptRow("p", [{"role": "user", "content": patient}], reference, {"missing_info": ["duration"]})


def test_units_are_words_and_characters() -> None:
    assert units("Don’t take CT扫描, 38.5 x_y!") == ["don't", "take", "ct", "扫", "描", "38", "5", "x", "y"]
    assert units("?!... 。・\U0003134b") == []  # the last is an unassigned code point


def test_sentences_survive_decimals_and_abbreviations() -> None:
    assert sentences("It is 38.5 today. Take it, e.g. twice.\nGo now") == [
        "It is 38.5 today.",
        "Take it, e.g twice.",
        "Go now",
    ]
    assert sentences("多休息。发烧吗？去医院") == ["多休息。", "发烧吗？", "去医院"]


def test_rouge_l_by_words() -> None:
    # Longest common subsequence of "rest your knee" and "please rest the knee today": rest, knee.
    # Precision 2/5, recall 2/3, F = 2 * (2/5 * 2/3) / (2/5 + 2/3) = 1/2.
    assert reference_overlap(row(), "Please REST the knee today!") == pytest.approx(0.5)
    assert reference_overlap(row(), "Rest your knee.") == 1.0
    assert reference_overlap(row(), "Knee your rest.") == pytest.approx(1 / 3)  # order counts
    assert reference_overlap(row(), "") == 0.0


def test_rouge_l_by_characters() -> None:
    # 多 喝 水 against 多 喝 热 水 吧: common 3, precision 3/5, recall 1, F = 3/4.
    assert reference_overlap(row(reference="多喝水。"), "多喝热水吧") == pytest.approx(0.75)
    # Mixed: 做 ct 检 查 against 查 ct: the best common subsequence has 1; P 1/2, R 1/4, F = 1/3.
    assert reference_overlap(row(reference="做CT检查"), "查 ct") == pytest.approx(1 / 3)


@pytest.mark.parametrize("reference", [None, "  "])
def test_overlap_without_a_reference_names_the_prompt(reference: str | None) -> None:
    with pytest.raises(ValueError, match=r"prompt 'p'.*reference"):
        reference_overlap(row(reference=reference), "Rest.")


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (GOOD, 1.0),
        ("多休息几天。如果肿了请就医。", 1.0),
        ("Rest now. (It helps.)\n\n1. Cool it.\n2. Raise it **high.**", 1.0),
        ("1) Rest it.\n2) Cool it.", 1.0),
        ("Rest your knee and see a", 0.6),  # cut
        ("Rest your knee...", 0.6),
        ("Rest it.\n2.", 0.6),
        ("rest your knee. See a doctor.", 1 - 0.15 / 2),  # one of two sentences without a capital
        (GOOD + "<|im_end|>.", 0.8),
        ("Assistant: " + GOOD, 0.8),
        ("医生：多休息。", 0.8),
        ("**Rest your knee.", 0.85),
        ("Rest (your knee.", 0.85),
        ("```\nRest your knee.", 0.85),
        ("REST YOUR KNEE FOR A FEW DAYS.", 0.9),
        ("Rest.\n\n\n\nSee a doctor.", 0.9),
        ("Rest a bit. " * 60, 0.9),  # one paragraph of 180 words
    ],
)
def test_presentation(response: str, score: float) -> None:
    assert presentation(row(), response) == pytest.approx(score)


@pytest.mark.parametrize(
    ("count", "score"),
    [(4, 0.0), (6, 0.0), (8, 0.5), (9, 0.75), (10, 1.0), (20, 1.0), (21, 0.75), (24, 0.0), (99, 0.0)],
)
def test_length_window(count: int, score: float) -> None:
    words = " ".join(["word"] * count)
    assert length_window(row(), words, min_units=10, max_units=20, slack=4) == pytest.approx(score)
    assert length_window(row(), "字" * count, min_units=10, max_units=20, slack=4) == pytest.approx(score)


def test_length_window_at_its_edges() -> None:
    assert length_window(row(), "One two", min_units=2, max_units=2, slack=0) == 1.0
    assert length_window(row(), "One two three", min_units=2, max_units=2, slack=0) == 0.0
    assert length_window(row(), "", min_units=0, max_units=2, slack=5) == 0.0
    for bad in ({"min_units": 5, "max_units": 4}, {"min_units": -1}, {"slack": -1}):
        with pytest.raises(ValueError, match="length_window"):
            length_window(row(), "Rest.", **bad)


def test_repetition() -> None:
    # a b c a b c: trigrams abc bca cab abc, so 3 of 4 are new.
    assert repetition(row(), "a b c A B C") == pytest.approx(0.75)
    assert repetition(row(), "rest rest rest rest rest") == pytest.approx(1 / 3)
    assert repetition(row(), "Rest it") == 1.0
    # 休息休息休息: 4-grams 休息休息, 息休息休, 休息休息, so 2 of 3 are new.
    assert repetition(row(), "休息休息休息") == pytest.approx(2 / 3)
    assert repetition(row(), "a b a b", n_words=1) == pytest.approx(0.5)
    assert repetition(row(), "") == 0.0
    with pytest.raises(ValueError, match="n_words"):
        repetition(row(), "Rest.", n_words=0)


def test_language_match() -> None:
    assert language_match(row("My knee hurts."), GOOD) == 1.0
    assert language_match(row("My knee hurts."), "多休息。") == 0.0
    assert language_match(row("我膝盖疼。"), "Rest.") == 0.0
    assert language_match(row("我膝盖疼。"), "建议做CT检查。") == 1.0  # 5 of 6 units
    assert language_match(row("我膝盖疼。"), "多休 take rest") == pytest.approx(0.5 / 0.8)
    assert language_match(row("У меня болит колено."), GOOD) == 0.0
    assert language_match(row("我的 blood pressure 高"), GOOD) == 1.0  # the patient uses both
    assert language_match(row("120/80?"), GOOD) == 1.0
    assert language_match(row("My knee hurts."), "120 80") == 0.0
    assert language_match(row("My knee hurts."), "") == 0.0


def test_language_of_the_last_turn_counts() -> None:
    turns = PromptRow(
        "p",
        [
            {"role": "user", "content": "My knee hurts."},
            {"role": "assistant", "content": "Since when?"},
            {"role": "user", "content": "三天了。"},
        ],
    )
    assert language_match(turns, "多休息。") == 1.0
    with pytest.raises(ValueError, match="prompt 'q'"):
        language_match(PromptRow("q", [{"role": "system", "content": "Hi"}]), "Rest.")


def test_make_rule_binds_options() -> None:
    rule = make_rule("length_window", {"min_units": 1, "max_units": 2, "slack": 0})
    assert [rule(row(), text) for text in ("One two", "One two three")] == [1.0, 0.0]
    assert sorted(RULES) == [
        "clarifying_question",
        "language_match",
        "length_window",
        "presentation",
        "reference_overlap",
        "repetition",
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("repetitions", {}, "did you mean 'repetition'"),
        ("zzz", {}, "valid ones: clarifying_question"),
        ("length_window", {"min_unit": 3}, "did you mean 'min_units'"),
        ("presentation", {"weight": 3}, "takes none"),
        ("length_window", {"min_units": 9, "max_units": 3}, "can't use the options"),
        ("length_window", {"slack": "four"}, "can't use the options"),
    ],
)
def test_make_rule_refuses(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rule(name, options)


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("response", ["", "  \n\t", "?!", "…", "**"])
def test_no_words_is_the_worst_score(name: str, response: str) -> None:
    assert make_rule(name, {})(row(), response) == 0.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet=st.sampled_from("aB1?!. \n。？吗您疼*`\"(“”>:<|：x'’-é"), max_size=80) | st.text(max_size=80))
def test_every_rule_stays_in_range_on_any_text(response: str) -> None:
    for name in RULES:
        score = RULES[name](row(), response)
        assert 0.0 <= score <= 1.0 and math.isfinite(score), name


@pytest.mark.parametrize(
    "unit", [".", "?", "(", "“", '"', "\n", "<|", "!?", " ", "how you ", "您", "**", "e.g", "我告诉"]
)
def test_a_collapsed_policy_costs_no_time(unit: str) -> None:
    started = time.process_time()
    for name in RULES:
        if name != "reference_overlap":  # its table is the product of the lengths
            RULES[name](row(), unit * 6000 + "a")
    assert time.process_time() - started < 5.0
