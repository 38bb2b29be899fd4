"""The stage `read`: a task's pieces to batches of normalised documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rayrl.config.corpus import CorpusSourceConfig, ReadConfig
from rayrl.corpus.containers import NO_FAULT, Found, contents
from rayrl.corpus.language import UNKNOWN, identify
from rayrl.corpus.normalise import is_binary, normalise, text_key
from rayrl.corpus.pieces import Piece
from rayrl.corpus.records import Rejected, Result, keep, texts
from rayrl.data.storage import Place

BATCH_ROWS = 512
BATCH_CHARS = 4_000_000
_MOST_SEEN = 1 << 20
"""Keys that a task remembers; what it doesn't find again, the comparison of all shards does."""
THE_SAME = "the same as an earlier document"


class Reader:
    """Reads tasks. `sources`: the configuration's, which pieces name by number."""

    def __init__(self, sources: Sequence[CorpusSourceConfig], config: ReadConfig) -> None:
        self._sources, self._config = sources, config

    def __call__(self, pieces: Sequence[Piece]) -> Iterator[tuple[Any, Result]]:
        """(every document of a batch, those that are kept), batch by batch in the order of the pieces.

        Of documents that are the same the task's first is kept; what other tasks read isn't known here.
        """
        self._seen: set[bytes] = set()
        rows: list[dict[str, Any]] = []
        rejected: list[Rejected] = []
        notes: Counter[str] = Counter()
        chars = 0
        for piece in pieces:
            source = self._sources[piece.source]
            found = contents(piece, source.encoding, source.columns, self._config.max_row_mb << 20)
            for one in found:
                row = self._row(piece, one) if isinstance(one, Found) else one
                if isinstance(row, dict):
                    rows.append(row)
                    chars += len(row["text"])
                elif row.reason in NO_FAULT:
                    notes[row.reason] += 1
                else:
                    rejected.append(row)
                if max(len(rows), len(rejected)) >= BATCH_ROWS or chars >= BATCH_CHARS:
                    yield self._batch(rows, rejected, notes)
                    rows, rejected, notes, chars = [], [], Counter(), 0
        if rows or rejected or notes:
            yield self._batch(rows, rejected, notes)

    def _row(self, piece: Piece, found: Found) -> dict[str, Any] | Rejected:
        if is_binary(found.text):
            return Rejected(piece.uri, found.position, "binary data, not text")
        source, said = self._sources[piece.source], found.columns
        text = found.text if "title" not in said else f"{said['title']}\n{found.text}"
        text = normalise(text)
        # Unique in the corpus.
        name = f"{source.name}/{piece.name or Place(piece.uri).name}#{found.position}"
        language = said.get("language") or (source.language if source.language != "auto" else identify(text))
        return {
            "id": name,
            "own_id": said.get("id"),
            "document": name,
            "text": text,
            "source": said.get("source") or source.name,
            "genre": said.get("genre") or source.genre,
            "language": language or UNKNOWN,
            "file": piece.uri,
            "position": found.position,
            "key": text_key(text),
        }

    def _batch(self, rows: list[dict[str, Any]], rejected: list[Rejected], notes: Counter[str]) -> tuple[Any, Result]:
        table = texts(rows)
        kept = keep(table, [self._why_not(row) for row in rows])
        return table, Result(kept.table, kept.dropped, rejected, notes=Counter({**notes, "rejected": len(rejected)}))

    def _why_not(self, row: dict[str, Any]) -> str | None:
        if len(row["text"]) < self._config.min_chars:
            return "too short"
        if self._config.duplicates == "drop":
            if row["key"] in self._seen:
                return THE_SAME
            if len(self._seen) < _MOST_SEEN:
                self._seen.add(row["key"])
        return None
