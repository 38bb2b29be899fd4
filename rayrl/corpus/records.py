"""What flows between the stages of a corpus: batches of texts (Arrow tables), and what became of those that went.

TEXT, a row each of the stages read to decontaminate:

    id, document      the text's own name, and the document's that it was cut from (the same until `segment`)
    own_id            what the row itself is called, or the address of the page
    text              what it is about; before, after: its neighbour sentences, which are there for context only
    source, genre     as the configuration or the row says;  language: `zh`, `zh-Hant`, `en`, ... or `und`
    file, position    where it was read: byte of the (unpacked) file, row of a table, number of a record; of UTF-16
                      the byte that it would be in UTF-8
    key               16 bytes, equal for documents that are the same but for spacing and case
    density, hits     share of domain words, and those found most
    quality           probability of being good text, by the trained classifier

INSTRUCTION, of the stages unify and check: `rayrl sft` reads it as conversations.

    messages          question and answer
    text, target      what they were made from, with its neighbours; the language that they are in
    tries             requests that the answer took;  overlap: 1-gram Jaccard similarity of text and answer
    keeps             probability that the answer keeps to its text, by the trained detector

Nothing here imports Ray or torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HITS = pa.list_(pa.struct([("term", pa.string()), ("count", pa.int32())]))
TEXT = pa.schema(
    [
        ("id", pa.string()),
        ("own_id", pa.string()),
        ("document", pa.string()),
        ("text", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
        ("source", pa.string()),
        ("genre", pa.string()),
        ("language", pa.string()),
        ("file", pa.string()),
        ("position", pa.int64()),
        ("key", pa.binary(16)),
        ("density", pa.float32()),
        ("hits", HITS),
        ("quality", pa.float32()),
    ]
)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
INSTRUCTION = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("text", pa.string()),
        ("source", pa.string()),
        ("genre", pa.string()),
        ("language", pa.string()),
        ("target", pa.string()),
        ("file", pa.string()),
        ("position", pa.int64()),
        ("tries", pa.int32()),
        ("overlap", pa.float32()),
        ("keeps", pa.float32()),
    ]
)
GROUP_BY = ("source", "genre", "language")
EXAMPLES = 3
"""Of every reason, texts that a stage's manifest shows."""
EXAMPLE_CHARS = 240
_GROUP_FROM = 256
"""Batches that wait to be counted."""


@dataclass(frozen=True)
class Rejected:
    """Input that no document could be made of. Example: Rejected("web/a.warc.gz", 1048576, "the archive is cut off")"""

    file: str
    position: int
    reason: str


@dataclass(frozen=True)
class Result:
    """What a step made of a batch."""

    table: pa.Table
    dropped: Sequence[tuple[int, str]] = ()
    """(row of the batch, reason)."""
    rejected: Sequence[Rejected] = ()
    listed: Sequence[Mapping[str, Any]] = ()
    """Rows for the stage's own list (evaluation questions that were hit)."""
    notes: Counter[str] = field(default_factory=Counter)
    """Further counts, such as masked telephone numbers."""


class Step(Protocol):
    """One stage's work on one batch. An object is made once a worker, in it, and may hold models."""

    def __call__(self, table: pa.Table) -> Result:
        """`table`: rows of one schema. The result's rows keep their order."""


