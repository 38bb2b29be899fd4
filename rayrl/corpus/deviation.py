"""The stage `check`: does an answer keep to its text? What doesn't is worded again, then set aside.

In one language, by the 1-gram Jaccard similarity of text and answer (HuatuoGPT-II, section 3.2, which doesn't say the
threshold; 0.5 stands in its code, commented out). Units are Chinese characters and words (data/units.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from rayrl.config.corpus import CheckConfig, UnifyConfig
from rayrl.corpus.records import INSTRUCTION, Result
from rayrl.corpus.unify import Generator, answer_messages, why_not
from rayrl.data.units import units

DEVIATES = "the answer departs from its text"


def overlap(text: str, answer: str) -> float:
    """1-gram Jaccard similarity, from 0 to 1. Example: ("头痛三天", "头痛") -> 0.5"""
    a, b = set(units(text)), set(units(answer))
    return len(a & b) / len(a | b) if a or b else 0.0


class Check:
    """The step: instructions in and out."""

    def __init__(self, config: CheckConfig, unify: UnifyConfig, generator: Generator) -> None:
        self._config, self._unify, self._generate = config, unify, generator

    def __call__(self, table: pa.Table) -> Result:
        """See records.Step."""
        rows = table.to_pylist()
        notes: Counter[str] = Counter()
        left = [i for i, row in enumerate(rows) if not self._keeps(row)]
        notes["answers that departed at first"] = len(left)
        for attempt in range(self._config.regenerate):
            if not left:
                break
            # Further requests than `unify` made, so that they are new ones.
            number = self._unify.tries + attempt
            requests = [self._request(rows[i], number) for i in left]
            notes["requests"] += len(left)
            again = []
            for i, reply in zip(left, self._generate(requests, number), strict=True):
                row = rows[i]
                row["tries"] += 1
                if reply is not None and why_not(reply, self._unify, question=False) is None:
                    row["messages"][1]["content"] = reply.strip()
                if not self._keeps(row):
                    again.append(i)
            left = again
        gone = set(left)
        kept = pa.Table.from_pylist([row for i, row in enumerate(rows) if i not in gone], schema=INSTRUCTION)
        return Result(kept, [(i, DEVIATES) for i in left], notes=notes)

    def _keeps(self, row: dict[str, Any]) -> bool:
        """Whether the answer keeps to its text; notes how much they share."""
        row["overlap"] = overlap(row["text"], row["messages"][1]["content"])
        least = self._config.least_overlap.get(f"{row['language'][:2]}-{row['target']}")
        return least is None or row["overlap"] >= least

    def _request(self, row: dict[str, Any], attempt: int) -> Any:
        question = row["messages"][0]["content"]
        return answer_messages(row["text"], question, row["target"], self._unify, attempt)
