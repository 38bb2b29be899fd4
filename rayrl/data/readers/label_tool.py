"""Rankings of K answers from the RLHF label tool, with its wrong permutation repaired.

Its input is a JSON file of items, `{"0": {"query", "history", "response_0", ..., "response_3"}}`, its output a TSV with
the columns id, query, history (a Python literal), rank1 to rank4. The annotator gives answer i the rank r[i]. Where the
column rank(i+1) should hold the answer of rank i+1, the tool writes answer r[i] there: the permutation in place of its
inverse, which is another order for 14 of the 24. Looking up which answer stands in column i+1 therefore gives r[i]
itself. That needs the input file, and texts that differ.

A file of the same columns whose answers do stand in order of their ranks is `ranked_columns`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayrl.data.readers.choices import Choice, ChoiceFormat, check_different, prompt_messages, ranked_columns
from rayrl.data.readers.dialogues import Row, history_turns
from rayrl.data.readers.rows import BadRow, short
from rayrl.data.readers.text import read_text
from rayrl.data.readers.turns import Rules, Turn, checked_text
from rayrl.errors import UserError

_KEYS = frozenset({"id", "query", "history"})


def load_items(path: Path) -> dict[str, Any]:
    """The label tool's items by key. Raises UserError where the file isn't one of its inputs."""
    items = _items(path)
    if items is None:
        raise UserError(f"{path} isn't the label tool's input: expected {{key: {{query, history, response_0, ...}}}}")
    return items


def find_items(rankings: Path) -> dict[str, Any]:
    """The items of the one input file in the folder of the tool's TSV. Raises UserError where there is none, or two."""
    found = {path: items for path in sorted(rankings.parent.glob("*.json")) if (items := _items(path)) is not None}
    if len(found) != 1:
        what = "no input file of the label tool" if not found else f"{len(found)} input files of the label tool"
        raise UserError(
            f"{rankings}: {what} beside it. The tool saves a wrong order, which only its input can set right: name it "
            "in `items`, or set `format: ranked_columns` if the columns are in the right order"
        )
    return next(iter(found.values()))


def is_input(path: Path) -> bool:
    """Whether the file is an input of the label tool."""
    return path.suffix == ".json" and _items(path) is not None


def _items(path: Path) -> dict[str, Any] | None:
    try:
        raw, encoding = read_text(path)
        value = json.loads(raw.decode(encoding))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value:
        return None
    whole = all(isinstance(item, dict) and "query" in item and "response_0" in item for item in value.values())
    return value if whole else None


def _parse_repaired(row: Row, rules: Rules) -> Choice:
    saved = _saved(row, rules)
    key = row.get("id")
    item = rules.items.get(key) if isinstance(key, str) else rules.items.get(str(key))
    if item is None:
        raise BadRow(f"the label tool's input has no item {short(key)}")
    answers = [checked_text(f"the item's {name}", item[name], rules) for name in _responses(item)]
    check_different(answers)
    if len(answers) != len(saved):
        raise BadRow(f"the row has {len(saved)} answers, its item {len(answers)}")
    query = checked_text("the item's query", item.get("query"), rules)
    if _plain(query) != _plain(row.get("query")):
        raise BadRow("the row's query isn't its item's: is this the file that was ranked?")
    places = {_plain(answer): place for place, answer in enumerate(answers, start=1)}
    try:
        ranks = [places[_plain(text)] for text in saved]
    except KeyError:
        raise BadRow("one of the row's answers isn't among its item's") from None
    if sorted(ranks) != list(range(1, len(answers) + 1)):
        raise BadRow("an answer stands in two columns")
    messages = prompt_messages([*history_turns(item.get("history"), rules), Turn("user", query)], rules)
    known = {"query", "history", *_responses(item)}
    fields = {name: value for name, value in item.items() if name not in known}
    return Choice(messages, answers, ranks, _used(row), fields={"item": str(key), **fields})


def _parse_in_order(row: Row, rules: Rules) -> Choice:
    answers = _saved(row, rules)
    check_different(answers)
    turns = [*history_turns(row.get("history"), rules), Turn("user", row.get("query"))]
    messages = prompt_messages(turns, rules)
    fields = {"item": str(row["id"])} if row.get("id") is not None else {}
    return Choice(messages, answers, list(range(1, len(answers) + 1)), _used(row), fields=fields)


def _saved(row: Row, rules: Rules) -> list[str]:
    names = ranked_columns(row)
    if len(names) < 2:
        raise BadRow("the columns rank1, rank2, ... are missing")
    return [checked_text(name, row[name], rules) for name in names]


def _used(row: Row) -> frozenset[str]:
    return _KEYS | set(ranked_columns(row))


def _responses(item: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    while f"response_{len(names)}" in item:
        names.append(f"response_{len(names)}")
    return names


def _plain(text: Any) -> str:
    """Without differences that saving as a table makes: line ends, spaces at the ends."""
    return " ".join(str(text).split())


LABEL_TOOL = {
    "label_tool": ChoiceFormat(lambda row: len(ranked_columns(row)) > 1, _parse_repaired),
    "ranked_columns": ChoiceFormat(lambda row: False, _parse_in_order),
}
"""The tool's table; and one whose columns are in the right order, which only the configuration can say."""
