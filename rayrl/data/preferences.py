"""The preference store: Comparisons in one Parquet file, one row a verdict, each with its rater and origin.

Every rater's rows lie side by side, whatever their verdict; a reader filters. `fields` and `scores` are JSON text,
since their keys differ from row to row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.errors import UserError
from rayrl.types import Comparison, Origin, PromptRow, Verdict

STORE = "preferences.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("reference", pa.string()),
        ("fields", pa.string()),
        ("answer_a", pa.string()),
        ("answer_b", pa.string()),
        ("verdict", pa.string()),
        ("margin", pa.float64()),
        ("rater", pa.string()),
        ("scores", pa.string()),
        ("reason", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("form", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
    ]
)


def write_preferences(path: str | Path, rows: Iterable[Comparison]) -> None:
    """Writes the store, replacing it whole. Raises ValueError where two rows have one id."""
    values = [_to_row(row) for row in rows]
    seen: set[str] = set()
    for value in values:
        if value["id"] in seen:
            raise ValueError(f"two comparisons have the id {value['id']!r}")
        seen.add(value["id"])
    draft = Path(f"{path}.draft")
    pq.write_table(pa.Table.from_pylist(values, schema=SCHEMA), draft, compression="zstd")
    os.replace(draft, path)


def read_preferences(source: str | Path) -> list[Comparison]:
    """Reads a store, or the one in a `rayrl feedback` folder, in the order in which it was written.

    Raises UserError where there is none, or where it isn't a store: no Parquet, a column missing, an unknown verdict.
    """
    path = Path(source).expanduser()
    path = path / STORE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no preference store at {path}; `rayrl feedback` writes one")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as Parquet: {error}") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path} is no preference store: it has no column {', '.join(missing)}")
    rows = []
    for number, value in enumerate(table.select(SCHEMA.names).to_pylist(), start=1):
        try:
            rows.append(_from_row(value))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, row {number}: {error}") from error
    return rows


def _to_row(row: Comparison) -> dict[str, Any]:
    prompt, origin = row.prompt, row.origin
    return {
        "id": row.id,
        "prompt_id": prompt.id,
        "messages": prompt.messages,
        "reference": prompt.reference,
        "fields": json.dumps(dict(prompt.fields), ensure_ascii=False),
        "answer_a": row.answer_a,
        "answer_b": row.answer_b,
        "verdict": row.verdict,
        "margin": row.margin,
        "rater": row.rater,
        "scores": json.dumps(dict(row.scores), ensure_ascii=False),
        "reason": row.reason,
        "source": origin.source,
        "kind": origin.kind,
        "form": origin.form,
        "file": origin.file,
        "line": origin.line,
    }


def _from_row(value: dict[str, Any]) -> Comparison:
    if value["verdict"] not in get_args(Verdict):
        raise ValueError(f"the verdict is {value['verdict']!r}, expected one of {', '.join(get_args(Verdict))}")
    fields = json.loads(value["fields"])
    return Comparison(
        id=value["id"],
        prompt=PromptRow(value["prompt_id"], value["messages"], value["reference"], fields),
        answer_a=value["answer_a"],
        answer_b=value["answer_b"],
        verdict=value["verdict"],
        margin=value["margin"],
        rater=value["rater"],
        scores=json.loads(value["scores"]),
        reason=value["reason"],
        origin=Origin(value["source"], value["kind"], value["form"], value["file"], value["line"]),
    )
