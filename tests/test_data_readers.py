"""Readers of conversations, prompts and documents: every format to the same records, from every kind of file."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_cases import SHAPES, TALK, jsonl, messages, one_element_lists, sharegpt, source, table, with_history

from rayrl.config.sources import SourceConfig
from rayrl.data.prompts import read_prompts
from rayrl.data.readers import (
    Read,
    Rejected,
    check_read,
    read_comparisons,
    read_conversations,
    read_documents,
    read_prompt_rows,
    read_rankings,
    values,
)
from rayrl.data.readers.choices import CHOICES
from rayrl.data.readers.dialogues import DIALOGUES
from rayrl.data.readers.files import builtin_sets
from rayrl.errors import UserError
from rayrl.types import Conversation, Document, Origin, PromptRow


@pytest.mark.parametrize("shape", SHAPES)
def test_every_format_gives_the_same_conversation(shape: str, tmp_path: Path) -> None:
    single = TALK[:1]
    file = jsonl(tmp_path / "rows.jsonl", [SHAPES[shape](TALK), SHAPES[shape](single)])
    read = read_conversations(source(file, kind="real"))
    assert read.rejected == []
    assert [row.messages for row in read.rows] == [messages(TALK), messages(single)]
    origins = [
        Origin("test", "real", form, str(file), line) for line, form in ((1, "conversation"), (2, "instruction"))
    ]
    assert [row.origin for row in read.rows] == read.origins == origins
    assert [row.id for row in read.rows] == ["test-1", "test-2"]
    assert all(not row.fields for row in read.rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_answer_becomes_the_reference_of_a_prompt(shape: str, tmp_path: Path) -> None:
    read = read_prompt_rows(source(jsonl(tmp_path / "rows.jsonl", [SHAPES[shape](TALK)])))
    assert read.rows == [PromptRow("test-1", messages(TALK)[:-1], TALK[-1][1])]  # type: ignore[arg-type]
    assert read.origins[0].form == "conversation"


def test_single_questions(tmp_path: Path) -> None:
    rows = [
        one_element_lists(TALK),
        {"instruct": "没有发热。", "output": "多休息，多喝水。"},  # safety rows of CMtMedQA's test set
        {"id": 7, "text": "原文", "query": "没有发热。", "response": "多休息，多喝水。"},  # HuatuoGPT-II's rewriting
        {"title": "头痛", "ask": "没有发热。", "answer": "多休息，多喝水。"},
        {"instruction": "没有", "input": "发热。", "output": "多休息，多喝水。"},
        {"system": "你是医生。", "question": "没有发热。", "answer": "多休息，多喝水。"},
    ]
    found = [read_conversations(source(jsonl(tmp_path / "row.jsonl", [row]))).rows[0] for row in rows]
    last = messages(TALK[-1:])
    assert [row.messages for row in found[:4]] == [last] * 4
    assert found[4].messages[0]["content"] == "没有\n发热。"
    assert found[5].messages == [{"role": "system", "content": "你是医生。"}, *last]
    assert [dict(row.fields) for row in found[2:4]] == [{"text": "原文"}, {"title": "头痛"}]
    assert found[2].id == "7"


def test_questions_without_an_answer_are_prompts_and_no_conversations(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", [{"id": "k", "query": "胃痛挂什么科？", "label": "就诊"}])
    assert read_prompt_rows(source(file)).rows == [
        PromptRow("k", [{"role": "user", "content": "胃痛挂什么科？"}], None, {"label": "就诊"})
    ]
    reasons = [row.reason for row in read_conversations(source(file)).rejected]
    assert reasons == ["the dialogue ends with the user's turn, expected the assistant's answer"]


def test_lines_of_a_doctorglm_answer_are_one_answer(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "d.jsonl", [{"paragraph": [{"q": "问", "a": ["一", "二"]}]}])
    assert read_conversations(source(file)).rows[0].messages[1]["content"] == "一\n二"


def test_built_in_sets_go_by_their_names() -> None:
    read = read_prompt_rows(source("consultations-en"))
    assert read.rejected == []
    assert read.rows == read_prompts("consultations-en").rows
    for name in [name for name in builtin_sets() if name.startswith(("sft", "preferences", "consultations"))]:
        read_it = read_comparisons if name.startswith("preferences") else read_conversations
        kept: Read[Any] = read_it(source(name))
        assert kept.rejected == [] and len(kept.rows) > 100, name
        assert len({row.id for row in kept.rows}) == len(kept.rows)
    prompts = {row.prompt.id for row in read_comparisons(source("preferences-en")).rows}
    assert all("-p" in name for name in prompts), "pairs of one prompt share its id, the row's `group`"
    assert read_conversations(source("sft-distilled-en")).rows[0].origin.kind == "distilled"


CONTAINERS: dict[str, Any] = {
    "rows.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "lines-called.json": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "list.json": lambda rows: json.dumps(rows, ensure_ascii=False),
    "list-indented.json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=2),
    "by-key.json": lambda rows: json.dumps({str(n): row for n, row in enumerate(rows)}, ensure_ascii=False),
    "under-a-name.json": lambda rows: json.dumps({"train": rows}, ensure_ascii=False),
    "no-suffix": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1),
    "dialogues.txt": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16"])
@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("shape", ["huatuogpt", "sharegpt", "CMtMedQA"])
def test_json_is_known_by_its_content(shape: str, name: str, encoding: str, tmp_path: Path) -> None:
    rows = [SHAPES[shape](TALK), SHAPES[shape](TALK[:1])]
    (tmp_path / name).write_bytes(CONTAINERS[name](rows).encode(encoding))
    read = read_conversations(source(tmp_path / name))
    assert read.rejected == []
    assert [row.messages for row in read.rows] == [messages(TALK), messages(TALK[:1])]
    assert [origin.line for origin in read.origins] == [1, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16"])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("csv", ";")])
def test_tables_in_every_encoding(encoding: str, suffix: str, delimiter: str, tmp_path: Path) -> None:
    rows = [
        {"department": "内科", "title": "头痛", "ask": "我头痛，\n三天了。", "answer": '医生说："休息"'},
        {"department": "", "title": "发热", "ask": "没有发热。", "answer": "多喝水；多休息\t。"},
    ]
    read = read_conversations(source(table(tmp_path / f"t.{suffix}", rows, encoding, delimiter)))
    assert read.rejected == []
    assert [[turn["content"] for turn in row.messages] for row in read.rows] == [[r["ask"], r["answer"]] for r in rows]
    assert [dict(row.fields) for row in read.rows] == [{"department": "内科", "title": "头痛"}, {"title": "发热"}]
    assert [row.origin.line for row in read.rows] == [2, 4], "the first row has a line break in a cell"


def test_an_encoding_can_be_said(tmp_path: Path) -> None:
    rows = [{"question": "頭痛三天了", "answer": "多休息"}]
    file = jsonl(tmp_path / "big5.jsonl", rows, "big5")
    assert read_conversations(source(file, encoding="big5")).rows[0].messages[0]["content"] == "頭痛三天了"
    assert read_conversations(source(file)).rows == []
    with pytest.raises(ValueError, match="knows no encoding 'utf-9'"):
        source(file, encoding="utf-9")


def test_damaged_bytes_cost_their_rows_and_not_the_encoding(tmp_path: Path) -> None:
    good = [json.dumps(SHAPES["huatuogpt"](TALK), ensure_ascii=False) for _ in range(3)]
    for encoding, name in (("utf-8", "UTF-8"), ("gbk", "GB18030")):
        lines = [line.encode(encoding) for line in good]
        lines[1] = lines[1].replace("头".encode(encoding), b"\xff\xff", 1)
        (tmp_path / "d.jsonl").write_bytes(b"\n".join(lines))
        read = read_conversations(source(tmp_path / "d.jsonl"))
        assert [row.messages for row in read.rows] == [messages(TALK)] * 2
        assert [(bad.line, bad.reason.split(" byte")[0]) for bad in read.rejected] == [(2, f"not {name}:")]
        (tmp_path / "d.json").write_bytes(b"[" + b",\n".join(lines) + b"]")
        read = read_conversations(source(tmp_path / "d.json"))
        assert [row.origin.line for row in read.rows] == [1, 3]
        assert [(bad.line, bad.reason[: len(name) + 15]) for bad in read.rejected] == [(2, f"not {name}: byte 0xff")]
        (tmp_path / "d.csv").write_bytes(b"question,answer\n" + "头痛,休息\n".encode(encoding) + b"\xff\xff,x\n")
        read = read_conversations(source(tmp_path / "d.csv"))
        assert len(read.rows) == 1 and read.rejected[0].line == 3 and f"not {name}" in read.rejected[0].reason


def test_one_line_of_megabytes_has_its_encoding_too(tmp_path: Path) -> None:
    rows = [{"question": "english only", "answer": "a" * 50_000}] * 20
    rows += [{"question": "我头痛三天了。" * 500, "answer": "多休息。" * number} for number in range(1, 150)]
    text = json.dumps(rows, ensure_ascii=False)
    for encoding in ("utf-8", "gb18030"):
        raw = text.encode(encoding)
        (tmp_path / "long.json").write_bytes(raw)
        read = read_conversations(source(tmp_path / "long.json"))
        assert len(raw) > 2_000_000 and len(read.rows) == 169 and not read.rejected
        raw = raw[: len(raw) - 20_001] + b"\xff" + raw[len(raw) - 20_000 :]
        (tmp_path / "long.json").write_bytes(raw)
        assert len(read_conversations(source(tmp_path / "long.json")).rows) == 168, "one damaged byte costs one row"


def test_other_languages_are_not_taken_for_chinese(tmp_path: Path) -> None:
    rows = [{"question": "J'ai très mal à la tête, dès le réveil.", "answer": "Reposez-vous, évitez l'écran."}]
    assert (
        read_conversations(source(jsonl(tmp_path / "f.jsonl", rows, "latin-1"))).rejected[0].reason[:10] == "not UTF-8:"
    )
    assert len(read_conversations(source(tmp_path / "f.jsonl", encoding="latin-1")).rows) == 1


def test_a_json_list_that_breaks_off_keeps_what_was_whole(tmp_path: Path) -> None:
    rows = [SHAPES["sharegpt"](TALK), SHAPES["sharegpt"](TALK), SHAPES["sharegpt"](TALK)]
    for indent in (None, 2):
        text = json.dumps(rows, ensure_ascii=False, indent=indent)
        (tmp_path / "cut.json").write_text(text[: len(text) * 5 // 6], "utf-8")
        read = read_conversations(source(tmp_path / "cut.json"))
        assert len(read.rows) == 2
        assert [(bad.line, bad.reason[:8]) for bad in read.rejected] == [(3, "not JSON")]


def test_parquet_and_saved_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [SHAPES["messages"](TALK), SHAPES["messages"](TALK[:1])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.disable_progress_bars()
    dialogues = [SHAPES["huatuogpt on disk"](TALK), SHAPES["huatuogpt on disk"](TALK[:1])]
    split = datasets.Dataset.from_list(dialogues)
    split.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": split, "test": split.select([1])}).save_to_disk(str(tmp_path / "both"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    jsonl(tmp_path / "hub" / "train.jsonl", dialogues)
    for path in (tmp_path / "rows.parquet", tmp_path / "one", tmp_path / "both", f"hf:{tmp_path / 'hub'}"):
        read = read_conversations(source(path))
        assert [row.messages for row in read.rows] == [messages(TALK), messages(TALK[:1])], path
        assert [(origin.file, origin.line) for origin in read.origins] == [(str(path), 1), (str(path), 2)]
    assert len(read_conversations(source(tmp_path / "both", split="test")).rows) == 1
    with pytest.raises(UserError, match="has no split 'valid', but train, test"):
        read_conversations(source(tmp_path / "both", split="valid"))
    with pytest.raises(UserError, match="can't be loaded"):
        read_conversations(source(f"hf:{tmp_path / 'nothing-here'}"))


def test_samplers_of_one_stage_training(tmp_path: Path) -> None:
    corpus = {"Meidcal_Web_Corpus_en": [["q1", "a1"], ["q2", "a2", "q3", "a3"]], "SFT_data": [["q4", "a4"]]}
    (tmp_path / "data.json").write_text(json.dumps(corpus))
    read = read_conversations(source(tmp_path / "data.json"))
    assert [len(row.messages) for row in read.rows] == [2, 4, 2]
    assert [row.fields["corpus"] for row in read.rows] == [*["Meidcal_Web_Corpus_en"] * 2, "SFT_data"]


def test_a_folder_is_read_in_order_with_what_stages_write_left_out(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    jsonl(tmp_path / "b" / "x.jsonl", [sharegpt(TALK)])
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as out:
        out.write(json.dumps(with_history(TALK)) + "\n")
    jsonl(tmp_path / "rejected.jsonl", [{"file": "x", "line": 1, "reason": "y"}])
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / ".hidden.json").write_text("{")
    (tmp_path / "notes.pdf").write_text("%PDF")
    read = read_conversations(source(tmp_path))
    assert read.rejected == []
    assert [Path(origin.file).name for origin in read.origins] == ["a.jsonl.gz", "x.jsonl"]
    assert [row.id for row in read.rows] == ["test-a.jsonl-1", "test-b/x-1"]


def test_ids_are_kept_and_made_unique(tmp_path: Path) -> None:
    rows = [{**sharegpt(TALK), "id": row_id} for row_id in ("a", "a", 3, "", "b\nc", True, "x" * 500, "a")]
    read = read_conversations(source(jsonl(tmp_path / "r.jsonl", rows)))
    assert [row.id for row in read.rows] == ["a", "a@2", "3", "test-4", "test-5", "test-6", "test-7", "a@8"]


def test_what_a_row_says_besides_becomes_fields(tmp_path: Path) -> None:
    row = {
        **with_history(TALK),
        "id": 5,
        "cate1": "内科",
        "none": None,
        "tags": ["a", 1],
        "nan": float("nan"),
        "fields": {"age": 3},
    }
    found = read_conversations(source(jsonl(tmp_path / "r.jsonl", [row]))).rows[0]
    assert dict(found.fields) == {"cate1": "内科", "tags": ["a", 1], "fields": {"age": 3}}
    row = {"messages": messages(TALK), "fields": {"age": 3, "kind": "distilled"}, "cate1": "内科"}
    found = read_conversations(source(jsonl(tmp_path / "r.jsonl", [row]))).rows[0]
    assert dict(found.fields) == {"cate1": "内科", "age": 3, "kind": "distilled"}
    assert found.origin.kind == "distilled", "the source doesn't say, the row does"
    assert read_conversations(source(tmp_path / "r.jsonl", kind="real")).rows[0].origin.kind == "real"


def test_columns_and_format_can_be_said(tmp_path: Path) -> None:
    file = table(tmp_path / "t.csv", [{"Beschwerde": "我头痛。", "Rat": "休息。", "question": "notes"}])
    columns = {"question": "Beschwerde", "answer": "Rat"}
    read = read_conversations(source(file, columns=columns))
    assert [turn["content"] for turn in read.rows[0].messages] == ["我头痛。", "休息。"]
    row = {"instruction": "一", "output": "二", "messages": messages(TALK)}
    file = jsonl(tmp_path / "both.jsonl", [row])
    assert len(read_conversations(source(file)).rows[0].messages) == 4
    assert len(read_conversations(source(file, format="alpaca")).rows[0].messages) == 2
    with pytest.raises(UserError, match=r"format 'text' isn't of conversations: auto, huatuogpt"):
        read_conversations(source(file, format="text"))
    with pytest.raises(UserError, match=r"format 'qa' isn't of documents"):
        read_documents(source(file, format="qa"))


def test_mended_dialogues(tmp_path: Path) -> None:
    turns = [("doctor", "您好"), ("patient", "头痛"), ("patient", "三天"), ("doctor", "休息"), ("patient", "谢谢")]
    file = jsonl(tmp_path / "r.jsonl", [{"turns": [{"role": role, "content": text} for role, text in turns]}])
    assert read_conversations(source(file)).rows == []
    assert read_conversations(source(file, mend_turns=True)).rows[0].messages == messages([("头痛\n三天", "休息")])


def test_documents(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_bytes("第一章\r\n咳嗽。\r\n \t\r\n\f第二章\r\n发热。\r\n".encode("gbk"))
    first, second = "第一章\n咳嗽。", "第二章\n发热。"
    read = read_documents(source(book, kind="real"))
    origin = Origin("test", "real", "text", str(book), 1)
    assert read.rows[0] == Document("test-1", first, origin)
    assert [(row.text, row.origin.line) for row in read.rows] == [(first, 1), (second, 5)]
    whole = read_documents(source(book, format="text")).rows
    assert [(row.text, row.origin.line) for row in whole] == [(f"{first}\n \t\n\n{second}", 1)]
    (tmp_path / "b.txt").write_text("A second file.\n\nOf two paragraphs.")
    folder = read_documents(source(tmp_path)).rows
    assert [row.id for row in folder] == ["test-b", "test-book"], "a folder of text files: each is one document"
    assert len(read_documents(source(tmp_path, format="paragraphs")).rows) == 4
    rows = [{"id": "n1", "text": "Cough.", "title": "C"}, {"content": "Fever."}, {"text": "x" * 2_000_000}, {"q": 1}]
    read = read_documents(source(jsonl(tmp_path / "t.jsonl", rows)))
    assert [(row.id, len(row.text), dict(row.fields)) for row in read.rows] == [
        ("n1", 6, {"title": "C"}),
        ("test-2", 6, {}),
        ("test-3", 2_000_000, {}),
    ]
    assert [bad.reason for bad in read.rejected] == ["no text: the keys q, expected 'text'"]


def test_sources_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04....")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "x.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    for name, words in (
        ("gone", r"there is no .*gone \(built-in sets: .*consultations-en"),
        ("empty", "holds no .jsonl"),
        ("book.xlsx", "save its tables as CSV"),
        ("x.parquet", "can't be read as Parquet"),
        ("x.jsonl.gz", "can't be read"),
    ):
        with pytest.raises(UserError, match=words):
            read_conversations(source(tmp_path / name))


def test_too_many_rejected_rows_stop_a_stage(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", [*[sharegpt(TALK)] * 9, {"conversations": []}])
    read = read_conversations(source(file))
    check_read(read, 0.1)
    with pytest.raises(UserError, match=r"test: 1 of 10 rows were rejected, more than the 9.0% of sft.max"):
        check_read(read, 0.09, "sft.max")
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match="test holds no rows"):
        check_read(read_conversations(source(tmp_path / "none.jsonl")), 1.0)


def test_reasons_never_quote_what_may_be_a_patients_words(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("我头痛三天了,有没有发热\n我咳嗽,休息\n", "utf-8")  # a table without a header
    rejected = read_conversations(source(tmp_path / "t.csv")).rejected
    assert rejected == [
        Rejected(
            str(tmp_path / "t.csv"),
            2,
            "no format of conversations has the keys none that looks like one and 2 others; name `format` or `columns`",
        )
    ]
    rows = [{"messages": [{"role": "我头痛三天了，昨天开始发热，请问医生应该怎么办", "content": "x"}]}]
    reason = read_conversations(source(jsonl(tmp_path / "r.jsonl", rows))).rejected[0].reason
    assert reason.startswith("turn 1 has the role text, expected one like user")


def test_a_source_says_what_is_wrong_with_itself() -> None:
    with pytest.raises(ValueError, match="unknown key 'pth'; did you mean 'path'"):
        SourceConfig.model_validate({"name": "a", "pth": "x"})
    assert SourceConfig(name="a", path="x").weight == 1.0
    assert isinstance(Conversation("a", [], Origin("a", "real", "text", "f", 1)).fields, dict)


DOCUMENT = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")
EXAMPLES = re.findall(r"^\| [^|]+ \| `(\w+)` \| `(\{.+\})` \| (.+) \|$", DOCUMENT, re.MULTILINE)


@pytest.mark.parametrize(("name", "row", "becomes"), EXAMPLES, ids=[example[1][:40] for example in EXAMPLES])
def test_the_documentation_tells_the_truth(name: str, row: str, becomes: str, tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text(row, "utf-8")
    expected = becomes.replace("⏎", "\n")
    for said in (name, "auto"):
        where = source(tmp_path / "row.json", format=said)
        if " > " in becomes:
            assert [" > ".join(found.answers) for found in read_rankings(where).rows] == [expected]
        else:
            texts = [[turn["content"] for turn in found.messages] for found in read_conversations(where).rows]
            assert [" → ".join(turns) for turns in texts] == [expected]


def test_the_documentation_names_every_format() -> None:
    formats = get_args(SourceConfig.model_fields["format"].annotation)
    assert [name for name in formats if f"`{name}`" not in DOCUMENT and f": {name}`" not in DOCUMENT] == []
    assert {name for name, _, _ in EXAMPLES} >= set(DIALOGUES) | set(CHOICES)


def talks(number: int) -> Iterator[str]:
    """Lines of JSONL; some broken, some blank."""
    for i in range(number):
        turns = messages([("user", f"头痛{i}天"), ("assistant", f"休息{i}天")])
        yield json.dumps({"messages": turns}, ensure_ascii=False) if i % 9 else ("{broken", "")[i % 2]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_large_file_is_read_line_by_line_to_the_same_rows(
    encoding: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    raw = "\n".join(talks(100)).encode(encoding)
    file.write_bytes(gzip.compress(raw) if packed else raw)
    whole = read_conversations(source(file))
    assert len(whole.rows) == 88 and len(whole.rejected) == 6
    monkeypatch.setattr(values, "LARGE_BYTES", 1)
    if encoding != "utf-16":  # its line feeds can't be found from its bytes
        monkeypatch.setattr(values, "read_text", None)
    assert read_conversations(source(file)) == whole


def test_a_large_file_s_encoding_is_told_from_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LARGE_BYTES", 1)
    plain = json.dumps({"messages": messages([("user", "My head hurts"), ("assistant", "Rest")])})
    file = tmp_path / "rows.jsonl"
    file.write_bytes((plain + "\n").encode() * 20_000 + "\n".join(talks(100)).encode("gb18030"))
    read = read_conversations(source(file))
    assert len(read.rows) == 20_088 and len(read.rejected) == 6


def test_a_large_file_is_packed_by_what_it_holds_not_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "LARGE_BYTES", 1)
    raw = "\n".join(talks(100)).encode()
    plain, packed = tmp_path / "plain.jsonl.gz", tmp_path / "packed.jsonl"
    plain.write_bytes(raw)
    packed.write_bytes(gzip.compress(raw))
    assert len(read_conversations(source(plain)).rows) == len(read_conversations(source(packed)).rows) == 88


def test_a_large_file_that_is_cut_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LARGE_BYTES", 1)
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(talks(5000)).encode())[:-200])
    with pytest.raises(UserError, match="can't be read"):
        read_conversations(source(file))


def test_memory_doesnt_grow_with_a_stream(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    line = json.dumps({"messages": messages([("user", "头痛" * 200), ("assistant", "休息" * 200)])}, ensure_ascii=False)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(values.LARGE_BYTES // len(line.encode()) + 1):
            out.write(line + "\n")
    script = (
        "import re, sys\n"
        "from rayrl.config.sources import SourceConfig\n"
        "from rayrl.data.readers import stream_conversations\n"
        # Not getrusage: its peak begins with that of the process that started this one.
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024\n"
        "rows = stream_conversations(SourceConfig(name='s', path=sys.argv[1]))\n"
        "before = peak()\n"
        "print(sum(1 for _ in rows), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    rows, grown_mb = map(int, done.stdout.split())
    assert rows == values.LARGE_BYTES // len(line.encode()) + 1
    assert grown_mb < 40, "the file has 64 MB"
