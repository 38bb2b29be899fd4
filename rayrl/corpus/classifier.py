"""A classifier of good and bad items, by what was labelled good and bad: logistic regression (SciPy's L-BFGS).

It is measured by cross-validation: each label by a classifier that was fitted on other groups of labels (sources, where
rows name them). The threshold is chosen by that; the classifier itself is then fitted on all labels. What an item is,
and by what features it is told, others say: quality.py, detector.py.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from scipy.special import expit

from rayrl.config.corpus import LabelledConfig
from rayrl.data.storage import Place
from rayrl.errors import UserError

T = TypeVar("T")
NUM_FEATURES = 1 << 18
_DECAY, _ITERATIONS = 1e-5, 100
_THRESHOLDS = (0.01, 0.02, 0.03, 0.04, *(n / 20 for n in range(1, 20)))
Features = Callable[[Sequence[T]], Any]
"""Of N items, sparse float32 [N, NUM_FEATURES]."""


@dataclass(frozen=True)
class Labelled(Generic[T]):
    """Example: Labelled("加微信订购，特价优惠", False, "adverts")"""

    item: T
    good: bool
    group: str
    """No item is measured by a fit on items of its group."""


@dataclass(frozen=True)
class Report:
    """How good a classifier is on labels that it wasn't fitted on: of finding good items."""

    threshold: float
    precision: float
    recall: float
    measured: dict[str, int]
    """Labels of each kind that precision and recall are of."""
    made_up: int
    """Labels that were only fitted on, unless there were no others of their kind."""
    parts: int
    """The labels were divided into; each was measured by a fit on the others."""
    by: Literal["group", "item"]
    """What was never on both sides."""
    curve: list[dict[str, float]]
    """Precision and recall at thresholds from 0.01 to 0.95."""


def read_labels(
    path: str, what: str, names: Sequence[str], make: Callable[[Sequence[str]], T], labels: Mapping[str, bool]
) -> list[Labelled[T]]:
    """JSONL rows with texts called `names`, a `label` and, if wanted, a `group`. Raises UserError for other rows.

    `what`: the configuration's key, for messages; `make`: an item of a row's texts; `labels`: which label is good.
    """
    try:
        lines = Place.of(path).read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: {path} can't be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts, good = [row[name] for name in names], labels[row["label"]]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("no text")
            found.append(Labelled(make(texts), good, str(row.get("group", ""))))
        except (ValueError, KeyError, TypeError) as error:
            expected = f"{', '.join(names)} and label ({' or '.join(labels)})"
            raise UserError(f"{path}, line {number}: expected {expected}") from error
    return found


class Classifier(Generic[T]):
    """A fitted one."""

    def __init__(self, features: Features[T], weights: np.ndarray, bias: float, threshold: float) -> None:
        self._features, self._weights, self._bias, self.threshold = features, weights, bias, threshold

    def probabilities(self, items: Sequence[T]) -> np.ndarray:
        """float32 [N]: that each item is good."""
        if not len(items):
            return np.empty(0, dtype=np.float32)
        return _probabilities(self._features(items), self._weights, self._bias)

    def save(self, place: Place) -> None:
        """Writes it."""
        out = io.BytesIO()
        np.savez(out, weights=self._weights, bias=np.float64(self._bias), threshold=np.float64(self.threshold))
        place.write_bytes(out.getvalue())

    @classmethod
    def load(cls, place: Place, features: Features[T]) -> Classifier[T]:
        """Reads what `save` wrote."""
        found = np.load(io.BytesIO(place.read_bytes()))
        return cls(features, found["weights"], float(found["bias"]), float(found["threshold"]))


