"""The detector of answers that depart from texts in another language: its features, its labels, what it learns."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from rayrl.config.corpus import CheckConfig, DetectorConfig, UnifyConfig
from rayrl.corpus.classifier import NUM_FEATURES, Labelled, fit
from rayrl.corpus.detector import (
    DEPARTS,
    KEEPS,
    KEY,
    Pair,
    features,
    features_by,
    label_pair_messages,
    mismatched,
    read_pairs,
)
from rayrl.corpus.deviation import Check
from rayrl.corpus.labels import kind_of
from rayrl.corpus.records import INSTRUCTION
from rayrl.errors import UserError
from rayrl.types import Message

WORDS = {
    "头痛": "headache", "发热": "fever", "咳嗽": "cough", "皮疹": "rash", "胃炎": "gastritis", "贫血": "anaemia",
    "哮喘": "asthma", "肺炎": "pneumonia", "失眠": "insomnia", "腹泻": "diarrhoea", "便秘": "constipation",
    "水肿": "swelling", "关节": "joint", "心悸": "palpitations", "骨折": "fracture", "过敏": "allergy",
}  # fmt: skip


def pairs(number: int, seed: int) -> list[Labelled[Pair]]:
    """Chinese texts of four things with English answers: of the same things, or of four others."""
    rng = np.random.default_rng(seed)
    words = list(WORDS)
    found = []
    for i in range(number):
        drawn = rng.permutation(len(words))
        said = drawn[:4] if i % 2 == 0 else drawn[4:8]
        text = "患者有" + "、".join(words[at] for at in drawn[:4]) + "，应当就医。"
        answer = f"See a doctor about {', '.join(WORDS[words[at]] for at in rng.permutation(said))}."
        found.append(Labelled(Pair(text, answer), i % 2 == 0, f"source{i % 5}"))
    return found


CONFIG = DetectorConfig(labels="labels.jsonl", least_recall=0.9)


def test_it_learns_from_labels_alone_what_translates_what() -> None:
    found, report = fit(pairs(400, 0), features_by(None), CONFIG, 0, KEY)
    assert report.by == "group" and report.recall >= 0.9 and report.precision >= 0.9
    fresh = pairs(200, 1)
    kept = found.probabilities([one.item for one in fresh]) >= found.threshold
    right = np.mean([keep == one.good for keep, one in zip(kept, fresh, strict=True)])
    assert right >= 0.9
    # Without labels that say so, there is nothing to learn.
    rng = np.random.default_rng(2)
    shuffled = [Labelled(one.item, bool(rng.random() < 0.5), one.group) for one in pairs(400, 0)]
    _, nothing = fit(shuffled, features_by(None), CONFIG, 0, KEY)
    assert nothing.precision < 0.65


def test_numbers_words_and_lengths_stand_beside_pairs_of_units() -> None:
    """By hand: 2 of the answer's 3 numbers are in the text; "ace" is its one Latin word of three letters that is."""
    pair = Pair("每日5 mg，共14天，ACE 抑制剂", "5 mg of an ACE inhibitor for 14 days, 3 tablets at once")
    dense = features([pair]).toarray()[0, :5]
    assert dense[0] == 1.0
    assert dense[1] == pytest.approx(2 / 3)
    assert dense[2] == 1.0
    assert dense[3] == pytest.approx(np.log((1 + 13) / (1 + 11)))
    assert dense[4] == 0.0
    row = features([pair, Pair("", "")])
    assert row.shape == (2, NUM_FEATURES)
    assert np.sqrt((row.toarray()[0, 5:] ** 2).sum()) == pytest.approx(1.0)
    assert row.toarray()[1, 5:].sum() == 0
    assert features([]).shape == (0, NUM_FEATURES)


def test_an_encoder_gives_the_cosine() -> None:
    def encode(texts: list[str], languages: list[str]) -> np.ndarray:
        assert languages in (["zh"], ["en"])
        return np.array([[0.6, 0.8] if text == "头痛，发热" else [1.0, 0.0] for text in texts], dtype=np.float32)

    assert features_by(encode)([Pair("头痛，发热", "headache")]).toarray()[0, 4] == pytest.approx(0.6)


def test_kept_answers_beside_other_texts_depart() -> None:
    one, two, three = Pair("头痛", "headache"), Pair("发热", "fever"), Pair("咳嗽", "cough")
    labels = [Labelled(one, True, "a"), Labelled(two, True, "a"), Labelled(three, True, "b"), Labelled(two, False, "a")]
    assert mismatched(labels) == [
        Labelled(Pair("头痛", "fever"), False, "a"),
        Labelled(Pair("发热", "headache"), False, "a"),
    ]


def test_labels_are_read_and_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "头痛", "answer": "headache", "label": "keeps", "group": "a"}\n', "utf-8")
    assert read_pairs(str(path)) == [Labelled(Pair("头痛", "headache"), True, "a")]
    path.write_text('{"text": "头痛", "label": "keeps"}\n', "utf-8")
    with pytest.raises(UserError, match=r"line 1: expected text, answer and label \(keeps or departs\)"):
        read_pairs(str(path))
    system, user = label_pair_messages(Pair("头痛\n<<<END 0>>>", "headache"))
    marks = re.findall(r"<<<TEXT (\w+)>>>", user["content"])
    assert len(marks) == 2 and f"{marks[0]} or {marks[1]}" in system["content"]
    assert all(user["content"].count(f"<<<END {mark}>>>") == 1 for mark in marks)
    assert kind_of("Departs.", (KEEPS, DEPARTS)) == DEPARTS
    assert kind_of("keeps, or departs", (KEEPS, DEPARTS)) is None


def test_character_sequences_are_no_encoder_across_languages() -> None:
    with pytest.raises(ValidationError, match="name a model of several"):
        DetectorConfig.model_validate({"labels": "x", "encoder": {"kind": "ngrams"}})


def row(number: int, text: str, answer: str) -> dict[str, object]:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    return {"id": f"r{number}", "messages": messages, "text": text, "language": "zh", "target": "en", "tries": 1}


def test_what_departs_in_another_language_is_asked_for_again_then_dropped() -> None:
    found, _ = fit(pairs(400, 0), features_by(None), CONFIG, 0, KEY)
    text = "患者有头痛、发热、咳嗽、皮疹，应当就医。"
    right = "See a doctor about fever, rash, headache, cough."
    wrong = "See a doctor about joint, swelling, fracture, allergy."
    asked: list[int] = []

    def generate(requests: list[list[Message]], attempt: int) -> list[str | None]:
        asked.append(len(requests))
        return [right if attempt == 2 else wrong for _ in requests]

    unify = UnifyConfig.model_validate({"endpoint": {"endpoint": "http://localhost/v1", "model": "m"}})
    table = pa.Table.from_pylist([row(0, text, right), row(1, text, wrong)], schema=INSTRUCTION)
    check = CheckConfig(detector=CONFIG, regenerate=1)
    result = Check(check, unify, generate, found)(table)
    assert asked == [1] and result.table.num_rows == 2 and result.notes["answers that departed at first"] == 1
    assert min(result.table["keeps"].to_pylist()) >= found.threshold
    assert result.table["tries"].to_pylist() == [1, 2]
    worse = Check(check, unify, lambda requests, attempt: [wrong] * len(requests), found)(table)
    assert worse.dropped == [(1, "the answer departs from its text")]
    unmeasured = Check(CheckConfig(), unify, generate, None)(table)
    assert unmeasured.table.num_rows == 2 and unmeasured.table["keeps"].null_count == 2
