"""Readers on real rows, written in each format's own shape. Skipped where the data isn't there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_cases import SHAPES, SHARED, alternate, jsonl, messages, source, table

from rayrl.data.readers import check_read, read_comparisons, read_conversations, read_documents, read_rankings

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / f"{name}.jsonl").read_text("utf-8").splitlines()]


def dialogues() -> list[list[tuple[str, str]]]:
    """Real consultations as (question, answer) pairs, those that alternate from the patient to the doctor."""
    found = []
    for row in rows("dialogues_multi"):
        texts = [turn["content"] for turn in row["turns"]]
        if row["turns"][0]["role"] == "patient" and len(texts) % 2 == 0:
            found.append(list(zip(texts[::2], texts[1::2], strict=True)))
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
@pytest.mark.parametrize("shape", SHAPES)
def test_real_consultations_come_back_from_every_format(shape: str, encoding: str, tmp_path: Path) -> None:
    talks = dialogues()
    assert len(talks) > 700
    read = read_conversations(source(jsonl(tmp_path / "d.jsonl", map(SHAPES[shape], talks), encoding)))
    assert read.rejected == []
    assert [row.messages for row in read.rows] == [messages(talk) for talk in talks]
    (tmp_path / "d.json").write_text(
        json.dumps([SHAPES[shape](t) for t in talks], ensure_ascii=False, indent=1), encoding
    )
    assert [row.messages for row in read_conversations(source(tmp_path / "d.json")).rows] == [
        row.messages for row in read.rows
    ]


def test_every_real_dialogue_can_be_mended() -> None:
    path = SHARED / "dialogues_multi.jsonl"
    strict, mended = read_conversations(source(path)), read_conversations(source(path, mend_turns=True))
    assert {bad.reason for bad in strict.rejected} == {
        "the dialogue begins with the assistant's turn, expected the user's (see mend_turns)",
        "the dialogue ends with the user's turn, expected the assistant's answer",
    }
    assert len(strict.rows) + len(strict.rejected) == len(mended.rows) == 952
    assert all(alternate(row.messages) for row in mended.rows)  # type: ignore[arg-type]
    assert {"department", "language"} <= set(mended.rows[0].fields)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16"])
def test_real_questions_from_tables(encoding: str, tmp_path: Path) -> None:
    """As Toyhom's CSV files, which are GBK: department, title, ask, answer."""
    asked = [
        {
            "department": row["department"],
            "title": row.get("title", ""),
            "ask": row["question"],
            "answer": row["answer"],
        }
        for row in rows("qa_single")
    ]
    kept = [
        row for row in asked if "".join(row.values()).encode("gbk", "ignore").decode("gbk") == "".join(row.values())
    ]
    assert len(kept) > 3000
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        read = read_conversations(source(table(tmp_path / f"q.{suffix}", kept, encoding, delimiter), kind="real"))
        assert read.rejected == []
        assert [[turn["content"] for turn in row.messages] for row in read.rows] == [
            [row["ask"], row["answer"]] for row in kept
        ]
        assert {row.origin.form for row in read.rows} == {"instruction"}


def test_real_questions_from_parquet_and_one_element_lists(tmp_path: Path) -> None:
    asked = rows("qa_single")
    lists = [{"instruction": [row["question"]], "input": [""], "output": [row["answer"]]} for row in asked]
    pq.write_table(pa.Table.from_pylist(lists), tmp_path / "q.parquet")
    read = read_conversations(source(tmp_path / "q.parquet"))
    assert read.rejected == [] and len(read.rows) == len(asked) == 3460
    assert all(a.messages == messages([(b["question"], b["answer"])]) for a, b in zip(read.rows, asked, strict=True))


def test_real_preferences(tmp_path: Path) -> None:
    read = read_comparisons(source(SHARED / "preferences.jsonl"))
    check_read(read, 0.01)
    assert len(read.rows) > 1140
    by_id = {row["id"]: row for row in rows("preferences")}
    assert all(
        (row.answer_a, row.answer_b) == (by_id[row.id]["chosen"], by_id[row.id]["rejected"]) for row in read.rows
    )
    harmless = [row for row in read.rows if row.id.startswith("pf-hh")]
    assert any(len(row.prompt.messages) > 3 for row in harmless), "dialogues as text become turns"
    shaped = [
        {"conversations": [{"from": "human", "value": r["prompt"]}], "chosen": r["chosen"], "rejected": r["rejected"]}
        for r in by_id.values()
        if not r["id"].startswith("pf-hh")
    ]
    again = read_comparisons(source(jsonl(tmp_path / "p.jsonl", shaped)))
    assert len(again.rows) == len(read.rows) - len(harmless)


def test_real_answers_through_the_label_tool(tmp_path: Path) -> None:
    """Two models' and two rewritten answers a question, ranked at random, saved as the tool saves."""
    draw, items, given, saved = random.Random(0), {}, [], []
    for number, row in enumerate(rows("huatuo_eval_single")):
        answers = [*row["model_outputs"].values()]
        answers += [answer[: len(answer) // 2] for answer in answers]
        ranks = draw.sample([1, 2, 3, 4], 4)
        items[str(number)] = {
            "query": row["question"], "history": [], **{f"response_{n}": text for n, text in enumerate(answers)},
        }  # fmt: skip
        given.append(ranks)
        saved.append([number, row["question"], [], *(answers[rank - 1] for rank in ranks)])
    (tmp_path / "input.json").write_text(json.dumps(items, ensure_ascii=False), "utf-8")
    columns = ["id", "query", "history", "rank1", "rank2", "rank3", "rank4"]
    pd.DataFrame(saved, columns=columns).to_csv(tmp_path / "r.tsv", sep="\t", index=False)
    read = read_rankings(source(tmp_path / "r.tsv"))
    assert read.rejected == []
    assert [row.ranks for row in read.rows] == given


def test_real_corpus(tmp_path: Path) -> None:
    read = read_documents(source(SHARED / "corpus_raw.jsonl"))
    check_read(read, 0.001)
    assert len(read.rows) > 14_400 and {"language", "genre", "domain"} <= set(read.rows[0].fields)
    books = [row.text for row in read.rows if row.fields["language"] == "zh"][:300]
    for number, text in enumerate(books):
        (tmp_path / f"{number:03}.txt").write_bytes(text.encode("gb18030"))
    again = read_documents(source(tmp_path))
    assert [row.text.split() for row in again.rows] == [text.split() for text in books]
