"""Reading prompts: what is taken, what is rejected and why, and that nothing crashes the reader."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.data.prompts import (
    ReadResult,
    Rejected,
    check_rejected,
    check_row,
    read_prompts,
    write_rejected,
)
from rayrl.errors import UserError
from rayrl.types import PromptRow

SHARED = Path(__file__).parents[2] / "shared" / "data"
USER = {"role": "user", "content": "My knee hurts."}
GOOD: dict[str, Any] = {"id": "a", "messages": [USER]}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    return path


def test_a_whole_row_is_read(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "You are a doctor."},
        {"role": "user", "content": "我头痛。"},
        {"role": "assistant", "content": "多久了？"},
        {"role": "user", "content": "三天。\n没有发热。"},
    ]
    fields = {"missing_info": ["duration"], "department": "neurology"}
    file = jsonl(tmp_path / "p.jsonl", {"id": "zh-1", "messages": turns, "reference": "请休息。", "fields": fields})
    result = read_prompts(file)
    assert result == ReadResult(
        str(file),
        [PromptRow("zh-1", turns, "请休息。", fields)],
        [],
        {"zh-1": (str(file), 1)},  # type: ignore[arg-type]
    )


BAD_ROWS: list[tuple[Any, str]] = [
    ([], "the row is a list, expected a mapping"),
    (None, "the row is null, expected a mapping"),
    ({"messages": [USER]}, "key 'id' is missing"),
    ({"id": "a"}, "key 'messages' is missing"),
    ({**GOOD, "id": 7}, "id is a number, expected text"),
    ({**GOOD, "id": True}, "id is a truth value, expected text"),
    ({**GOOD, "id": " "}, "id is empty"),
    ({**GOOD, "id": "a\nb"}, "id has the control character U+000A at position 2"),
    ({**GOOD, "missing_info": []}, "unknown key 'missing_info': what rewards should see belongs in 'fields'"),
    ({**GOOD, "messages": "hello"}, "messages is text, expected a list"),
    ({**GOOD, "messages": []}, "messages is empty"),
    ({**GOOD, "messages": ["hello"]}, "message 1 is text, expected a mapping with 'role' and 'content'"),
    ({**GOOD, "messages": [{"role": "user"}]}, "message 1 has no 'content'"),
    ({**GOOD, "messages": [{"content": "x"}]}, "message 1 has no 'role'"),
    (
        {**GOOD, "messages": [{"role": "doctor", "content": "x"}]},
        "message 1 has the role 'doctor', expected one of system, user, assistant",
    ),
    (
        {**GOOD, "messages": [{"role": ["user"], "content": "x"}]},
        "message 1 has the role a list, expected one of system, user, assistant",
    ),
    (
        {**GOOD, "messages": [USER, {"role": "system", "content": "x"}, USER]},
        "message 2 is a system message, which may only come first",
    ),
    (
        {**GOOD, "messages": [USER, {"role": "assistant", "content": "x"}]},
        "the conversation ends with the assistant's turn, expected the user's",
    ),
    (
        {**GOOD, "messages": [{"role": "system", "content": "x"}]},
        "the conversation ends with the system's turn, expected the user's",
    ),
    ({**GOOD, "messages": [{**USER, "name": "Bo"}]}, "message 1 has the unknown key 'name'"),
    ({**GOOD, "messages": [{"role": "user", "content": " \n"}]}, "content of message 1 is empty"),
    ({**GOOD, "messages": [{"role": "user", "content": None}]}, "content of message 1 is null, expected text"),
    (
        {**GOOD, "messages": [{"role": "user", "content": "ab\x00"}]},
        "content of message 1 has the control character U+0000 at position 3",
    ),
    (
        {**GOOD, "messages": [{"role": "user", "content": "\ud83d half"}]},
        "content of message 1 has the control character U+D83D at position 1",
    ),
    ({**GOOD, "reference": ["x"]}, "reference is a list, expected text"),
    ({**GOOD, "reference": ""}, "reference is empty"),
    ({**GOOD, "fields": "x"}, "fields is text, expected a mapping"),
    ({**GOOD, "fields": []}, "fields is a list, expected a mapping"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_each_rule_has_its_reason(row: Any, reason: str) -> None:
    assert check_row(row) == reason


def test_nulls_count_as_left_out() -> None:
    row = {**GOOD, "reference": None, "fields": {"a": None, "b": 0}, "extra": None}
    assert check_row(row) == PromptRow("a", [USER], None, {"b": 0})  # type: ignore[list-item]
    assert check_row({**GOOD, "fields": None}) == PromptRow("a", [USER])  # type: ignore[list-item]


def test_bad_lines_are_put_aside_and_the_reading_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    good = [json.dumps({**GOOD, "id": name}).encode() for name in ("one", "two", "one")]
    file.write_bytes(
        b"\xef\xbb\xbf" + good[0] + b"\r\n"  # byte order mark and CRLF
        b"\n"  # blank
        b'{"id": "x",\n'
        b'{"id": "\xff"}\n' + good[2] + b"\n" + b"[" * 100_000 + b"\n" + b"9" * 5000 + b"\n" + good[1]  # no newline
    )
    result = read_prompts(file)
    assert [row.id for row in result.rows] == ["one", "two"]
    assert [(bad.line, bad.reason.split(":")[0]) for bad in result.rejected] == [
        (3, "not JSON"),
        (4, "not UTF-8"),
        (5, f"id 'one' is already taken by {file}, line 1"),
        (6, "not readable as JSON"),
        (7, "not readable as JSON"),
    ]
    assert result.rejected[1].reason == "not UTF-8: byte 9 of the line is 0xff"
    assert result.places["two"] == (str(file), 8)


def test_parquet_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "messages": [USER], "reference": "Rest.", "fields": {"missing_info": ["age"], "n": 1}},
        {"id": "b", "messages": [USER, {"role": "assistant", "content": "Hm."}, USER], "fields": {"n": 2}},
        {"id": "c", "messages": [], "reference": None, "fields": None},
        {"id": "a", "messages": [USER]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=2)
    lines, table = read_prompts(jsonl(tmp_path / "p.jsonl", *rows)), read_prompts(tmp_path / "p.parquet")
    assert table.rows == lines.rows
    assert [row.id for row in table.rows] == ["a", "b"]
    assert dict(table.rows[1].fields) == {"n": 2}
    assert [bad.line for bad in table.rejected] == [bad.line for bad in lines.rejected] == [3, 4]
    assert table.rejected[0].reason == lines.rejected[0].reason == "messages is empty"


def test_parquet_maps_become_fields(tmp_path: Path) -> None:
    schema = pa.schema(
        {
            "id": pa.string(),
            "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "fields": pa.map_(pa.string(), pa.string()),
        }
    )
    rows = [{"id": "a", "messages": [USER], "fields": [("department", "ENT")]}]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "p.parquet")
    assert dict(read_prompts(tmp_path / "p.parquet").rows[0].fields) == {"department": "ENT"}


def test_parquet_text_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    ids = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    messages = pa.array([[USER]] * 3)
    pq.write_table(pa.table({"id": ids, "messages": messages}), tmp_path / "p.parquet")
    result = read_prompts(tmp_path / "p.parquet")
    assert [row.id for row in result.rows] == ["a", "c"]
    assert result.rejected == [Rejected(str(tmp_path / "p.parquet"), 2, "not UTF-8: byte 0xff")]


def test_a_folder_is_read_in_order_without_its_own_rejects(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", {**GOOD, "id": "b"})
    pq.write_table(pa.Table.from_pylist([{**GOOD, "id": "a"}]), tmp_path / "a.parquet")
    jsonl(tmp_path / "rejected.jsonl", {"file": "x", "line": 1, "reason": "y"})
    (tmp_path / "manifest.json").write_text("{}")
    jsonl(tmp_path / ".b.jsonl", "half-written")
    jsonl(tmp_path / "c.jsonl", {**GOOD, "id": "a"})
    result = read_prompts(tmp_path)
    assert [row.id for row in result.rows] == ["a", "b"]
    assert result.rejected == [
        Rejected(str(tmp_path / "c.jsonl"), 1, f"id 'a' is already taken by {tmp_path / 'a.parquet'}, line 1")
    ]


def test_missing_and_wrong_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,messages\n")
    (tmp_path / "p.parquet").write_text("not parquet")
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("none.jsonl", "the file doesn't exist"),
        ("p.csv", "not from '.csv'"),
        ("p.parquet", "can't be read as Parquet"),
        ("folder", r"holds no .jsonl or .parquet file"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_prompts(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_too_many_rejected_rows_stop_the_run(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "p.jsonl", *({**GOOD, "id": str(n)} for n in range(8)), {"id": "x"}, [])
    result = read_prompts(file)
    check_rejected(result, 0.2)
    with pytest.raises(UserError) as caught:
        check_rejected(result, 0.19)
    assert str(caught.value) == (
        f"{file}: 2 of 10 rows were rejected, more than the 19.0% of data.max_rejected_fraction. First: "
        f"{file}, line 9: key 'messages' is missing; {file}, line 10: the row is a list, expected a mapping"
    )


def test_no_usable_row_is_an_error_whatever_the_limit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prompts"):
        check_rejected(read_prompts(jsonl(tmp_path / "empty.jsonl")), 1.0)
    with pytest.raises(UserError, match=r"1 of 1 rows were rejected, none is usable"):
        check_rejected(read_prompts(jsonl(tmp_path / "bad.jsonl", [])), 1.0)


def test_rejected_rows_are_written_one_a_line(tmp_path: Path) -> None:
    rejected = [Rejected("a.jsonl", 3, "角色"), Rejected("b.parquet", 1, "half a pair \ud83d")]
    write_rejected(tmp_path / "rejected.jsonl", rejected)
    lines = (tmp_path / "rejected.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[0]) == {"file": "a.jsonl", "line": 3, "reason": "角色"}
    assert json.loads(lines[1])["reason"] == "half a pair \ud83d"
    assert [file.name for file in tmp_path.iterdir()] == ["rejected.jsonl"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(json_values, st.fixed_dictionaries({"id": json_values, "messages": st.lists(json_values, max_size=3)}))
def test_any_json_value_is_a_row_or_has_a_reason(value: Any, row: Any) -> None:
    for candidate in (value, row):
        outcome = check_row(candidate)
        assert isinstance(outcome, PromptRow) or (outcome and outcome.isprintable())


def test_ten_thousand_damaged_lines_never_crash(tmp_path: Path) -> None:
    """Good rows with a part replaced, bytes changed, or cut: each is taken or has a reason, and none is lost."""
    draw = random.Random(0)
    junk: list[Any] = [None, True, 1, -2.5, float("nan"), "", " ", "x", "\x00", "\ud800", [], [[]], {}, {"a": 1}]
    lines = []
    for number in range(10_000):
        row: dict[str, Any] = {"id": str(number), "messages": [dict(USER)], "reference": "Rest.", "fields": {"n": 1}}
        if draw.random() < 0.6:
            target: dict[str, Any] = draw.choice([row, row["messages"][0]])
            target[draw.choice([*target, "new"])] = draw.choice(junk)
        raw = bytearray(json.dumps(row, ensure_ascii=draw.random() < 0.9), "utf-8", "surrogatepass")
        if draw.random() < 0.3:
            raw[draw.randrange(len(raw))] = draw.choice([byte for byte in range(256) if byte != 10])
        if draw.random() < 0.1:
            del raw[draw.randrange(1, len(raw)) :]
        lines.append(bytes(raw))
    (tmp_path / "fuzz.jsonl").write_bytes(b"\n".join(lines))
    result = read_prompts(tmp_path / "fuzz.jsonl")
    assert len(result.rows) + len(result.rejected) == 10_000
    assert 2_000 < len(result.rows) < 8_000
    assert all(bad.reason and bad.reason.isprintable() for bad in result.rejected)
    for row_taken in result.rows:
        assert row_taken.messages[-1]["content"].encode("utf-8").strip()


@pytest.mark.parametrize(("name", "at_least"), [("consultations-en", 400), ("consultations-zh", 200)])
def test_built_in_sets_are_whole(name: str, at_least: int) -> None:
    result = read_prompts(name)
    assert result.rejected == []
    assert len(result.rows) >= at_least
    assert all(row.reference for row in result.rows)
    complete = sum(row.fields["missing_info"] == [] for row in result.rows)
    assert 0.4 < complete / len(result.rows) < 0.6


def real_rows(name: str, limit: int) -> list[dict[str, Any]]:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} isn't there: the shared data lies beside some checkouts only")
    with (SHARED / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]


def test_real_single_questions(tmp_path: Path) -> None:
    rows = [
        {
            "id": row["id"],
            "messages": [{"role": "user", "content": row["question"]}],
            "reference": row["answer"],
            "fields": {"department": row["department"]},
        }
        for row in real_rows("qa_single.jsonl", 500)
    ]
    result = read_prompts(jsonl(tmp_path / "qa.jsonl", *rows))
    assert len(result.rows) + len(result.rejected) == len(rows)
    check_rejected(result, 0.02)


def test_real_dialogues_up_to_the_last_question(tmp_path: Path) -> None:
    roles = {"patient": "user", "doctor": "assistant"}
    rows = []
    for row in real_rows("dialogues_multi.jsonl", 300):
        turns = [{"role": roles[turn["role"]], "content": turn["content"]} for turn in row["turns"]]
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        rows.append({"id": row["id"], "messages": turns[:-1], "reference": turns[-1]["content"] if turns else None})
    result = read_prompts(jsonl(tmp_path / "d.jsonl", *rows))
    assert len(result.rows) + len(result.rejected) == len(rows)
    check_rejected(result, 0.05)
    assert max(len(row.messages) for row in result.rows) >= 3
