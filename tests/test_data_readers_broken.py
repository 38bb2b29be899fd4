"""Broken rows: each kind has its reason, and ten thousand damaged ones crash no reader."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from reader_cases import SHAPES, TALK, alternate, jsonl, messages, one_element_lists, source, table

from rayrl.data.readers import (
    Read,
    read_comparisons,
    read_conversations,
    read_documents,
    read_prompt_rows,
    read_rankings,
    write_rejected,
)
from rayrl.data.readers.rows import check_row


def talk(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


MB = "咳" * (1 << 20)
WHOLE = talk(("user", "a"), ("assistant", "b"))
ENDS = "the dialogue ends with the user's turn, expected the assistant's answer"
BROKEN: list[tuple[Any, str]] = [
    (7, "the row is a number, expected a mapping"),
    ([], "the dialogue is empty"),
    ({"messages": "text"}, "messages is text, expected a list"),
    ({"messages": []}, "the dialogue is empty"),
    ({"messages": ["hello"]}, "turn 1 is text, expected a mapping with a role and a text"),
    ({"messages": [{"content": "a"}]}, "turn 1 has no role"),
    ({"messages": [{"role": "user"}]}, "turn 1 has no text"),
    (talk(("nurse", "a")), "turn 1 has the role 'nurse', expected one like user, human, patient, assistant, doctor"),
    (talk(("user", "a"), ("assistant", " \n")), "turn 2, the assistant's, is empty"),
    (talk(("user", "a"), ("assistant", ["b"])), "turn 2, the assistant's, is a list, expected text"),
    (
        talk(("user", "a"), ("assistant", MB)),
        f"turn 2, the assistant's, has {1 << 20} characters, more than max_chars, 100000",
    ),
    (talk(("user", "a\x00"), ("assistant", "b")), "turn 1, the user's, has the control character U+0000 at position 2"),
    (talk(("user", "\ud83d"), ("doctor", "b")), "turn 1, the user's, has the control character U+D83D at position 1"),
    (talk(("user", "a"), ("user", "b"), ("assistant", "c")), "the turns number 1 and 2 are both the user's"),
    (talk(("user", "a"), ("assistant", "b"), ("user", "c")), ENDS),
    (talk(("user", "a")), ENDS),
    (talk(("assistant", "a")), "nobody asks: the dialogue has no user's turn"),
    (
        talk(("doctor", "a"), ("patient", "b"), ("doctor", "c")),
        "the dialogue begins with the assistant's turn, expected the user's (see mend_turns)",
    ),
    (talk(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2 is a system message, which may only come first"),
    ({**talk(("user", "a")), "reference": ""}, "reference is empty"),
    ({**WHOLE, "fields": [1]}, "fields is a list, expected a mapping"),
    ({**WHOLE, "image": MB}, f"field 'image' has {(1 << 20) + 13} characters, more than max_chars"),
    ({**WHOLE, "x": ["\udc00"]}, "field 'x' holds half a character"),
    ({"data": ["问：a", "b"]}, "turn 2 has no speaker in front (问： or 答：)"),
    ({"data": ["问：a", "答："]}, "turn 2, the assistant's, is empty"),
    ({"data": ["问：a", "答：b", "问：c"]}, ENDS),
    ({"data": ["问：a", 3]}, "turn 2 is a number, expected text"),
    ({"json_dialogue": '["问：a", '}, "json_dialogue is text that is neither JSON nor a Python literal"),
    ({"instruction": "a", "output": None}, "key 'output' is missing, or null"),
    ({"instruction": ["a", "b"], "output": "c"}, "instruction is a list of 2, expected text or a list of one"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "item 1 of history isn't a pair of question and answer"),
    ({"instruction": "a", "output": "b", "history": {"c": 1}}, "history is a mapping, expected a list of pairs"),
    ({"instruction": "a", "output": "b", "history": [["c", ""]]}, "turn 2, the assistant's, is empty"),
    ({"paragraph": [{"q": "a"}]}, "item 1 of paragraph isn't a mapping with 'q' and 'a'"),
    ({"paragraph": [{"q": "a", "a": []}]}, "turn 2, the assistant's, is a list, expected text"),
    ({"question": "", "answer": "b"}, "turn 1, the user's, is empty"),
    (
        {"frage": "a", "我头痛": "b"},
        "no format of conversations has the keys frage and 1 others; name `format` or `columns`",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN, ids=lambda value: str(value)[:40])
def test_broken_rows_have_their_reason(row: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    read = read_conversations(source(tmp_path / "r.jsonl"))
    assert (read.rows, [(bad.line, bad.reason) for bad in read.rejected]) == ([], [(1, reason), (2, reason)])


def test_rejected_rows_are_written_with_file_line_and_reason(tmp_path: Path) -> None:
    good = SHAPES["sharegpt"](TALK)
    lines = [json.dumps(good), json.dumps(good)[:-9], "", json.dumps({"conversations": []})]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    read = read_conversations(source(tmp_path / "r.jsonl"))
    write_rejected(tmp_path / "out.jsonl", read.rejected)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(row["file"], row["line"], row["reason"][:8]) for row in written] == [
        (str(tmp_path / "r.jsonl"), 2, "not JSON"),
        (str(tmp_path / "r.jsonl"), 4, "the dial"),
    ]
    assert len(read.rows) == 1


def test_an_open_quote_costs_one_line_of_a_table(tmp_path: Path) -> None:
    good = '我头痛,"休息，\n多喝水"\n'
    (tmp_path / "t.csv").write_text(f'question,answer\n{good}我发热,"休息\n我胃痛,少吃\n我咳嗽,喝水\n', "utf-8")
    read = read_conversations(source(tmp_path / "t.csv"))
    assert [(bad.line, bad.reason) for bad in read.rejected] == [
        (4, "a quote is opened and never closed, or stands where none may")
    ]
    assert [row.origin.line for row in read.rows] == [2, 5, 6]
    assert read.rows[-1].messages == messages([("我咳嗽", "喝水")])
    (tmp_path / "t.csv").write_text(f"question,answer\n{good * 3}a,b,c\n{good}", "utf-8")
    read = read_conversations(source(tmp_path / "t.csv"))
    assert [(bad.line, bad.reason) for bad in read.rejected] == [(8, "the row has 3 cells, the header 2")]
    assert [row.origin.line for row in read.rows] == [2, 4, 6, 9]


def test_a_cell_of_many_lines_is_never_read_as_rows(tmp_path: Path) -> None:
    long = '"I have\npain, fever\nhelp",answer,one too many\n'
    (tmp_path / "t.csv").write_text(f"question,answer\n{long}My knee hurts,rest\n", "utf-8")
    read = read_conversations(source(tmp_path / "t.csv"))
    assert [(bad.line, bad.reason) for bad in read.rejected] == [(2, "the row has 3 cells, the header 2")]
    assert [row.origin.line for row in read.rows] == [5]


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (['我发热,"休息', "我胃痛,少吃", '我咳嗽,"喝水"'], [2]),  # the next quote would close it
        (['我发热,"休息', "我胃痛,少吃", '我咳嗽,"喝,水"'], [2]),
        (['我发热,"休息', "我胃痛,少吃", '"我咳嗽",喝水', "我头痛,睡觉"], [2]),
        (['我发热,"休息"吧', "我胃痛,少吃"], [2]),
        ([f'"问{n},答' for n in range(5)], [2, 3, 4, 5, 6]),
    ],
)
def test_an_open_quote_takes_no_other_patients_row(lines: list[str], bad: list[int], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["question,answer", *lines, "最后,完了\n"]), "utf-8")
    read = read_conversations(source(tmp_path / "t.csv"))
    assert [row.line for row in read.rejected] == bad
    assert [row.origin.line for row in read.rows] == [n for n in range(2, len(lines) + 3) if n not in bad]
    assert all(len(row.messages) == 2 and "\n" not in str(row.messages) for row in read.rows)


def test_damaged_utf16_is_rejected_where_it_is(tmp_path: Path) -> None:
    text = "question,answer\n我头痛三天,休息\n我胃痛,少吃\n".encode("utf-16-le")
    at = text.index("痛三".encode("utf-16-le"))
    damaged = text[:at] + b"\x00\xd8" + text[at + 2 :]  # half of a pair
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe" + damaged)
    read = read_conversations(source(tmp_path / "t.csv"))
    assert [(bad.line, bad.reason[:9]) for bad in read.rejected] == [(2, "not UTF-8")]
    assert [row.origin.line for row in read.rows] == [3]


def test_reasons_never_hold_what_a_patient_said(tmp_path: Path) -> None:
    said = "I have had it since 2009"
    rows = [
        {"id": "a", "messages": [{"role": said, "content": "x"}]},
        {"id": "b", "messages": [{"role": "user", "content": "x"}], said: 1},
        {"id": "c", "messages": [{"role": "user", "content": "x", said: 2}]},
        {"id": "d", "messages": [{"role": "user", "content": "x"}], "fields": {"note": "half \ud83d"}},
        {"id": "e", "messages": [{"role": "我从二零零九年开始就有这个病了", "content": "x"}]},
    ]
    reasons = [check_row(row) for row in rows]
    assert all(isinstance(reason, str) for reason in reasons)
    assert not any("2009" in str(reason) or "二零零九" in str(reason) for reason in reasons)
    assert reasons[3] == "fields hold half of a UTF-16 pair"
    assert "'doctor'" in str(check_row({"id": "f", "messages": [{"role": "doctor", "content": "x"}]}))


def test_the_worst_files_end_soon(tmp_path: Path) -> None:
    """No step is quadratic in a file's length, however odd."""
    began = time.process_time()
    for name, raw in {
        "brackets.jsonl": b"[" * 1_000_000,
        "spaces.txt": b" " * 1_000_000 + b"x",
        "lines.txt": b"a\n\n" * 100_000,
        "number.json": b"9" * 1_000_000,
        "quotes.csv": b'question,answer\n"' + b"a,b\n" * 100_000,
        "commas.csv": b"," * 1_000_000,
        "nothing.json": b"",
        "mark.json": b"\xef\xbb\xbf",
        "zeros.bin": b"\x00" * 1_000_000,
        "high.tsv": b"\xff" * 1_000_000,
        "history.jsonl": json.dumps({"question": "a", "answer": "b", "history": "[" * 90_000}).encode(),
        "labels.jsonl": json.dumps({"question": "a", "answer": "b", "history": "-" * 90_000 + "1"}).encode(),
    }.items():
        (tmp_path / name).write_bytes(raw)
        for read in (read_conversations, read_comparisons, read_prompt_rows):
            found: Read[Any] = read(source(tmp_path / name))
            assert not found.rows or name == "quotes.csv"
        read_documents(source(tmp_path / name))
    assert time.process_time() - began < 30


