"""The stage `clean`: labels, where a model gives them; the classifier fitted on them; then every shard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rayrl.corpus.clean import Clean
from rayrl.corpus.labels import chosen, kind_of, label_messages
from rayrl.corpus.quality import MODEL, REPORT, Labelled, Quality, fit, read_labels, report_json
from rayrl.corpus.records import Step, Tally
from rayrl.corpus.shards import num_rows, read_batches
from rayrl.data.storage import Place
from rayrl.judge.service import ModelService
from rayrl.stages.corpus_generators import EndpointGenerator
from rayrl.stages.corpus_work import Counts, Phase, Stage, StepWorker, Worker, tally_of

LABELS = "labels.jsonl"


class LabelWorker(Worker):
    """A shard's part of the sample, labelled by the model. `share`: of all texts."""

    def __init__(self, phase: Phase, share: float) -> None:
        super().__init__(phase)
        quality = phase.config.clean.quality if phase.config.clean is not None else None
        assert quality is not None and quality.judge is not None
        self._share, self._ask = share, EndpointGenerator(ModelService(quality.judge))

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: a shard's path."""
        sample = [
            row
            for table in read_batches(payload, ["id", "text", "source"])
            for row in table.to_pylist()
            if chosen(row["id"], self._share)
        ]
        kinds = [kind_of(reply) for reply in self._ask([label_messages(row["text"]) for row in sample], 0)]
        labelled = [
            {"text": row["text"], "label": "good" if kind == "good" else "bad", "kind": kind, "group": row["source"]}
            for row, kind in zip(sample, kinds, strict=True)
            if kind is not None
        ]
        return {"labels": labelled}


class FitWorker(Worker):
    """The one task that fits the classifier."""

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the labels' file."""
        assert self.config.clean is not None and self.config.clean.quality is not None
        quality, report = fit(read_labels(payload), self.config.clean.quality, self.config.seed)
        quality.save(self.folder / MODEL)
        (self.folder / REPORT).write_json(report_json(report))
        return {}


def clean(stage: Stage, shards: Sequence[str]) -> Tally:
    """Does the stage. Raises UserError where the labels don't do."""
    config = stage.config.clean
    assert config is not None
    if config.quality is not None:
        path = config.quality.labels
        if path is None:
            _ask(stage, shards)
            path = (stage.folder.place / LABELS).uri
        stage.phase("fit", FitWorker, [path], light=True)
    return tally_of(stage.phase("clean", StepWorker, shards, make_clean, light=True))


def make_clean(phase: Phase) -> Step:
    """In the worker."""
    config = phase.config.clean
    assert config is not None
    return Clean(config, Quality.load(Place(phase.folder) / MODEL) if config.quality is not None else None)


def _ask(stage: Stage, shards: Sequence[str]) -> None:
    """Has a sample labelled, and keeps the labels beside the shards."""
    assert stage.config.clean is not None and stage.config.clean.quality is not None
    quality = stage.config.clean.quality
    assert quality.judge is not None
    service = ModelService(quality.judge)  # kept while workers ask: its actor lives as long as the first that asked
    share = quality.num_labels / max(1, sum(map(num_rows, shards)))
    counts = stage.phase("labels", LabelWorker, shards, share, light=True)
    del service
    labels = [Labelled(row["text"], row["label"] == "good", row["group"]) for one in counts for row in one["labels"]]
    rows = [{"text": one.text, "label": "good" if one.good else "bad", "group": one.group} for one in labels]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (stage.folder.place / LABELS).write_bytes(lines.encode("utf-8", "backslashreplace"))
