"""Readers of comparisons and rankings: pairs, lists from best to worst, the label tool's tables, preference stores."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from reader_cases import TALK, jsonl, messages, source

from rayrl.data.preferences import write_preferences
from rayrl.data.readers import read_comparisons, read_prompt_rows, read_rankings
from rayrl.errors import UserError
from rayrl.types import Comparison, Origin, PromptRow

PROMPT = messages(TALK)[:-1]
GOOD, BAD = "多休息，多喝水。", "不知道。"
BEFORE, QUESTION = [list(TALK[0])], TALK[-1][0]


def said(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


HUMAN = [said({"user": "human", "assistant": "gpt"}[turn["role"]], turn["content"]) for turn in PROMPT]
SPOKEN = "".join(f"\n\n{'Human' if t['role'] == 'user' else 'Assistant'}: {t['content']}" for t in PROMPT)
PAIRS: dict[str, dict[str, Any]] = {
    "MedicalGPT": {"conversations": HUMAN, "chosen": GOOD, "rejected": BAD},
    "MedicalGPT with history": {
        "system": "", "history": BEFORE, "question": QUESTION, "response_chosen": GOOD, "response_rejected": BAD,
    },
    "turns as answers": {"conversations": HUMAN, "chosen": said("gpt", GOOD), "rejected": said("gpt", BAD)},
    "whole dialogues": {
        "prompt": QUESTION,
        "chosen": [*PROMPT, {"role": "assistant", "content": GOOD}],
        "rejected": [*PROMPT, {"role": "assistant", "content": BAD}],
    },
    "dialogues as text": {"chosen": f"{SPOKEN}\n\nAssistant: {GOOD}", "rejected": f"{SPOKEN}\n\nAssistant: {BAD}"},
    "Zhongjing": {"instruction": QUESTION, "input": "", "output": [GOOD, BAD], "history": BEFORE},
    "rayrl": {"messages": PROMPT, "chosen": GOOD, "rejected": BAD},
}  # fmt: skip


@pytest.mark.parametrize("shape", PAIRS)
def test_every_format_of_pairs_gives_the_same_comparison(shape: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "p.jsonl", [{"id": "p1", **PAIRS[shape]}])
    read = read_comparisons(source(file, kind="distilled"))
    assert read.rejected == []
    (row,) = read.rows
    assert (row.prompt.messages, row.answer_a, row.answer_b, row.verdict) == (PROMPT, GOOD, BAD, "a")
    assert (row.id, row.rater, row.margin, dict(row.scores), dict(row.prompt.fields)) == ("p1", "file", None, {}, {})
    assert row.origin == Origin("test", "distilled", "conversation", str(file), 1)
    (ranking,) = read_rankings(source(file, annotator="r1")).rows
    assert (ranking.prompt, ranking.answers, ranking.ranks, ranking.annotator) == (
        row.prompt,
        [GOOD, BAD],
        [1, 2],
        "r1",
    )
    assert read_prompt_rows(source(file)).rows == [PromptRow("p1", PROMPT)]  # type: ignore[arg-type]


def test_all_pairs_of_a_prompt_share_its_id(tmp_path: Path) -> None:
    rows = [{**PAIRS["rayrl"], "rejected": text} for text in ("x", "y")] + [
        {"question": "z", "chosen": "1", "rejected": "2"}
    ]
    read = read_comparisons(source(jsonl(tmp_path / "p.jsonl", rows)))
    assert [row.id for row in read.rows] == ["test-1", "test-2", "test-3"]
    first, second, third = (row.prompt.id for row in read.rows)
    assert first == second != third
    group = {**PAIRS["rayrl"], "group": "g1", "margin": 2, "reference": "R", "fields": {"flaw": "terse"}}
    (row,) = read_comparisons(source(jsonl(tmp_path / "g.jsonl", [group]))).rows
    assert (row.prompt.id, row.margin, row.prompt.reference, dict(row.prompt.fields)) == (
        "g1",
        2.0,
        "R",
        {"flaw": "terse"},
    )


def test_a_list_from_best_to_worst_gives_all_its_pairs(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "z.jsonl", [{"instruction": "q", "input": "", "output": ["1st", "2nd", "3rd"], "history": []}]
    )
    (ranking,) = read_rankings(source(file)).rows
    twice = read_comparisons(source(jsonl(tmp_path / "twice.jsonl", [json.loads(file.read_text("utf-8"))] * 2)))
    assert len({row.id for row in twice.rows}) == 6, "two rankings of one prompt"
    assert (ranking.answers, ranking.ranks, ranking.annotator) == (["1st", "2nd", "3rd"], [1, 2, 3], "test")
    rows = read_comparisons(source(file)).rows
    assert [(row.answer_a, row.answer_b, row.verdict) for row in rows] == [
        ("1st", "2nd", "a"),
        ("1st", "3rd", "a"),
        ("2nd", "3rd", "a"),
    ]
    assert len({row.id for row in rows}) == 3 and {row.prompt.id for row in rows} == {ranking.prompt.id}


def label_tool(folder: Path, orders: list[tuple[int, ...]], items: dict[str, Any]) -> Path:
    """The tool's two files, written as it writes them: `orders` holds the rank that each answer was given."""
    (folder / "input_file.json").write_text(json.dumps(items, ensure_ascii=False, indent=4), "utf-8")
    lines = []
    for key, ranks in zip(items, orders, strict=True):
        texts = [items[key][f"response_{rank - 1}"] for rank in ranks]
        lines.append([key, items[key]["query"], items[key]["history"], *texts])
    columns = ["id", "query", "history", "rank1", "rank2", "rank3", "rank4"]
    pd.DataFrame(lines, columns=columns).to_csv(folder / "output_result.tsv", index=False, sep="\t")
    return folder / "output_result.tsv"