JUNK: list[Any] = [
    None, True, 0, -2.5, float("nan"), float("inf"), 10**400, "", " ", "x", "问：", "\x00", "\x85", "\ud800",
    "Human:", "a" * 200_000, [], [[]], [None], ["x"], ["x", "y"], [["q", "a"]], {}, {"a": 1}, {"role": "user"},
    {"role": [], "content": {}},
    {"from": "gpt", "value": "x"}, [{"role": "user", "content": "x"}], "[[1", "['a']", "{}", "\\", "__import__('os')",
]  # fmt: skip


def _damaged(row: Any, draw: random.Random) -> Any:
    """The row with one value, somewhere inside, replaced, removed, doubled or renamed."""
    row = copy.deepcopy(row)
    node = row
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return row
        key = draw.choice(keys)
        if isinstance(node[key], dict | list) and draw.random() < 0.7:
            node = node[key]
            continue
        action = draw.random()
        if action < 0.6:
            node[key] = draw.choice(JUNK)
        elif action < 0.75:
            del node[key]
        elif isinstance(node, list):
            node.insert(key, draw.choice(JUNK + node))
        else:
            node[draw.choice([*node, "role", "id", "data", "chosen", "history", "\ud800", "new"])] = node.pop(key)
        return row


def _rows() -> list[dict[str, Any]]:
    pairs = {"messages": messages(TALK)[:-1], "chosen": "a", "rejected": "b", "margin": 1, "fields": {"x": 1}}
    return [
        *(shape(TALK) for shape in SHAPES.values()),
        one_element_lists(TALK),
        {"id": 1, "text": "原文", "query": "问", "response": "答"},
        pairs,
        {"conversations": SHAPES["sharegpt"](TALK)["conversations"][:-1], "chosen": "a", "rejected": "b"},
        {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: b"},
        {"instruction": "q", "input": "", "output": ["a", "b", "c"], "history": [["q", "a"]]},
        {"id": "0", "query": "q", "history": "[['a', 'b']]", "rank1": "a", "rank2": "b", "rank3": "c", "rank4": "d"},
    ]


def test_ten_thousand_damaged_rows_crash_nothing(tmp_path: Path) -> None:
    """Each is taken or has a reason, none is lost, and what is taken keeps every rule."""
    draw = random.Random(0)
    (tmp_path / "items.json").write_text(
        json.dumps({"0": {"query": "q", "history": [["a", "b"]], **{f"response_{n}": t for n, t in enumerate("abcd")}}})
    )
    shapes = _rows()
    total, taken = 0, 0
    for number, row in enumerate(shapes):
        lines = []
        for _ in range(10_000 // len(shapes) + 1):
            damaged = row
            for _ in range(draw.randint(0, 3)):
                damaged = _damaged(damaged, draw)
            raw = bytearray(json.dumps(damaged, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
            for _ in range(draw.choice([0, 0, 0, 1, 3])):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            if draw.random() < 0.1:
                del raw[draw.randrange(len(raw)) :]
            lines.append(bytes(raw).replace(b"\n", b" ") or b"{")
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(b"\n".join(lines) + b"\n")
        filled = sum(bool(line.strip()) for line in lines)
        total += filled
        readers: list[Any] = [read_conversations, read_prompt_rows, read_rankings, read_comparisons, read_documents]
        for reader in readers:
            read = reader(source(file, items=str(tmp_path / "items.json")))
            places = {(origin.file, origin.line) for origin in read.origins}
            assert len(places) + len(read.rejected) == filled, (reader.__name__, number)
            assert len(read.origins) == len(read.rows)
            assert all(bad.reason and bad.reason.isprintable() and len(bad.reason) < 300 for bad in read.rejected)
            taken += len(read.rows)
            _check_records(reader, read)
    assert total >= 10_000 and taken > 5_000


def _check_records(reader: Any, read: Read[Any]) -> None:
    assert len({row.id if hasattr(row, "id") else id(row) for row in read.rows}) == len(read.rows)
    for row in read.rows:
        fields = row.fields if hasattr(row, "fields") else row.prompt.fields
        json.dumps(dict(fields), ensure_ascii=False).encode()
        if reader is read_conversations:
            talk = [turn for turn in row.messages if turn["role"] != "system"]
            assert alternate(talk) and all(turn["content"].strip() for turn in talk)
        elif reader is read_prompt_rows:
            assert row.messages[-1]["role"] == "user"
        elif reader is read_rankings:
            assert len(set(row.answers)) == len(row.answers) == len(row.ranks) > 1


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "txt"])
def test_damaged_files_of_every_kind_crash_nothing(suffix: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = [{"question": "我头痛，\n三天。", "answer": '说："休息"', "n": number} for number in range(5)]
    whole = {
        "csv": lambda: table(tmp_path / "x", rows, draw.choice(["utf-8", "gbk", "utf-16"])),
        "tsv": lambda: table(tmp_path / "x", rows, "gb18030", "\t"),
        "json": lambda: jsonl(tmp_path / "x", [rows]),
        "txt": lambda: jsonl(tmp_path / "x", [TALK]),
    }
    for _ in range(150):
        raw = bytearray(whole[suffix]().read_bytes())
        for _ in range(draw.randint(1, 6)):
            raw[draw.randrange(len(raw))] = draw.choice(
                [0, 9, 10, 13, 34, 44, 91, 123, 0x81, 0xFF, draw.randrange(256)]
            )
        del raw[draw.randrange(len(raw) // 2, len(raw)) :]
        (tmp_path / f"x.{suffix}").write_bytes(raw)
        for reader in (read_conversations, read_documents, read_comparisons):
            found: Read[Any] = reader(source(tmp_path / f"x.{suffix}"))
            assert all(bad.reason for bad in found.rejected)
