"""How a stage gets a classifier: labels from a file or a model, then one task that fits it.

labels.jsonl              what a model labelled
NAME.npz, NAME.json       the classifier, and how good it is on held-out labels
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rayrl.config.corpus import CorpusConfig
from rayrl.corpus import detector, quality
from rayrl.corpus.classifier import Classifier, Features, Labelled, fit
from rayrl.corpus.deviation import least_overlap, pair_of
from rayrl.corpus.embed import make_encoder
from rayrl.corpus.labels import KINDS, chosen, kind_of, label_messages
from rayrl.corpus.shards import num_rows, read_batches
from rayrl.data.storage import Place
from rayrl.judge.service import ModelService
from rayrl.stages.corpus_generators import EndpointGenerator
from rayrl.stages.corpus_work import Counts, Phase, Stage, Worker
from rayrl.types import Message

logger = logging.getLogger(__name__)

LABELS = "labels.jsonl"


@dataclass(frozen=True)
class Kind:
    """What is classified, and how."""

    name: str
    key: str
    """Of the configuration, for messages."""
    columns: Sequence[str]
    """Of a shard, that an item is made from."""
    replies: Sequence[str]
    """What the model may say; the first is good."""
    labels: tuple[str, str]
    """What labels.jsonl calls good, and all else."""
    config: Callable[[CorpusConfig], Any]
    """Its section."""
    told_by: Sequence[str]
    """Columns that tell which rows are classified; none where all are."""
    classified: Callable[[Mapping[str, Any], CorpusConfig], bool]
    """Whether a row is."""
    item: Callable[[Mapping[str, Any]], Any]
    """A row's."""
    messages: Callable[[Any], list[Message]]
    """Asks the model for a label."""
    texts: Callable[[Any], dict[str, str]]
    """What labels.jsonl says of an item."""
    read: Callable[[str], list[Labelled[Any]]]
    """Labels of a file."""
    extra: Callable[[Sequence[Labelled[Any]], Any], list[Labelled[Any]]]
    """Further ones to fit on, made of them, by the section."""
    features: Callable[[Any], Features[Any]]
    """By the section; may load a model."""


def _quality_config(config: CorpusConfig) -> Any:
    return config.clean.quality if config.clean is not None else None


def _detector_config(config: CorpusConfig) -> Any:
    return config.check.detector if config.check is not None else None


def _unmeasured(row: Mapping[str, Any], config: CorpusConfig) -> bool:
    return config.check is not None and least_overlap(row, config.check) is None


QUALITY = Kind(
    name="quality",
    key=quality.KEY,
    columns=("id", "text", "source"),
    replies=KINDS,
    labels=("good", "bad"),
    config=_quality_config,
    told_by=(),
    classified=lambda row, config: True,
    item=lambda row: row["text"],
    messages=label_messages,
    texts=lambda text: {"text": text},
    read=quality.read_texts,
    extra=lambda labels, config: [],
    features=lambda config: quality.features,
)
DETECTOR = Kind(
    name="detector",
    key=detector.KEY,
    columns=("id", "text", "messages", "language", "target", "source"),
    replies=(detector.KEEPS, detector.DEPARTS),
    labels=(detector.KEEPS, detector.DEPARTS),
    config=_detector_config,
    told_by=("language", "target"),
    classified=_unmeasured,
    item=pair_of,
    messages=detector.label_pair_messages,
    texts=lambda pair: {"text": pair.text, "answer": pair.answer},
    read=detector.read_pairs,
    extra=lambda labels, config: detector.mismatched(labels) if config.mismatched else [],
    features=lambda config: detector.features_by(make_encoder(config.encoder) if config.encoder else None),
)

CLASSIFIERS = {"clean": QUALITY, "check": DETECTOR}
"""By stage."""


