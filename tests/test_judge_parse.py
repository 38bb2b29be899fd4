"""Scores out of a judge's answers: lenient in form, strict in content."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.judge.parse import CUT, Unread, answer_scores, pair_scores

NAMES = ["accuracy", "conciseness"]
A, B = {"accuracy": 7.0, "conciseness": 4.0}, {"accuracy": 9.0, "conciseness": 5.5}
GOOD = '{"A": {"accuracy": 7, "conciseness": 4}, "B": {"accuracy": 9, "conciseness": 5.5}}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Let me see. A set {{of}} things.\n```json\n{GOOD}\n```\nThat is all.",
        f"<think>{GOOD.replace('7', '1')}</think>\n{GOOD}",
        f"{GOOD.replace('7', '1')}\nOn reflection:\n{GOOD}",
        GOOD.replace('"A"', '"Answer A"').replace('"B"', '"answer_b"'),
        GOOD.replace('"A"', '"回答A"').replace('"B"', '"回答B"'),
        GOOD.replace("accuracy", "Accuracy").replace(": 7", ': "7/10"').replace(": 9", ': "9分"'),
        GOOD.replace(": 7", ': {"score": 7, "why": "fits"}'),
        GOOD.replace('{"accuracy": 7, "conciseness": 4}', '{"scores": {"accuracy": 7, "conciseness": 4}, "n": 1}'),
        GOOD.replace("}}", '}, "better": "B"}'),
    ],
)
def test_json_anywhere_in_any_dress(text: str) -> None:
    assert pair_scores(text, NAMES) == (A, B)


@pytest.mark.parametrize(
    "text",
    [
        "A: 7\nB: 8.5",
        "**Answer A**: 7/10\n**Answer B**: 8.5/10",
        "回答A：7分\n回答B：8.5分",
        "Some words first.\n- A = 7\n- B = 8.5\nA is terse.",
        '{"A": 7, "B": "8.5"}',
        "Score of A: 7\nScore of B: 8.5",
    ],
)
def test_one_number_each(text: str) -> None:
    assert pair_scores(text, NAMES) == ({"overall": 7.0}, {"overall": 8.5})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON object"),
        ("Both have their merits.", "no JSON object"),
        (GOOD[:40], "no JSON object"),
        ('{"A": {"accuracy": 7}, "B": {"accuracy": 9, "conciseness": 5}}', "no score for conciseness"),
        (GOOD.replace(": 7", ": 11"), "outside 1 to 10"),
        (GOOD.replace(": 7", ": 0"), "outside 1 to 10"),
        (GOOD.replace(": 7", ": NaN"), "outside 1 to 10"),
        (GOOD.replace(": 7", ": true"), "no number"),
        (GOOD.replace(": 7", ': "high"'), "no number"),
        ('{"A": 7, "B": {"accuracy": 9, "conciseness": 5}}', "different criteria"),
        ("accuracy\nA: 7\nB: 8\nconciseness\nA: 3\nB: 9", "no JSON object"),
        ("A: 70\nB: 8", "no JSON object"),
        ("A: 7\n", "no JSON object"),
        (f"<think>maybe {GOOD} hmm, no, wait", "its thoughts never end"),
        ("A: 7\nB: 1" + CUT, "max_tokens cut it"),
        (GOOD[:40] + CUT, "max_tokens cut it"),
    ],
)
def test_what_is_missing_is_said(text: str, why: str) -> None:
    with pytest.raises(Unread, match=why):
        pair_scores(text, NAMES)


def test_a_whole_object_counts_though_what_follows_was_cut() -> None:
    assert pair_scores(f"{GOOD}\nBecause the first" + CUT, NAMES) == (A, B)


def test_single_answers() -> None:
    assert answer_scores('so: {"accuracy": 0, "conciseness": 10}', NAMES) == {"accuracy": 0.0, "conciseness": 10.0}
    assert answer_scores("Accuracy: 7\nConciseness: 4/10", NAMES) == A
    assert answer_scores("total: 6.5", NAMES) == {"overall": 6.5}
    assert answer_scores('{"overall": 6.5}', NAMES) == {"overall": 6.5}
    for text in (
        "accuracy: 7",
        "fine",
        '{"accuracy": 7}',
        "accuracy: 7\ntotal: 3",
        '{"accuracy": -1, "conciseness": 2}',
    ):
        with pytest.raises(Unread):
            answer_scores(text, NAMES)


@given(st.text() | st.recursive(st.floats() | st.text() | st.none(), lambda x: st.dictionaries(st.sampled_from(
    ["A", "B", "accuracy", "conciseness", "scores"]), x) | st.lists(x)).map(json.dumps))  # fmt: skip
def test_any_text_gives_scores_in_range_or_is_unread(text: str) -> None:
    for read in (lambda: pair_scores(text, NAMES), lambda: (answer_scores(text, NAMES),)):
        try:
            found = read()
        except Unread:
            continue
        assert all(0 <= value <= 10 for scores in found for value in scores.values())


@pytest.mark.parametrize("text", ["{" * 50_000, "A " * 50_000, "\n" * 50_000 + "A", '{"A":' * 5_000, "<think>" * 9_000])
def test_long_nonsense_is_read_quickly(text: str) -> None:
    with pytest.raises(Unread):
        pair_scores(text, NAMES)
