"""The stage `check`: does an answer keep to its text? What doesn't is worded again, then set aside.

In one language, by the 1-gram Jaccard similarity of text and answer (HuatuoGPT-II, appendix B, which doesn't say the
threshold; 0.5 stands in its code, commented out). Units are Chinese characters and words (data/units.py). Of two
languages, by a detector that is fitted on labels (detector.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from rayrl.config.corpus import CheckConfig, UnifyConfig
from rayrl.corpus.classifier import Classifier
from rayrl.corpus.detector import Pair
from rayrl.corpus.records import INSTRUCTION, Result
from rayrl.corpus.unify import Generator, answer_messages, why_not
from rayrl.data.units import units

DEVIATES = "the answer departs from its text"


def overlap(text: str, answer: str) -> float:
    """1-gram Jaccard similarity, from 0 to 1. Example: ("头痛三天", "头痛") -> 0.5"""
    a, b = set(units(text)), set(units(answer))
    return len(a & b) / len(a | b) if a or b else 0.0


def least_overlap(row: Mapping[str, Any], config: CheckConfig) -> float | None:
    """What text and answer of a row of INSTRUCTION must share; None where their languages aren't measured so."""
    return config.least_overlap.get(f"{row['language'][:2]}-{row['target']}")


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Text and answer of a row of INSTRUCTION."""
    return Pair(row["text"], row["messages"][1]["content"])


class Check:
    """The step: instructions in and out. `detector`: None where none is configured."""

    def __init__(
        self, config: CheckConfig, unify: UnifyConfig, generator: Generator, detector: Classifier[Pair] | None = None
    ) -> None:
        self._config, self._unify, self._generate, self._detector = config, unify, generator, detector

    def __call__(self, table: pa.Table) -> Result:
        """See records.Step."""
        rows = table.to_pylist()
        notes: Counter[str] = Counter()
        left = self._departing(rows, range(len(rows)), notes)
        notes["answers that departed at first"] = len(left)
        for attempt in range(self._config.regenerate):
            if not left:
                break
            # Further requests than `unify` made, so that they are new ones.
            number = self._unify.tries + attempt
            requests = [self._request(rows[i], number) for i in left]
            notes["requests"] += len(left)
            for i, reply in zip(left, self._generate(requests, number), strict=True):
                row = rows[i]
                row["tries"] += 1
                if reply is not None and why_not(reply, self._unify, question=False) is None:
                    row["messages"][1]["content"] = reply.strip()
            left = self._departing(rows, left, notes)
        gone = set(left)
        kept = pa.Table.from_pylist([row for i, row in enumerate(rows) if i not in gone], schema=INSTRUCTION)
        return Result(kept, [(i, DEVIATES) for i in left], notes=notes)

    def _departing(self, rows: Sequence[dict[str, Any]], asked: Iterable[int], notes: Counter[str]) -> list[int]:
        """Which rows' answers don't keep to their texts; notes by how much they do."""
        gone, unmeasured = [], []
        for i in asked:
            row = rows[i]
            row["overlap"] = overlap(row["text"], row["messages"][1]["content"])
            least = least_overlap(row, self._config)
            if least is None:
                unmeasured.append(i)
            elif row["overlap"] < least:
                gone.append(i)
        if self._detector is None and unmeasured:
            notes["answers that nothing measures"] = len(unmeasured)  # they are asked about once
        elif self._detector is not None:
            keeps = self._detector.probabilities([pair_of(rows[i]) for i in unmeasured])
            for i, probability in zip(unmeasured, keeps.tolist(), strict=True):
                rows[i]["keeps"] = probability
                if probability < self._detector.threshold:
                    gone.append(i)
        return sorted(gone)

    def _request(self, row: dict[str, Any], attempt: int) -> Any:
        question = row["messages"][0]["content"]
        return answer_messages(row["text"], question, row["target"], self._unify, attempt)
