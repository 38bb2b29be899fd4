"""Evaluation questions that texts hold: whole, with a changed word, across a cut; and texts that only look like it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrl.config.corpus import DecontaminateConfig, EvaluationSetConfig
from rayrl.corpus.contamination import CONTAMINATED, Decontaminate, Item, read_items
from rayrl.corpus.records import texts
from rayrl.errors import UserError

LONG_ZH = (
    "患者男性，五十六岁，反复胸骨后压榨样疼痛三个月，活动后加重，休息后缓解，最可能的诊断是什么？"  # 41 characters
)
SHORT_ZH = "下列哪种药物可引起牙龈增生的不良反应"  # 18
TINY_ZH = "胃溃疡好发部位"  # 7
LONG_EN = (
    "A 56 year old man has had crushing chest pain on exertion for three months that is relieved by rest; which drug "
    "should be given first to relieve an acute attack of this condition?"
)
SHORT_EN = "Which of these drugs is most likely to cause overgrowth of the gums in children with seizures?"  # 17 words
QUESTIONS = (LONG_ZH, SHORT_ZH, TINY_ZH, LONG_EN, SHORT_EN)
TOPIC_ZH = "牙龈增生是苯妥英钠常见的不良反应，服用该药物的患者中约有一半可出现，停药后可逐渐恢复，应注意口腔卫生。"
TOPIC_EN = "Gum overgrowth is a well known effect of phenytoin, a drug for seizures that children often take for years."


def decontaminate(*questions: str, **more: object) -> Decontaminate:
    config = DecontaminateConfig.model_validate(
        {"sets": [{"name": "exam", "path": "exam.jsonl"}], "least_units": 5, **more}
    )
    return Decontaminate(config, [Item("exam", number, question) for number, question in enumerate(questions)])


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_found_within_a_text(question: str) -> None:
    step = decontaminate(*QUESTIONS)
    for text in (
        question,
        f"第3题：{question} A.硝苯地平 B.苯妥英钠。答案：B，解析见后文。",
        f"Review the basics first. {question.upper()} The answer is below.",
        question.replace("，", "\n").replace(" ", "  "),
    ):
        assert [(item.question, share) for item, share in step.find(text)] == [(question, 1.0)]


@pytest.mark.parametrize("question", [LONG_ZH, SHORT_ZH, LONG_EN, SHORT_EN])
def test_one_changed_word_hides_no_question_of_14_units_or_more(question: str) -> None:
    step = decontaminate(*QUESTIONS)
    parts = question.split(" ") if " " in question else list(question)
    for at in range(len(parts)):
        changed = (" " if " " in question else "").join([*parts[:at], "甲", *parts[at + 1 :]])
        found = step.find(f"前文。{changed} 后文。")
        assert [item.question for item, _ in found] == [question], changed


def test_a_short_question_is_looked_for_as_it_is_and_a_tiny_one_not_at_all() -> None:
    step = decontaminate(TINY_ZH, "发热原因")
    assert len(step.find("问：胃溃疡好发部位？答：胃小弯。")) == 1
    assert step.find("胃溃疡的好发部位是胃小弯") == []
    assert step.find("发热原因") == []
    assert len(decontaminate("发热原因", least_units=4).find("发热原因待查")) == 1


def test_a_text_on_the_same_topic_is_not_taken_for_the_question() -> None:
    step = decontaminate(*QUESTIONS)
    for text in (TOPIC_ZH, TOPIC_EN, SHORT_ZH[:8] + "。" + SHORT_ZH[12:], "患者男性，五十六岁，反复咳嗽三个月。", ""):
        assert step.find(text) == [], text


def test_the_share_by_hand() -> None:
    step = decontaminate("a b c d e f", ngram=3, share=0.5)  # abc bcd cde def
    assert [share for _, share in step.find("x b c d e x")] == [0.5]
    assert step.find("x b c d x e f") == []
    assert [share for _, share in step.find("b c d x d e f x")] == [0.5]
    assert decontaminate("a b c d e f", ngram=3, share=0.6).find("x b c d e x") == []


def test_the_step_drops_and_lists_what_holds_questions_also_across_a_cut() -> None:
    rows = [
        {"id": "in", "text": f"第一题。{SHORT_ZH}"},
        {"id": "topic", "text": TOPIC_ZH},
        {"id": "cut", "before": LONG_ZH[:20], "text": LONG_ZH[20:]},
        {"id": "beside", "text": TOPIC_ZH, "after": SHORT_ZH},
        {"id": "two", "text": LONG_EN + SHORT_ZH},
    ]
    result = decontaminate(*QUESTIONS)(texts(rows))
    assert result.table["id"].to_pylist() == ["topic"]
    assert result.dropped == [(n, CONTAMINATED) for n in (0, 2, 3, 4)]
    assert [(row["id"], row["set"], row["item"]) for row in result.listed] == [
        *[("in", "exam", 1), ("cut", "exam", 0), ("beside", "exam", 1), ("two", "exam", 1), ("two", "exam", 3)]
    ]
    assert result.listed[0]["question"] == SHORT_ZH and result.listed[0]["share"] == 1.0
    nothing = Decontaminate(DecontaminateConfig(sets=[EvaluationSetConfig(name="a", path="b")]), [])
    assert nothing(texts(rows)).table.num_rows == 5


def test_questions_are_read_from_every_form(tmp_path: Path) -> None:
    rows = [
        {"question": "甲？", "query": "乙？"},
        {"query": " ", "text": "丙？"},
        {"other": 1},
        ["x"],
        {"instruction": ["丁？"]},
    ]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "c.json").write_text(json.dumps({"dataset": rows}), "utf-8")
    pq.write_table(pa.table({"question": ["甲？", None, ""], "text": [None, "丙？", None]}), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.json", "c.json"):
        found = read_items(EvaluationSetConfig(name="s", path=str(tmp_path / name)))
        assert found == [Item("s", 0, "甲？"), Item("s", 1, "丙？"), Item("s", 4, "丁？")], name
    found = read_items(EvaluationSetConfig(name="s", path=str(tmp_path / "d.parquet")))
    assert found == [Item("s", 0, "甲？"), Item("s", 1, "丙？")]
    (one,) = read_items(EvaluationSetConfig(name="s", path=str(tmp_path / "a.jsonl"), fields=["query"]))
    assert one.question == "乙？"


def test_sets_that_cannot_be_read_or_hold_no_question_are_named(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", b"{"), ("b.json", b"[1"), ("c.parquet", b"no"), ("d.jsonl", b"\xff\xfe\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"evaluation set 'exam': .*{name} can't be read"):
            read_items(EvaluationSetConfig(name="exam", path=str(tmp_path / name)))
    with pytest.raises(UserError, match="can't be read"):
        read_items(EvaluationSetConfig(name="exam", path=str(tmp_path / "none.jsonl")))
    (tmp_path / "e.jsonl").write_text('{"prompt": "x"}\n', "utf-8")
    with pytest.raises(UserError, match="none of 1 rows has one of question, query, instruction, text"):
        read_items(EvaluationSetConfig(name="exam", path=str(tmp_path / "e.jsonl")))