def fit(
    labels: Sequence[Labelled[T]],
    features: Features[T],
    config: LabelledConfig,
    seed: int,
    what: str,
    extra: Sequence[Labelled[T]] = (),
) -> tuple[Classifier[T], Report]:
    """Measures, chooses the threshold and fits. Raises UserError where there is too little of a kind to fit on.

    `what`: the configuration's key, for messages. `extra`: made-up labels, to fit on; they are measured only where the
    labels are all of one kind.
    """
    every = [*labels, *extra]
    if len({one.good for one in every}) < 2:
        raise UserError(f"{what}: the {len(labels)} labels are all of one kind: label more, of other groups")
    parts_N, by = _parts(every, max(2, round(1 / config.held_out_fraction)), seed)
    matrix, good_N = features([one.item for one in every]), np.array([one.good for one in every])
    measured_N = np.zeros(len(every), dtype=np.float32)
    for part in np.unique(parts_N):
        fitted, held = np.flatnonzero(parts_N != part), np.flatnonzero(parts_N == part)
        if len(np.unique(good_N[fitted])) < 2:
            raise UserError(
                f"{what}: of {len(labels)} labels, those to fit on are all of one kind: label more, of more groups, or "
                "set another held_out_fraction"
            )
        weights, bias = _fitted(matrix[fitted], good_N[fitted])
        measured_N[held] = _probabilities(matrix[held], weights, bias)
    counted = len(labels) if len({one.good for one in labels}) == 2 else len(every)
    curve = _curve(measured_N[:counted], good_N[:counted])
    best = _choose(curve, config.least_recall)
    weights, bias = _fitted(matrix, good_N)
    good = int(good_N[:counted].sum())
    report = Report(
        threshold=best["threshold"],
        precision=best["precision"],
        recall=best["recall"],
        measured={"good": good, "bad": counted - good},
        made_up=len(extra),
        parts=len(np.unique(parts_N)),
        by=by,
        curve=curve,
    )
    return Classifier(features, weights, bias, best["threshold"]), report


def _fitted(matrix: Any, good_N: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias with the least mean loss; good and bad items count the same together, however many there are."""
    from scipy.optimize import minimize

    used = np.unique(matrix.indices)  # the others' weights stay 0
    small = matrix[:, used]
    signs_N = np.where(good_N, 1.0, -1.0)
    shares_N = np.where(good_N, 0.5 / good_N.sum(), 0.5 / (~good_N).sum())

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = point[:-1], point[-1]
        margins_N = signs_N * (small @ weights + bias)
        slope_N = -signs_N * shares_N * expit(-margins_N)
        value = float((shares_N * np.logaddexp(0, -margins_N)).sum() + _DECAY / 2 * (weights @ weights))
        return value, np.append(small.T @ slope_N + _DECAY * weights, slope_N.sum())

    found = minimize(loss, np.zeros(len(used) + 1), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    weights = np.zeros(NUM_FEATURES, dtype=np.float32)
    weights[used] = found.x[:-1]
    return weights, float(found.x[-1])


def hashed(rows: Sequence[np.ndarray]) -> Any:
    """Sparse float32 [N, NUM_FEATURES] of each row's hashes (uint64 [n]), counted; a row has length 1.

    The hashing trick: half of the features count down (Weinberger et al. 2009, arXiv 0902.2206).
    """
    from scipy.sparse import csr_array

    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *rows])
    signs = np.where(hashes >> np.uint64(63), np.float32(-1), np.float32(1))
    columns = (hashes % np.uint64(NUM_FEATURES)).astype(np.int32)
    ends = np.cumsum([0, *map(len, rows)])
    found = csr_array((signs, columns, ends), shape=(len(rows), NUM_FEATURES))
    found.sum_duplicates()
    norms = np.sqrt(found.multiply(found).sum(axis=1))
    found.data /= np.repeat(np.where(norms > 0, norms, 1), np.diff(found.indptr)).astype(np.float32)
    return found


def _probabilities(matrix: Any, weights: np.ndarray, bias: float) -> np.ndarray:
    return np.asarray(expit(matrix @ weights + bias), dtype=np.float32)


def _parts(labels: Sequence[Labelled[Any]], number: int, seed: int) -> tuple[np.ndarray, Literal["group", "item"]]:
    """(int64 [N]: the part that each label is in, what was divided).

    By group: of each kind of label, first that of fewer groups, the largest group goes where there are fewest of that
    kind. By item where a kind has but one group.
    """
    groups: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for one in labels:
        groups[one.good][one.group] += 1
    if not all(len(kinds) > 1 for kinds in groups.values()):
        shares = np.array([_share(f"{seed}\0{one.item}") for one in labels])
        return (shares * number).astype(np.int64), "item"
    number = min(number, *(len(kinds) for kinds in groups.values()))
    part_of: dict[str, int] = {}
    for kinds in sorted(groups.values(), key=len):
        sizes = [sum(count for group, count in kinds.items() if part_of.get(group) == part) for part in range(number)]
        for group in sorted(kinds, key=lambda name: (-kinds[name], _share(f"{seed}\0{name}"))):
            if group not in part_of:
                part_of[group] = int(np.argmin(sizes))
                sizes[part_of[group]] += kinds[group]
    return np.array([part_of[one.group] for one in labels]), "group"


def _share(key: str) -> float:
    return int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13


def _curve(probabilities_N: np.ndarray, good_N: np.ndarray) -> list[dict[str, float]]:
    rows = []
    for threshold in _THRESHOLDS:
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
