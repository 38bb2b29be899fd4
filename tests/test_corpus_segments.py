"""Sentences and segments: nothing lost, nothing too long, neighbours that are the neighbouring text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.config.corpus import SegmentConfig
from rayrl.corpus.records import texts
from rayrl.corpus.segments import Segment, Segments, segments
from rayrl.corpus.sentences import pieces, sentences

PARTS = [
    *("头痛三天。", "吃什么药？", "多喝水！”", "2.", "1. 发热", "38.5℃，", "……", "“疼吗？”他问", "体温", "（见图1。）"),
    *("The knee hurts. ", "Dr. Smith came, e.g. twice", " at 3.5 mg; ", "Why?", "\nNo one knows!", "β-блок. ", "."),
    *("\n", "\n\n", " ", "\u3000", "😀", "é"),
]
LANGUAGES = ["zh", "zh-Hant", "en", "ja", "ko", "und", "ru", "de", "xx"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=30).map("".join),
    st.text(max_size=200),
    st.text("\n ", max_size=30),
    st.integers(1, 400).map("痛".__mul__),
    st.integers(1, 200).map("no end ".__mul__),
)
CONFIGS = st.builds(
    SegmentConfig,
    max_chars=st.sampled_from([1, 2, 7, 40, 800]),
    neighbours=st.integers(0, 3),
    neighbour_chars=st.sampled_from([1, 5, 200]),
)
many = settings(max_examples=200, deadline=None)


@many
@given(TEXTS, st.sampled_from(LANGUAGES))
def test_sentences_are_the_text(text: str, language: str) -> None:
    found = sentences(text, language)
    assert "".join(found) == text
    assert all(found)
    assert all(one.strip() for one in found[1:])


@many
@given(TEXTS, st.integers(1, 50))
def test_pieces_are_the_sentence_and_short(text: str, max_chars: int) -> None:
    found = pieces(text, max_chars)
    assert "".join(found) == text
    assert all(0 < len(one) <= max_chars for one in found)


@many
@given(TEXTS, st.sampled_from(LANGUAGES), CONFIGS)
def test_segments_are_the_text_and_contexts_their_neighbours(text: str, language: str, config: SegmentConfig) -> None:
    found = segments(text, language, config)
    assert "".join(one.text for one in found) == text
    at = 0
    for one in found:
        assert 0 < len(one.text) <= config.max_chars
        assert len(one.before) <= config.neighbour_chars and len(one.after) <= config.neighbour_chars
        assert text[:at].endswith(one.before)
        at += len(one.text)
        assert text[at:].startswith(one.after)
    if config.neighbours:
        assert all(one.before for one in found[1:]) and all(one.after for one in found[:-1])
    else:
        assert not any(one.before or one.after for one in found)


@pytest.mark.parametrize(
    "expected",
    [
        ["头痛三天。", "吃什么药？", "多喝水！"],
        ["他说：“我头痛。”", "然后走了。"],
        ['患者问:"疼吗?"', '医生说:"不疼。"'],
        ["等等……", "还有吗？？！", "真的"],
        ["（见图1。）", "后文；", "再后文"],
        ["一、症状\n", "1. 发热。\n", "2. 多喝水。", "3.休息"],
        ["体温38.5℃，血压120/80mmHg，每次0.25g。", "A.头孢 B.青霉素"],
        ["住院治疗.", "出院后复查."],
        ["第一段\n\n", "第二段"],
    ],
)
def test_chinese_sentences(expected: list[str]) -> None:
    assert sentences("".join(expected), "zh") == expected
    assert sentences("".join(expected), "zh-Hant") == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Smith saw him at noon. ", "Then he left."],
        ["Take e.g. aspirin, 2.5 mg twice. ", "It helps! ", "Why?"],
        ["Fig. 2 shows the naïve T cells — β and γ. ", "They differ."],
        ["The first paragraph.\n\n", "The second one. ", "It ends"],
        ["😀 Hi there. ", "😀😀 Bye now. ", "End."],
    ],
)
def test_english_sentences(expected: list[str]) -> None:
    assert sentences("".join(expected), "en") == expected


def test_other_languages_and_unknown_ones_have_sentences_too() -> None:
    assert sentences("Привет. Как дела?", "ru") == ["Привет. ", "Как дела?"]
    assert sentences("日本語。テスト", "ja") == ["日本語。", "テスト"]
    for language in ("und", "xx"):
        assert sentences("It hurts. Why is that?", language) == ["It hurts. ", "Why is that?"]


def test_a_long_sentence_is_cut_after_the_last_comma_of_its_second_half() -> None:
    assert pieces("头痛，发热，咳嗽乏力很久", 8) == ["头痛，发热，", "咳嗽乏力很久"]
    assert pieces("头，发热咳嗽乏力很久", 8) == ["头，发热咳嗽乏力", "很久"]
    assert pieces("one two three", 9) == ["one two ", "three"]


def test_windows_by_hand() -> None:
    one, two, three, four = "头痛三天。", "吃什么药？", "多喝水，多休息。", "再来。"
    config = SegmentConfig(max_chars=10, neighbours=1, neighbour_chars=4)
    assert segments(one + two + three + four, "zh", config) == [
        Segment("", one + two, "多喝水，"),
        Segment("什么药？", three, four),
        Segment("多休息。", four, ""),
    ]
    assert segments("", "zh", config) == []


def test_more_neighbours_reach_further() -> None:
    found = segments("甲甲。乙乙。丙丙。丁丁。", "zh", SegmentConfig(max_chars=3, neighbours=2))
    assert found[1] == Segment("甲甲。", "乙乙。", "丙丙。丁丁。")
    assert found[3] == Segment("乙乙。丙丙。", "丁丁。", "")


def test_a_paragraph_ends_a_window_that_is_half_full() -> None:
    config = SegmentConfig(max_chars=12, neighbours=0)
    assert [one.text for one in segments("头痛三天了\n吃药。\n", "zh", config)] == ["头痛三天了\n", "吃药。\n"]
    assert [one.text for one in segments("头痛\n吃药。\n休息。", "zh", config)] == ["头痛\n吃药。\n", "休息。"]
    assert [one.text for one in segments("头痛\n吃药休息。", "zh", config)] == ["头痛\n吃药休息。"]


def test_an_empty_line_is_no_neighbour() -> None:
    text = "The first paragraph is here.\n\nThe second one."
    found = segments(text, "en", SegmentConfig(max_chars=30))
    assert [one.text for one in found] == ["The first paragraph is here.\n\n", "The second one."]
    assert found[1].before == "The first paragraph is here.\n\n"


def test_the_step_makes_rows_of_segments() -> None:
    rows = [
        {
            "id": "d1",
            "document": "d1",
            "text": "头痛三天。吃什么药？",
            "language": "zh",
            "source": "s",
            "density": 0.5,
            "key": bytes(16),
        },
        {"id": "d2", "document": "d2", "text": "", "language": "en", "source": "s"},
        {"id": "d3", "document": "d3", "text": "It hurts.", "language": "en", "source": "t"},
    ]
    result = Segments(SegmentConfig(max_chars=5))(texts(rows))
    table = result.table.select(["id", "document", "text", "before", "after", "source", "density", "key"]).to_pylist()
    assert [(row["id"], row["document"], row["text"]) for row in table] == [
        ("d1.0", "d1", "头痛三天。"),
        ("d1.1", "d1", "吃什么药？"),
        ("d3.0", "d3", "It "),
        ("d3.1", "d3", "hurts"),
        ("d3.2", "d3", "."),
    ]
    assert (table[0]["after"], table[1]["before"]) == ("吃什么药？", "头痛三天。")
    assert table[1]["density"] == 0.5 and table[1]["key"] == bytes(16)
    assert result.notes == {"segments": 5}


def test_a_batch_without_text_makes_no_segments() -> None:
    step = Segments(SegmentConfig())
    assert step(texts([])).table.num_rows == 0
    assert step(texts([{"id": "a", "text": "", "language": "zh"}])).table.num_rows == 0


def test_a_sentence_without_end_takes_time_by_its_length() -> None:
    began = time.process_time()
    assert len(segments("痛" * 4_000_000, "zh", SegmentConfig(max_chars=80))) == 50_000
    assert time.process_time() - began < 8
