"""The preference store and the candidates' shards: what is written is read back, and what isn't one is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrl.data.candidates import read_candidates, write_candidates
from rayrl.data.preferences import SCHEMA, STORE, read_preferences, write_preferences
from rayrl.errors import UserError
from rayrl.types import Candidates, Comparison, Message, Origin, PromptRow

TURNS: list[Message] = [
    {"role": "system", "content": "You are a doctor."},
    {"role": "user", "content": "我头痛。"},
]
ROW = PromptRow("zh-1", TURNS, "多久了？", {"missing_info": ["duration"], "department": "neurology"})
ORIGIN = Origin("sampled", "distilled", "conversation", "candidates-0.jsonl", 3)
JUDGED = Comparison(
    "zh-1/0-1/judge", ROW, "休息。", "多久了？", "b", 2.5, "judge:x", {"ab": {"accuracy": [6, 8]}}, None, ORIGIN
)
ASIDE = replace(JUDGED, id="zh-1/0-2/judge", verdict="set_aside", margin=None, scores={}, reason="budget is spent")
BARE = replace(JUDGED, id="q", prompt=PromptRow("q", TURNS[1:]), verdict="tie", margin=0.0, rater="file")


def test_what_is_written_is_read_back_in_its_order(tmp_path: Path) -> None:
    write_preferences(tmp_path / STORE, [JUDGED, ASIDE, BARE])
    assert read_preferences(tmp_path / STORE) == [JUDGED, ASIDE, BARE]
    assert read_preferences(tmp_path) == [JUDGED, ASIDE, BARE]
    assert sorted(file.name for file in tmp_path.iterdir()) == [STORE]


def test_the_columns_are_those_documented(tmp_path: Path) -> None:
    write_preferences(tmp_path / STORE, [JUDGED])
    (row,) = pq.read_table(tmp_path / STORE).to_pylist()
    assert list(row) == SCHEMA.names
    assert row["prompt_id"] == "zh-1" and row["messages"] == TURNS and row["kind"] == "distilled" and row["line"] == 3
    assert json.loads(row["fields"])["department"] == "neurology"
    assert json.loads(row["scores"]) == {"ab": {"accuracy": [6, 8]}}


def test_an_empty_store_is_a_store(tmp_path: Path) -> None:
    write_preferences(tmp_path / STORE, [])
    assert read_preferences(tmp_path) == []


def test_a_failed_write_leaves_the_old_store(tmp_path: Path) -> None:
    write_preferences(tmp_path / STORE, [BARE])
    with pytest.raises(ValueError, match="'q'"):
        write_preferences(tmp_path / STORE, [JUDGED, BARE, BARE])
    assert read_preferences(tmp_path) == [BARE]


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preference store at"):
        read_preferences(tmp_path)
    (tmp_path / STORE).write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="can't be read as Parquet"):
        read_preferences(tmp_path)
    write_preferences(tmp_path / STORE, [JUDGED])
    table = pq.read_table(tmp_path / STORE)
    pq.write_table(table.drop_columns(["verdict", "rater"]), tmp_path / "less.parquet")
    with pytest.raises(UserError, match="no column verdict, rater"):
        read_preferences(tmp_path / "less.parquet")
    write_preferences(tmp_path / STORE, [BARE, replace(JUDGED, verdict="best")])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="row 2: the verdict is 'best'"):
        read_preferences(tmp_path)


def test_candidates_are_read_back_shard_by_shard(tmp_path: Path) -> None:
    one = Candidates(ROW, ["休息。", "多久了？", "", "多久了？"], "runs/sft/model")
    two = Candidates(PromptRow("en-2", TURNS[1:]), ["Rest."], "tiny")
    write_candidates(tmp_path / "candidates-00001.jsonl", [two])
    write_candidates(tmp_path / "candidates-00000.jsonl", [one])
    (tmp_path / "rejected.jsonl").write_text("{}\n", "utf-8")
    read = read_candidates(tmp_path)
    assert read.rows == [one, two] and read.rejected == []
    assert read.places["en-2"] == (str(tmp_path / "candidates-00001.jsonl"), 1)
    assert read_candidates(tmp_path / "candidates-00001.jsonl").rows == [two]


def test_bad_candidates_are_put_aside_with_their_reason(tmp_path: Path) -> None:
    good = {"id": "a", "messages": TURNS, "answers": ["x", "y"], "model": "m"}
    rows = [
        good,
        {**good, "id": "b", "answers": "x"},
        {**good, "id": "c", "answers": []},
        {**good, "id": "d", "model": None},
        {**good, "id": "e", "messages": []},
        ["no"],
        good,
    ]
    path = tmp_path / "candidates-0.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": "cut', "utf-8")
    read = read_candidates(tmp_path)
    assert [row.prompt.id for row in read.rows] == ["a"]
    reasons = {bad.line: bad.reason for bad in read.rejected}
    assert reasons[2] == "answers isn't a list of texts" and reasons[3] == "answers is empty"
    assert reasons[4] == "model isn't a text" and reasons[5] == "messages is empty"
    assert "expected a mapping" in reasons[6] and "already taken" in reasons[7] and "not JSON" in reasons[8]


def test_no_candidates_is_the_users_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="rayrl sample"):
            read_candidates(path)
