"""The stage `decontaminate`: texts that hold questions of evaluation sets are dropped, and listed.

By sequences of n units (Chinese characters, words; data/units.py): a text holds a question when it has a stated share
of the question's sequences. A question of 14 to 28 units is cut into shorter ones, a third of it, so that half of them
stay when a word is changed; a shorter question is looked for as it is. A text's neighbours count as part of it, since
they are what `unify` sees, and a question may lie across a cut.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.config.corpus import DecontaminateConfig, EvaluationSetConfig
from rayrl.corpus.records import Result, keep
from rayrl.corpus.shingles import mixed
from rayrl.data.storage import Place
from rayrl.data.units import units
from rayrl.errors import UserError

CONTAMINATED = "holds an evaluation question"
_TOLERANT_FROM = 14
"""Units from which a changed word hides no question. Shorter pieces of a shorter one stand in many texts."""


@dataclass(frozen=True)
class Item:
    """An evaluation question. Example: Item("cmexam", 12, "高血压的诊断标准是？")"""

    set: str
    number: int
    question: str


def read_items(config: EvaluationSetConfig) -> list[Item]:
    """A set's questions. Raises UserError where it can't be read, or no row holds one."""
    try:
        rows = list(_rows(Place.of(config.path)))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"evaluation set {config.name!r}: {config.path} can't be read: {error}") from error
    found = []
    for number, row in enumerate(rows):
        values = [_text(row.get(key)) for key in config.fields] if isinstance(row, dict) else []
        question = next((value for value in values if value.strip()), None)
        if question is not None:
            found.append(Item(config.name, number, question))
    if not found:
        raise UserError(
            f"evaluation set {config.name!r}: none of {len(rows)} rows has one of {', '.join(config.fields)}"
        )
    return found


def _rows(place: Place) -> Iterator[Any]:
    name = place.plain
    if name.endswith(".parquet"):
        with place.open() as stream:
            yield from pq.read_table(stream).to_pylist()
        return
    text = place.read_bytes().decode("utf-8-sig")
    if name.endswith(".json"):
        value = json.loads(text)
        if isinstance(value, dict) and len(value) == 1:  # {"dataset": [...]}
            (value,) = value.values()
        yield from value if isinstance(value, list) else [value]
        return
    for line in text.split("\n"):
        if line.strip():
            yield json.loads(line)


def _text(value: Any) -> str:
    """A value that is a text, or a list of one; otherwise nothing."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else ""


class Decontaminate:
    """The step."""

    def __init__(self, config: DecontaminateConfig, items: Sequence[Item]) -> None:
        self._config = config
        self._items: list[Item] = []
        self._sizes: list[int] = []
        by_length: dict[int, list[tuple[np.ndarray, int]]] = defaultdict(list)
        for item in items:
            codes = _codes(item.question)
            if len(codes) < config.least_units:
                continue
            length = min(config.ngram, (len(codes) + 1) // 3 if len(codes) >= _TOLERANT_FROM else len(codes))
            grams = np.unique(_grams(codes, length))
            by_length[length].append((grams, len(self._items)))
            self._items.append(item)
            self._sizes.append(len(grams))
        self._tables = {length: _table(entries) for length, entries in sorted(by_length.items())}

    def __call__(self, table: pa.Table) -> Result:
        """See records.Step."""
        reasons: list[str | None] = []
        listed = []
        for row in table.select(["id", "before", "text", "after"]).to_pylist():
            name, found = row["id"], self.find("".join(row[part] or "" for part in ("before", "text", "after")))
            reasons.append(CONTAMINATED if found else None)
            listed += [
                {"id": name, "set": item.set, "item": item.number, "question": item.question, "share": round(share, 3)}
                for item, share in found
            ]
        result = keep(table, reasons)
        return Result(result.table, result.dropped, listed=listed)

    def find(self, text: str) -> list[tuple[Item, float]]:
        """Questions that a text holds, each with the share of its sequences."""
        codes = _codes(text)
        counts: dict[int, int] = defaultdict(int)
        grams = np.zeros(len(codes) + 1, dtype=np.uint64)
        for length in range(1, min(len(codes), max(self._tables, default=0)) + 1):
            grams = _longer(grams, codes, length)
            if length not in self._tables:
                continue
            hashes, owners = self._tables[length]
            known = grams[hashes[np.minimum(np.searchsorted(hashes, grams), len(hashes) - 1)] == grams]
            if not len(known):
                continue
            known = np.unique(known)
            left, right = np.searchsorted(hashes, known, "left"), np.searchsorted(hashes, known, "right")
            for begin, end in zip(left, right, strict=True):
                for owner in owners[begin:end].tolist():
                    counts[owner] += 1
        shares = ((owner, count / self._sizes[owner]) for owner, count in sorted(counts.items()))
        return [(self._items[owner], share) for owner, share in shares if share >= self._config.share]


def _codes(text: str) -> np.ndarray:
    """uint64 [N]: a hash of each unit."""
    return np.array([_code(unit) for unit in units(text)], dtype=np.uint64)


@lru_cache(maxsize=1 << 16)
def _code(unit: str) -> int:
    return crc32(unit.encode("utf-8", "surrogatepass"))


def _grams(codes: np.ndarray, length: int) -> np.ndarray:
    """uint64 [N - length + 1]: hashes of all sequences of so many units."""
    hashes = np.zeros(len(codes) + 1, dtype=np.uint64)
    for longer in range(1, length + 1):
        hashes = _longer(hashes, codes, longer)
    return hashes


def _longer(shorter: np.ndarray, codes: np.ndarray, length: int) -> np.ndarray:
    """The hashes of sequences of `length` from those of sequences that are one shorter."""
    return mixed(shorter[:-1] + codes[length - 1 :] + np.uint64(1))


def _table(entries: Sequence[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes in order, the item of each)."""
    hashes = np.concatenate([grams for grams, _ in entries])
    owners = np.concatenate([np.full(len(grams), owner, dtype=np.int64) for grams, owner in entries])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owners[order]
