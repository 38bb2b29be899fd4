"""The stage `clean`: rules, then the classifier on what is left, then masks on what is kept."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from rayrl.config.corpus import CleanConfig
from rayrl.corpus.classifier import Classifier
from rayrl.corpus.personal import mask
from rayrl.corpus.records import Result, keep, replace
from rayrl.corpus.rules import why_not

BAD = "the classifier calls it bad"


class Clean:
    """The step. `quality`: None where no classifier is configured."""

    def __init__(self, config: CleanConfig, quality: Classifier[str] | None) -> None:
        self._config, self._quality = config, quality

    def __call__(self, table: pa.Table) -> Result:
        """See records.Step."""
        rules, texts, languages = self._config.rules, table["text"].to_pylist(), table["language"].to_pylist()
        reasons: list[str | None] = [
            why_not(text, language, rules) if rules is not None else None
            for text, language in zip(texts, languages, strict=True)
        ]
        if self._quality is not None:
            left = [i for i, reason in enumerate(reasons) if reason is None]
            good = self._quality.probabilities([texts[i] for i in left])
            probabilities: list[float | None] = [None] * len(texts)
            for i, probability in zip(left, good.tolist(), strict=True):
                probabilities[i] = probability
                if probability < self._quality.threshold:
                    reasons[i] = BAD
            table = replace(table, "quality", probabilities)
        result = keep(table, reasons)
        return self._masked(result) if self._config.mask else result

    def _masked(self, result: Result) -> Result:
        table, notes = result.table, Counter[str]()
        named = [genre in self._config.mask_names for genre in table["genre"].to_pylist()]
        for column in ("text", "before", "after"):
            values = []
            for text, names in zip(table[column].to_pylist(), named, strict=True):
                if text is not None:
                    text, found = mask(text, names=names)
                    if column == "text":
                        notes.update({f"masked {kind}": number for kind, number in found.items()})
                values.append(text)
            table = replace(table, column, values)
        return Result(table, result.dropped, notes=notes)
