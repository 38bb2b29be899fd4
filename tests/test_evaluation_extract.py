"""Letters out of free text: agreement with a key that was written by reading, no guesses, any text, linear time.

`exam_answers.jsonl`: answers in the shapes in which models write them, with what a careful reader says they choose, or
null where a careful reader couldn't tell. Questions and answers were written for this project, but for those whose
note begins with "a small model's own": SmolLM2-135M's to such questions.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.evaluation.exams.extract import extract

KEY = [
    json.loads(line) for line in (Path(__file__).parent / "exam_answers.jsonl").read_text("utf-8").splitlines() if line
]
VITAMINS = {"A": "维生素C", "B": "维生素A", "C": "维生素D", "D": "维生素K"}
LIVER = {"A": "腹水", "B": "蜘蛛痣", "C": "食管静脉曲张", "D": "脾大"}
DRUGS = {"A": "Insulin", "B": "Metformin", "C": "Glipizide", "D": "Acarbose"}
SCHEMES = [
    DRUGS,
    VITAMINS,
    {"A": "A", "B": "B", "C": "AB", "D": "O"},
    {"A": "5", "B": "15", "C": "1.5", "D": "0", "E": "以上都是"},
    {"A": "Yes", "B": "yes", "C": "?", "D": "  "},
    dict(
        zip(
            "ABCDEFGHIJ",
            ["Rest", "心", "E. coli", "B超", "(", "A和B", "[a-z]+", "\\", "ACE inhibitor", "选A"],
            strict=True,
        )
    ),
]
WORDS = [
    "答案", "是", "选", "不", "A", "B", "C", "AB", "Ａ", "、", "，", "。", "\n", " ", "(", ")", "the answer is ",
    "not ", "or ", "and ", "Insulin", "维生素A", "A. ", "错误", "正确", "\\boxed{", "}", "<think>", "</think>", "?",
    "不对，", "a", "b) ", "I ", "\ue000", "以上都对", "除", "排除", "it's ", "so ", "but ", "问题：", "1. ", "- ", "**",
    "\u0301", "\x00", "\ud800", '{"answer": "',
]  # fmt: skip


def test_agrees_with_a_careful_reader() -> None:
    wrong = [
        (row["answer"][:120], f"key {row['key']}", f"got {got}", row["note"])
        for row in KEY
        if (got := extract(row["answer"], row["options"], row["multiple"])) != row["key"]
    ]
    print(*wrong, sep="\n")
    assert len(KEY) >= 500
    assert len(wrong) <= 0.02 * len(KEY), wrong
    # A letter that nobody chose is worse than none.
    assert sum("got None" not in one for one in wrong) <= 0.005 * len(KEY), wrong


def test_the_key_holds_every_kind_of_question() -> None:
    kinds = {(row["type"], row["language"]) for row in KEY}
    assert {kind for kind, _ in kinds} == {"single", "multiple", "matched", "case"}
    assert len(kinds) == 8
    assert all(row["multiple"] == (row["type"] == "multiple") for row in KEY)
    assert all(row["key"] is None or set(row["key"]) <= set(row["options"]) for row in KEY)
    assert sum(row["key"] is None for row in KEY) > 80


def test_a_letter_inside_an_options_text_is_no_letter() -> None:
    """HuatuoGPT-II's scorer says A."""
    assert extract("答案是：维生素A", VITAMINS, multiple=False) == "B"


def test_a_letter_that_is_discussed_before_the_choice_is_not_chosen() -> None:
    """HuatuoGPT-II's scorer says A."""
    assert extract("A 腹水有意义，但晚期才出现，食管静脉曲张更特异，选C", LIVER, multiple=False) == "C"


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize(
    "answer",
    ["", " ", "...", "我不知道。", "I don't know.", "答案是", "E", "答案：Z", "Take care of yourself.", "A or B"],
)
def test_no_default(answer: str, multiple: bool) -> None:
    assert extract(answer, DRUGS, multiple) is None


def test_an_answer_that_can_be_read_two_ways_is_none() -> None:
    assert extract("A. Metformin", DRUGS, multiple=False) is None
    assert extract("答案：A", {"A": "B", "B": "A"}, multiple=False) is None
    assert extract("The answer is A. The answer is B. The answer is C.", DRUGS, multiple=False) is None
    assert extract("A and C", DRUGS, multiple=False) is None
    assert extract("A and C", DRUGS, multiple=True) == "AC"
    assert extract("Yes", {"A": "Yes", "B": "yes"}, multiple=False) is None


@given(
    st.one_of(st.text(max_size=200), st.lists(st.sampled_from(WORDS), max_size=30).map("".join)),
    st.sampled_from(SCHEMES),
    st.booleans(),
)
@settings(max_examples=1500)
def test_any_text_gives_letters_of_options_or_none(answer: str, options: dict[str, str], multiple: bool) -> None:
    found = extract(answer, options, multiple)
    if found is not None:
        assert found and set(found) <= set(options)
        assert list(found) == sorted(set(found))
        assert multiple or len(found) == 1


@pytest.mark.parametrize("letter", "ABCD")
def test_options_in_any_order_of_the_mapping(letter: str) -> None:
    turned = dict(reversed(DRUGS.items()))
    assert extract(DRUGS[letter], turned, multiple=False) == letter
    assert extract(f"{letter}. {DRUGS[letter]}", turned, multiple=False) == letter


LONG: dict[str, Any] = {
    "one letter": "A" * 100_000,
    "letters": "A, " * 33_333,
    "lower case": "a " * 50_000,
    "claims": "答案是A。" * 20_000,
    "claims without letters": "答案" * 50_000,
    "is": "is " * 33_333,
    "choices": "选" * 100_000,
    "fillings": "答案" + "是" * 100_000,
    "spaces": "答案 " + " " * 100_000 + "A",
    "lines": "\n" * 100_000,
    "lines of letters": "A\n" * 50_000,
    "lines of options": "A. Insulin\nB. Metformin\n" * 4_000,
    "brackets": "(" * 100_000,
    "closing brackets": "A" + ")" * 100_000,
    "dashes": "A" + "-" * 100_000,
    "texts": "Insulin " * 12_000,
    "verdicts": "A正确，B错误；" * 12_000,
    "Chinese": "的" * 100_000,
    "of": "的病" * 50_000 + "是A",
    "thoughts": "<think>" * 14_000,
    "ended thoughts": "<think></think>" * 7_000,
    "questions": "A\n问题：" * 20_000,
    "boxed": "\\boxed{" * 14_000,
    "accents": "a" + "\u0301\u0316" * 50_000,
    "quotes": "'" * 100_000,
    "denied": "不选A" * 30_000,
    "or": "A or " * 20_000,
    "rest": "rule out " * 11_000,
    "stars": "**A** " * 16_000,
    "wait": "wait " * 20_000,
    "numbers": "1. " * 33_333,
}


@pytest.mark.parametrize("name", LONG)
def test_long_answers_take_linear_time(name: str) -> None:
    begin = time.process_time()
    extract(LONG[name], DRUGS, multiple=True)
    assert time.process_time() - begin < 5


def test_a_long_random_answer_takes_linear_time() -> None:
    draw = random.Random(0)
    answer = "".join(draw.choices(WORDS, k=40_000))
    begin = time.process_time()
    for options in SCHEMES:
        extract(answer, options, multiple=False)
    assert time.process_time() - begin < 20