def item(*answers: str, **keys: Any) -> dict[str, Any]:
    return {"query": QUESTION, "history": BEFORE, **{f"response_{n}": text for n, text in enumerate(answers)}, **keys}


def test_the_label_tools_order_is_repaired_for_all_24(tmp_path: Path) -> None:
    answers = ["甲：多休息。", '乙说："喝水"。', "丙\t带制表符", "丁\n两行"]
    orders = list(itertools.permutations((1, 2, 3, 4)))
    items = {str(number): item(*answers, department="内科") for number in range(len(orders))}
    file = label_tool(tmp_path, orders, items)
    read = read_rankings(source(file, annotator="r1", kind="real"))
    assert read.rejected == []
    assert [tuple(row.ranks) for row in read.rows] == orders
    assert all(row.answers == answers and row.prompt.messages == PROMPT for row in read.rows)
    assert dict(read.rows[5].prompt.fields) == {"item": "5", "department": "内科"}
    as_saved = read_rankings(source(file, format="ranked_columns")).rows
    wrong = 0
    for row, order in zip(as_saved, orders, strict=True):
        saved_best = row.answers[row.ranks.index(1)]
        wrong += [row.answers.index(text) + 1 for text in answers] != list(order)
        assert (saved_best == answers[order.index(1)]) == (order[order[0] - 1] == 1)
    assert wrong == 14, "orders that are not their own inverse"


def test_the_documentations_table_is_repaired_as_it_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")
    items, table = re.search(r"```\n(\{.+)\n\n(id\tquery[^`]+)```", text).groups()  # type: ignore[union-attr]
    (tmp_path / "items.json").write_text(items, "utf-8")
    (tmp_path / "ranks.tsv").write_text(table, "utf-8")
    (row,) = read_rankings(source(tmp_path)).rows
    ranks = dict(zip(row.answers, row.ranks, strict=True))
    assert ranks == {"甲": 3, "乙": 1, "丙": 2, "丁": 4}
    assert "甲 got rank 3, 乙 rank 1, 丙 rank 2 and 丁 rank 4" in text


def test_one_item_has_one_id_for_every_annotator_and_another_in_another_batch(tmp_path: Path) -> None:
    ids = []
    for name, answers in (("a", "1234"), ("b", "1234"), ("c", "1235")):
        (tmp_path / name).mkdir()
        file = label_tool(tmp_path / name, [(2, 1, 3, 4)], {"0": item(*answers)})
        ids.append(read_rankings(source(file)).rows[0].prompt.id)
    assert ids[0] == ids[1] != ids[2] and ids[0].startswith("0-")


def test_rankings_become_comparisons_by_their_annotator(tmp_path: Path) -> None:
    file = label_tool(tmp_path, [(3, 1, 2, 4)], {"0": item("w", "x", "y", "z")})
    rows = read_comparisons(source(file, annotator="r1")).rows
    assert [(row.answer_a, row.answer_b, row.verdict) for row in rows] == [
        ("w", "x", "b"), ("w", "y", "b"), ("w", "z", "a"), ("x", "y", "a"), ("x", "z", "a"), ("y", "z", "a"),
    ]  # fmt: skip
    assert {row.rater for row in rows} == {"human:r1"}
    assert dict(rows[0].scores) == {"ranks": [3, 1]}
    folder = read_comparisons(source(tmp_path, annotator="r1"))
    assert folder.rejected == [] and len(folder.rows) == 6, "the tool's input isn't read as data"


