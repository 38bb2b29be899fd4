"""The stage `segment`: documents to windows of whole sentences, each with its neighbour sentences as context.

HuatuoGPT-II cuts documents into segments with neighbouring sentences added (appendix A). A segment's `text` is its
own, `before` and `after` belong to its neighbours: a document's segments' texts, one after the other, are its text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from rayrl.config.corpus import SegmentConfig
from rayrl.corpus.records import Result
from rayrl.corpus.sentences import pieces, sentences


@dataclass(frozen=True)
class Segment:
    """Example: Segment("头痛三天。", "吃什么药？多喝水。", "")"""

    before: str
    text: str
    after: str


def segments(text: str, language: str, config: SegmentConfig) -> list[Segment]:
    """Windows of sentences; their texts concatenate to `text`.

    A window ends where the next sentence would make it too long, or at a paragraph's end once it is half full. A
    sentence that alone is too long is cut.
    """
    parts = [piece for one in sentences(text, language) for piece in pieces(one, config.max_chars)]
    windows: list[tuple[int, int]] = []
    start = size = 0
    for number, part in enumerate(parts):
        full = size + len(part) > config.max_chars
        paragraph = number > start and parts[number - 1].endswith("\n") and 2 * size >= config.max_chars
        if number > start and (full or paragraph):
            windows.append((start, number))
            start, size = number, 0
        size += len(part)
    if parts:
        windows.append((start, len(parts)))
    return [
        Segment(
            _context(parts[max(0, begin - config.neighbours) : begin], config.neighbour_chars, last=True),
            "".join(parts[begin:end]),
            _context(parts[end : end + config.neighbours], config.neighbour_chars, last=False),
        )
        for begin, end in windows
    ]


def _context(neighbours: list[str], max_chars: int, *, last: bool) -> str:
    """As many whole sentences as fit, from the side of the window; of one that doesn't fit, the near part."""
    text = "".join(neighbours)
    if len(text) <= max_chars:
        return text
    return text[-max_chars:] if last else text[:max_chars]


class Segments:
    """The step: a row a document in, a row a segment out, with the document's other columns."""

    def __init__(self, config: SegmentConfig) -> None:
        self._config = config

    def __call__(self, table: pa.Table) -> Result:
        """See records.Step."""
        rows: list[int] = []
        names: list[str] = []
        found: list[Segment] = []
        columns = [table[name].to_pylist() for name in ("id", "text", "language")]
        for row, (name, text, language) in enumerate(zip(*columns, strict=True)):
            for number, segment in enumerate(segments(text, language, self._config)):
                rows.append(row)
                names.append(f"{name}.{number}")
                found.append(segment)
        values = {
            "id": names,
            "text": [one.text for one in found],
            "before": [one.before for one in found],
            "after": [one.after for one in found],
        }
        # The rest of the row comes with each of its segments, but not the document's whole text.
        rest = table.drop_columns(list(values)).take(pa.array(rows, pa.int64()))
        made = [
            pa.array(values[field.name], field.type) if field.name in values else rest[field.name]
            for field in table.schema
        ]
        return Result(pa.table(made, schema=table.schema), notes=Counter(segments=len(found)))
