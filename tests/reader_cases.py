"""What the readers' tests share: one made-up dialogue in the shape of every format, and files of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from rayrl.config.sources import SourceConfig

SHARED = Path(__file__).parents[2] / "shared" / "data"
Turns = list[tuple[str, str]]
TALK: Turns = [("我头痛三天了。", "有没有发热？"), ("没有发热。", "多休息，多喝水。")]
"""(question, answer) pairs."""


def source(path: Path | str, **keys: Any) -> SourceConfig:
    """A source called `test`."""
    return SourceConfig(name="test", path=str(path), **keys)


def messages(talk: Turns) -> list[dict[str, str]]:
    """The dialogue as the readers must give it."""
    return [
        {"role": role, "content": text} for pair in talk for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def huatuogpt(talk: Turns) -> dict[str, Any]:
    """A row of HuatuoGPT's training data."""
    return {"data": [f"{who}：{text}" for pair in talk for who, text in zip("问答", pair, strict=True)]}


def sharegpt(talk: Turns) -> dict[str, Any]:
    """A row of ShareGPT's shape, as HuatuoGPT-II reads."""
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages(talk)]}


def with_history(talk: Turns) -> dict[str, Any]:
    """A row of CMtMedQA; of Alpaca, where there is one turn."""
    *before, (question, answer) = talk
    row: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
    return {**row, "history": [list(pair) for pair in before]}


def one_element_lists(talk: Turns) -> dict[str, Any]:
    """A row of huatuo26M's test set: the last turn only."""
    return {"instruction": [talk[-1][0]], "input": [""], "output": [talk[-1][1]]}


def doctorglm(talk: Turns) -> dict[str, Any]:
    """A row of DoctorGLM: an answer is a list of its lines."""
    return {"paragraph": [{"q": question, "a": answer.split("\n")} for question, answer in talk]}


SHAPES: dict[str, Callable[[Turns], dict[str, Any]]] = {
    "huatuogpt": huatuogpt,
    "huatuogpt on disk": lambda talk: {"json_dialogue": json.dumps(huatuogpt(talk)["data"], ensure_ascii=False)},
    "sharegpt": sharegpt,
    "messages": lambda talk: {"messages": messages(talk)},
    "CMtMedQA": with_history,
    "doctorglm": doctorglm,
    "qa with history": lambda talk: {
        "question": talk[-1][0],
        "answer": talk[-1][1],
        "history": [list(pair) for pair in talk[:-1]],
    },
    "prompt rows": lambda talk: {"messages": messages(talk)[:-1], "reference": talk[-1][1]},
}
"""Shapes that hold several turns."""


def jsonl(path: Path, rows: Iterable[Any], encoding: str = "utf-8") -> Path:
    """One JSON value a line."""
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
    return path


def table(path: Path, rows: list[Mapping[str, Any]], encoding: str = "utf-8", delimiter: str = ",") -> Path:
    """A CSV or TSV with the first row's keys as header."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(out.getvalue().encode(encoding))
    return path


def alternate(turns: list[dict[str, str]]) -> bool:
    """Whether user and assistant take turns, from the user to the assistant."""
    roles = [turn["role"] for turn in turns]
    return roles[0] == "user" and roles[-1] == "assistant" and all(a != b for a, b in pairwise(roles))