def test_rows_of_the_label_tool_that_cannot_be_repaired(tmp_path: Path) -> None:
    items = {str(n): item("w", "x", "y", "z") for n in range(5)}
    items["1"] = item("w", "x", " x\n", "z")
    file = label_tool(tmp_path, [(1, 2, 3, 4)] * 5, items)
    table = pd.read_csv(file, sep="\t", dtype=str)
    table.loc[2, "query"] = "another"
    table.loc[3, "rank2"] = "changed"
    table.loc[4, "rank2"] = "w"
    table.loc[5] = ["9", "q", "[]", *"wxyz"]
    table.loc[6] = ["0", "q", "[]", "w", None, "y", "z"]
    table.to_csv(file, sep="\t", index=False)
    read = read_rankings(source(file))
    assert len(read.rows) == 1
    assert [bad.reason for bad in read.rejected] == [
        "answers 2 and 3 have the same text; set aside",
        "the row's query isn't its item's: is this the file that was ranked?",
        "one of the row's answers isn't among its item's",
        "an answer stands in two columns",
        "the label tool's input has no item '9'",
        "rank2 is null, expected text",
    ]
    assert [bad.line for bad in read.rejected] == [3, 5, 6, 7, 8, 9], "the second row has a line break"


def test_the_label_tools_input_must_be_found(tmp_path: Path) -> None:
    file = label_tool(tmp_path, [(1, 2, 3, 4)], {"0": item("w", "x", "y", "z")})
    (tmp_path / "input_file.json").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no input file of the label tool beside it.*`items`.*ranked_columns"):
        read_rankings(source(file))
    assert len(read_rankings(source(file, items=str(tmp_path / "elsewhere"))).rows) == 1
    with pytest.raises(UserError, match="isn't the label tool's input"):
        read_rankings(source(file, items=str(file)))
    for name in "ab":
        (tmp_path / f"{name}.json").write_text((tmp_path / "elsewhere").read_text("utf-8"), "utf-8")
    with pytest.raises(UserError, match="2 input files of the label tool beside it"):
        read_rankings(source(file))


def test_stores_keep_their_raters_and_origins(tmp_path: Path) -> None:
    origin = Origin("consultations", "distilled", "instruction", "c.jsonl", 3)
    prompt = PromptRow("p", [{"role": "user", "content": "q"}], "ref", {"department": "ENT"})
    rows = [
        Comparison(f"p/0-1/{rater}", prompt, "a", "b", "b", 1.5, rater, {"ab": [4, 6]}, None, origin)
        for rater in ("judge:x", "rubric")
    ]
    write_preferences(tmp_path / "preferences.parquet", rows)
    for path in (tmp_path, tmp_path / "preferences.parquet"):
        read = read_comparisons(source(path))
        assert read.rows == rows and read.rejected == [] and read.origins == [origin, origin]
    with pytest.raises(UserError, match="no preference store at"):
        read_comparisons(source(tmp_path / "gone", format="comparisons"))


ASKED: dict[str, Any] = {"question": "q", "chosen": "a", "rejected": "b"}
ENDS_WRONG = {"messages": messages(TALK), "chosen": "a", "rejected": "b"}
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({**ASKED, "rejected": None}, "key 'rejected' is missing, or null"),
    ({"question": "q", "rejected": "a"}, "key 'chosen' is missing, or null"),
    (
        {"chosen": "a", "rejected": "b"},
        "no prompt: neither a key like 'conversations' or 'question', nor turns in chosen",
    ),
    ({**ASKED, "rejected": " a\n"}, "answers 1 and 2 have the same text; set aside"),
    ({**ASKED, "chosen": ""}, "chosen is empty"),
    ({**ASKED, "rejected": "b" * 100_001}, "rejected has 100001 characters, more than max_chars, 100000"),
    (ENDS_WRONG, "the prompt ends with the assistant's turn, expected the user's"),
    ({**ASKED, "margin": -1}, "margin is a number, expected a number of at least 0"),
    ({**ASKED, "chosen": []}, "chosen doesn't end with the assistant's turn"),
    (
        {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: other\n\nAssistant: b"},
        "chosen and rejected answer different dialogues",
    ),
    ({"instruction": "q", "output": ["a", "b", "a"]}, "answers 1 and 3 have the same text; set aside"),
    ({"instruction": "q", "output": ["a", None]}, "item 2 of output is null, expected text"),
    ({**ASKED, "history": "[(1"}, "history is text that is neither JSON nor a Python literal"),
    ({"answer": "q"}, "no format of comparisons has the keys answer; name `format` or `columns`"),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN, ids=lambda value: str(value)[:40])
def test_broken_preferences_have_their_reason(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    read = read_comparisons(source(jsonl(tmp_path / "p.jsonl", [row])))
    assert (read.rows, [bad.reason for bad in read.rejected]) == ([], [reason])
