"""The classifier of the stage `clean`: is a text good, by what texts were labelled good and bad?

HuatuoGPT-II trains one on texts that ChatGPT flagged as adverts or bad writing (section 3.1). Here: unit 1- and 2-grams
and character 3-grams, hashed, under logistic regression (scikit-learn's SGD). It is fitted on some groups of labels
(sources, where rows name them) and measured on others; the threshold is chosen on the held-out ones.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rayrl.config.corpus import QualityConfig
from rayrl.data.storage import Place
from rayrl.data.units import units
from rayrl.errors import UserError

NUM_FEATURES = 1 << 18
MODEL, REPORT = "quality.npz", "quality.json"
_MAX_CHARS = 4000


@dataclass(frozen=True)
class Labelled:
    """Example: Labelled("加微信订购，特价优惠", False, "adverts")"""

    text: str
    good: bool
    group: str
    """Texts of one group are all fitted on, or all measured on."""


@dataclass(frozen=True)
class QualityReport:
    """How good the classifier is on held-out labels: of finding good texts."""

    threshold: float
    precision: float
    recall: float
    fitted: dict[str, int]
    held_out: dict[str, int]
    groups_held_out: list[str]
    """Empty where the labels were divided text by text."""
    curve: list[dict[str, float]]
    """Precision and recall at thresholds from 0.05 to 0.95."""


def read_labels(path: str) -> list[Labelled]:
    """JSONL of `text`, `label` (good or bad) and, if wanted, `group`. Raises UserError for other rows."""
    try:
        lines = Place.of(path).read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"clean.quality.labels: {path} can't be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, good = row["text"], {"good": True, "bad": False}[row["label"]]
            if not isinstance(text, str):
                raise ValueError("no text")
            found.append(Labelled(text, good, str(row.get("group", ""))))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: expected text and label (good or bad)") from error
    return found


class Quality:
    """A fitted classifier."""

    def __init__(self, weights: np.ndarray, bias: float, threshold: float) -> None:
        self._weights, self._bias, self.threshold = weights, bias, threshold

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N]: that each text is good."""
        if not len(texts):
            return np.empty(0, dtype=np.float32)
        scores = features(texts) @ self._weights + self._bias
        return np.asarray(1 / (1 + np.exp(-np.clip(scores, -50, 50))), dtype=np.float32)

    def save(self, place: Place) -> None:
        """Writes it."""
        out = io.BytesIO()
        np.savez(out, weights=self._weights, bias=np.float64(self._bias), threshold=np.float64(self.threshold))
        place.write_bytes(out.getvalue())

    @classmethod
    def load(cls, place: Place) -> Quality:
        """Reads what `save` wrote."""
        found = np.load(io.BytesIO(place.read_bytes()))
        return cls(found["weights"], float(found["bias"]), float(found["threshold"]))


def features(texts: Sequence[str]) -> Any:
    """Sparse float32 [N, NUM_FEATURES], rows of length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(analyzer=_grams, n_features=NUM_FEATURES, dtype=np.float32)
    return vectorizer.transform(text[:_MAX_CHARS] for text in texts)


def _grams(text: str) -> list[str]:
    words = units(text)
    pairs = [f"{left} {right}" for left, right in pairwise(words)]
    solid = "".join(text.split())
    return words + pairs + [f"#{solid[i : i + 3]}" for i in range(len(solid) - 2)]


def fit(labels: Sequence[Labelled], config: QualityConfig, seed: int) -> tuple[Quality, QualityReport]:
    """Fits, measures and chooses the threshold. Raises UserError where either side has labels of one kind alone."""
    from sklearn.linear_model import SGDClassifier

    held = _held_out(labels, config.held_out_fraction, seed)
    fitted = [one for one, out in zip(labels, held, strict=True) if not out]
    measured = [one for one, out in zip(labels, held, strict=True) if out]
    for side, some in (("fit", fitted), ("measure", measured)):
        if len({one.good for one in some}) < 2:
            raise UserError(
                f"clean.quality: of {len(labels)} labels, those to {side} on are all of one kind: label more, of more "
                "groups, or set another held_out_fraction"
            )
    model = SGDClassifier(
        loss="log_loss", alpha=1e-5, class_weight="balanced", random_state=seed, max_iter=30, tol=1e-4
    )
    model.fit(features([one.text for one in fitted]), [one.good for one in fitted])
    quality = Quality(model.coef_[0].astype(np.float32), float(model.intercept_[0]), 0.5)
    good_N = np.array([one.good for one in measured])
    curve = _curve(quality.probabilities([one.text for one in measured]), good_N)
    best = _choose(curve, config.least_recall)
    quality.threshold = best["threshold"]
    return quality, QualityReport(
        best["threshold"],
        best["precision"],
        best["recall"],
        _count(fitted),
        _count(measured),
        sorted({one.group for one in measured} - {one.group for one in fitted}),
        curve,
    )


def report_json(report: QualityReport) -> dict[str, Any]:
    """For quality.json."""
    return asdict(report)


def _held_out(labels: Sequence[Labelled], fraction: float, seed: int) -> list[bool]:
    """By group, so that none is on both sides: a share of each kind of label's. By text where a kind has one group.

    A group that would take much more than the share is held out only where no other can be.
    """
    groups: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for one in labels:
        groups[one.good][one.group] += 1
    if not all(len(kinds) > 1 for kinds in groups.values()):
        return [_share(f"{seed}\0{one.text}") < fraction for one in labels]
    held: set[str] = set()
    for kinds in groups.values():
        wanted = fraction * kinds.total()
        order = sorted(kinds, key=lambda name: (_share(f"{seed}\0{name}"), name))
        for name in [*(name for name in order if kinds[name] <= 1.5 * wanted), *sorted(order, key=kinds.__getitem__)]:
            taken = sum(kinds[one] for one in held)
            large = taken > 0 and taken + kinds[name] > 1.5 * wanted
            last = any(other.keys() <= held | {name} for other in groups.values())
            if taken < wanted and not large and not last:
                held.add(name)
    return [one.group in held for one in labels]


def _share(key: str) -> float:
    return int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13


def _curve(probabilities_N: np.ndarray, good_N: np.ndarray) -> list[dict[str, float]]:
    rows = []
    for threshold in np.round(np.arange(0.05, 0.951, 0.05), 2):
        kept = probabilities_N >= threshold
        right = int((kept & good_N).sum())
        precision = right / int(kept.sum()) if kept.any() else 1.0
        rows.append({"threshold": float(threshold), "precision": precision, "recall": right / int(good_N.sum())})
    return rows


def _choose(curve: Sequence[dict[str, float]], least_recall: float) -> dict[str, float]:
    """The highest precision among thresholds that lose no more good texts than is permitted; else the best recall."""
    enough = [row for row in curve if row["recall"] >= least_recall]
    if not enough:
        return max(curve, key=lambda row: row["recall"])
    return max(enough, key=lambda row: (row["precision"], row["recall"]))


def _count(labels: Sequence[Labelled]) -> dict[str, int]:
    good = sum(one.good for one in labels)
    return {"good": good, "bad": len(labels) - good}