def texts(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as a table; what they don't have is null."""
    return pa.Table.from_pylist(list(rows), schema=TEXT)


def replace(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with other values in a column."""
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def keep(table: pa.Table, reasons: Sequence[str | None]) -> Result:
    """The rows without a reason to drop them."""
    dropped = [(row, reason) for row, reason in enumerate(reasons) if reason is not None]
    if not dropped:
        return Result(table)
    return Result(table.filter(pa.array([reason is None for reason in reasons])), dropped)


class Tally:
    """Counts of one unit of work, which add up to the stage's manifest."""

    def __init__(self, show: Callable[[str], str] = str) -> None:
        """`show`: what an example says of a text."""
        self._show = show
        self.sizes = {"in": Sizes(), "out": Sizes()}
        self.dropped: dict[str, dict[str, Any]] = {}
        self.notes: Counter[str] = Counter()

    def result(self, table: pa.Table, result: Result) -> None:
        """Counts a batch and what a step made of it."""
        self.sizes["in"].add(table)
        self.sizes["out"].add(result.table)
        self.notes.update(result.notes)
        if not result.dropped:
            return
        rows = [row for row, _ in result.dropped]
        gone = table.select(["id", "text"]).take(rows)
        chars = pc.utf8_length(gone["text"]).to_numpy()
        for at, (_, reason) in enumerate(result.dropped):
            entry = self.dropped.setdefault(reason, {"rows": 0, "chars": 0, "examples": []})
            entry["rows"] += 1
            entry["chars"] += int(chars[at])
            if len(entry["examples"]) < EXAMPLES:
                shown = self._show(gone["text"][at].as_py()[: 4 * EXAMPLE_CHARS])[:EXAMPLE_CHARS]
                entry["examples"].append({"id": gone["id"][at].as_py(), "text": shown})

    def as_json(self) -> dict[str, Any]:
        """For a file; `add` reads it."""
        return {
            "sizes": {side: sizes.rows() for side, sizes in self.sizes.items()},
            "dropped": self.dropped,
            "notes": dict(self.notes),
        }

    def add(self, other: dict[str, Any]) -> None:
        """Adds another unit's counts, as `as_json` gave them. In the order of units, for the examples."""
        for side, rows in other["sizes"].items():
            self.sizes[side].add_rows(rows)
        self.notes.update(other["notes"])
        for reason, entry in other["dropped"].items():
            mine = self.dropped.setdefault(reason, {"rows": 0, "chars": 0, "examples": []})
            mine["rows"] += entry["rows"]
            mine["chars"] += entry["chars"]
            mine["examples"] = (mine["examples"] + entry["examples"])[:EXAMPLES]


class Sizes:
    """Rows, characters and bytes by source, genre and language."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], np.ndarray] = {}
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Counts a table's rows by what their `text` holds."""
        if table.num_rows:
            sized = table.select(list(GROUP_BY)).append_column("chars", pc.utf8_length(table["text"]))
            self._waiting.append(sized.append_column("bytes", pc.binary_length(table["text"])))
            if len(self._waiting) >= _GROUP_FROM:
                self._grouped()

    def add_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds what `rows` gave."""
        for row in rows:
            self._add(tuple(row[name] for name in GROUP_BY), [row["rows"], row["chars"], row["bytes"]])

    def rows(self) -> list[dict[str, Any]]:
        """[{"source": "books", "genre": "book", "language": "zh", "rows": 3, "chars": 9000, "bytes": 27000}, ...]"""
        return [
            {
                **dict(zip(GROUP_BY, key, strict=True)),
                **dict(zip(("rows", "chars", "bytes"), map(int, counts), strict=True)),
            }
            for key, counts in sorted(self._grouped().items())
            if counts.any()
        ]

    def total(self) -> dict[str, int]:
        """Rows, characters and bytes in all."""
        sums = sum(self._grouped().values(), np.zeros(3, dtype=np.int64))
        return dict(zip(("rows", "chars", "bytes"), map(int, sums), strict=True))

    def _grouped(self) -> dict[tuple[str, ...], np.ndarray]:
        """All counts. Grouped here, many batches at one time: each grouping costs a millisecond."""
        if self._waiting:
            together = pa.concat_tables(self._waiting)
            self._waiting = []
            sums = [("chars", "count"), ("chars", "sum"), ("bytes", "sum")]
            for row in together.group_by(list(GROUP_BY)).aggregate(sums).to_pylist():
                key = tuple(row[name] or "" for name in GROUP_BY)
                self._add(key, [row["chars_count"], row["chars_sum"], row["bytes_sum"]])
        return self._counts

    def _add(self, key: tuple[str, ...], counts: Sequence[int]) -> None:
        self._counts[key] = self._counts.get(key, np.zeros(3, dtype=np.int64)) + np.array(counts, dtype=np.int64)