class LabelWorker(Worker):
    """A shard's part of the sample, labelled by the model. `share`: of all rows."""

    def __init__(self, phase: Phase, kind: Kind, share: float) -> None:
        super().__init__(phase)
        self._kind, self._share = kind, share
        self._ask = EndpointGenerator(kind.config(phase.config).judge)

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: a shard's path."""
        kind = self._kind
        rows = [
            row
            for table in read_batches(payload, list(kind.columns))
            for row in table.to_pylist()
            if chosen(row["id"], self._share) and kind.classified(row, self.config)
        ]
        items = [(kind.item(row), row["source"]) for row in rows]
        replies = self._ask([kind.messages(item) for item, _ in items], 0)
        labels = []
        for (item, group), reply in zip(items, replies, strict=True):
            said = kind_of(reply, kind.replies)
            if said is not None:
                label = kind.labels[said != kind.replies[0]]
                labels.append({**kind.texts(item), "label": label, "group": group})
        return {"labels": labels}


class FitWorker(Worker):
    """The one task that fits the classifier."""

    def __init__(self, phase: Phase, kind: Kind) -> None:
        super().__init__(phase)
        self._kind = kind

    def do(self, number: int, payload: Any) -> Counts:
        """`payload`: the labels' file."""
        kind, config = self._kind, self._kind.config(self.config)
        labels = kind.read(payload)
        extra = kind.extra(labels, config)
        found, report = fit(labels, kind.features(config), config, self.config.seed, kind.key, extra)
        found.save(self.folder / f"{kind.name}.npz")
        (self.folder / f"{kind.name}.json").write_json(asdict(report))
        return {}


def fit_classifier(stage: Stage, shards: Sequence[str], kind: Kind) -> None:
    """Gives the stage's folder its classifier; none where a model would label rows, and there are none to label.

    Raises UserError where the labels don't do.
    """
    path = kind.config(stage.config).labels
    if path is None:
        number = _num_classified(shards, kind, stage.config)
        if not number:
            return
        _ask(stage, shards, kind, number)
        path = (stage.folder.place / LABELS).uri
    stage.phase("fit", FitWorker, [path], kind, light=True)
    _say((stage.folder.place / f"{kind.name}.json").read_json(), kind, kind.config(stage.config).least_recall)


def _say(report: Mapping[str, Any], kind: Kind, least_recall: float) -> None:
    measured = report["measured"]
    share = measured["good"] / sum(measured.values())
    logger.info(
        "%s, on %d held-out labels: at %.2f it keeps %.1f%% of the good ones, and %.1f%% of what it keeps is good "
        "(of all: %.1f%%)",
        kind.key, sum(measured.values()), report["threshold"], 100 * report["recall"], 100 * report["precision"],
        100 * share,
    )  # fmt: skip
    if report["recall"] < least_recall or report["precision"] <= share:
        logger.warning("%s: that is worse than asked for, or than no classifier: label more", kind.key)


def load_classifier(phase: Phase, kind: Kind) -> Classifier[Any] | None:
    """In a worker, what `fit_classifier` left."""
    file, config = Place(phase.folder) / f"{kind.name}.npz", kind.config(phase.config)
    return Classifier.load(file, kind.features(config)) if config is not None and file.is_file() else None


def _num_classified(shards: Sequence[str], kind: Kind, config: CorpusConfig) -> int:
    if not kind.told_by:
        return sum(map(num_rows, shards))
    number, columns = 0, list(kind.told_by)
    for shard in shards:
        for table in read_batches(shard, columns, max_rows=1 << 20):
            groups = table.group_by(columns).aggregate([([], "count_all")]).to_pylist()
            number += sum(row["count_all"] for row in groups if kind.classified(row, config))
    return number


def _ask(stage: Stage, shards: Sequence[str], kind: Kind, number: int) -> None:
    """Has a sample of so many rows labelled, and keeps the labels beside the shards."""
    config = kind.config(stage.config)
    service = ModelService(config.judge)  # kept while workers ask: its actor lives as long as the first that asked
    share = config.num_labels / number
    counts = stage.phase("labels", LabelWorker, shards, kind, share, light=True)
    del service
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for one in counts for row in one["labels"]]
    (stage.folder.place / LABELS).write_bytes("".join(lines).encode("utf-8", "backslashreplace"))
