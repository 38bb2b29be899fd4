"""How good a reward model is on held-out comparisons, and how much of that is length.

Numbers in, numbers out. Pairs of one prompt share its text and often an answer, so every interval is over prompts: a
share's variance is that of a ratio over clusters, and its interval Wilson's at the effective sample size (Dean and
Pagano 2015, Survey Methodology 41), which stays within 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayrl.evaluation.statistics import Estimate, wilson


@dataclass(frozen=True)
class ScoredPair:
    """A decided comparison with the model's scores. Example: ScoredPair("en-7", 1.2, 0.3, 40, 55, {"source": "a"})"""

    prompt_id: str
    better: float
    worse: float
    better_tokens: int
    worse_tokens: int
    labels: Mapping[str, str] = field(default_factory=dict)
    """What to report accuracy by: source, rater, department, flaw, margin."""

    @property
    def right(self) -> float:
        """1 where the better answer scores higher, 0.5 where both score the same."""
        return _right(self.better - self.worse)


def _right(difference: float) -> float:
    return 0.5 + 0.5 * ((difference > 0) - (difference < 0))


def clustered_share(values: Iterable[tuple[str, float]], confidence: float = 0.95) -> Estimate:
    """The mean of values in 0..1, given as (cluster, value), with its interval; `n` counts clusters.

    Raises ValueError where there are none.
    """
    sums: dict[str, tuple[float, int]] = {}
    for cluster, value in values:
        total, count = sums.get(cluster, (0.0, 0))
        sums[cluster] = (total + value, count + 1)
    if not sums:
        raise ValueError("clustered_share: no values")
    totals, counts = (np.array(column, dtype=float) for column in zip(*sums.values(), strict=True))
    clusters, n = len(sums), float(counts.sum())
    share = float(totals.sum()) / n
    effective = float(clusters)  # where every value is the same, each cluster counts once
    if clusters > 1 and 0 < share < 1:
        variance = clusters / (clusters - 1) * float(((totals - share * counts) ** 2).sum()) / n**2
        effective = min(n, share * (1 - share) / variance) if variance > 0 else n
    return Estimate(share, *wilson(share, effective, confidence), clusters)


def accuracy(pairs: Sequence[ScoredPair]) -> Estimate | None:
    """Share of pairs in which the better answer scores higher; None without pairs."""
    return clustered_share((pair.prompt_id, pair.right) for pair in pairs) if pairs else None


def accuracy_by(pairs: Sequence[ScoredPair], label: str) -> dict[str, tuple[Estimate, int]]:
    """(accuracy, pairs) by a label's values, the most frequent first; pairs without the label are left out."""
    groups: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        if label in pair.labels:
            groups.setdefault(pair.labels[label], []).append(pair)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: (_must(accuracy(members)), len(members)) for name, members in ordered}


def _must(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


@dataclass(frozen=True)
class LengthRule:
    """A preference that looks at nothing but the answer's length. Example: LengthRule("near", 40)"""

    name: str
    """`longer`, `shorter`, or `near`: the nearer to `target` tokens (as a ratio), the better."""
    target: float | None = None

    def score(self, tokens: int) -> float:
        """Higher is better."""
        if self.target is not None:
            return -abs(math.log(tokens / self.target))
        return float(tokens if self.name == "longer" else -tokens)


def fit_length_rule(lengths: Sequence[tuple[int, int]]) -> LengthRule:
    """The rule that gets most of the training pairs right, given as (better, worse) tokens.

    Targets tried: the 5% quantiles of all lengths. So the baseline is as strong as length alone can be made this way,
    and its accuracy on held-out pairs is measured, not fitted.
    """
    if not lengths:
        raise ValueError("fit_length_rule: no pairs")
    quantiles = np.unique(np.quantile(np.array(lengths), np.linspace(0.05, 0.95, 19)))
    rules = [LengthRule("longer"), LengthRule("shorter"), *(LengthRule("near", float(q)) for q in quantiles)]
    return max(rules, key=lambda rule: sum(_right(rule.score(a) - rule.score(b)) for a, b in lengths))


def length_accuracy(pairs: Sequence[ScoredPair], rule: LengthRule) -> Estimate | None:
    """How often a length rule prefers the better answer."""
    if not pairs:
        return None
    return clustered_share(
        (pair.prompt_id, _right(rule.score(pair.better_tokens) - rule.score(pair.worse_tokens))) for pair in pairs
    )


def length_matched(pairs: Sequence[ScoredPair], ratio: float) -> list[ScoredPair]:
    """Pairs whose longer answer has at most `ratio` times the tokens of the shorter."""
    return [
        pair
        for pair in pairs
        if max(pair.better_tokens, pair.worse_tokens) <= ratio * min(pair.better_tokens, pair.worse_tokens)
    ]


@dataclass(frozen=True)
class Bin:
    """A bin of the reliability curve: mean confidence, share right, pairs."""

    confidence: float
    right: Estimate
    pairs: int


@dataclass(frozen=True)
class Calibration:
    """How far the model's probabilities can be believed."""

    bins: list[Bin]
    ece: float
    """Expected calibration error: mean gap between confidence and share right, weighted by pairs."""
    log_loss: float
    """Mean of -log P(the better answer is better), nats; log 2 = 0.693 knows nothing."""
    brier: float


def calibration(pairs: Sequence[ScoredPair], num_bins: int) -> Calibration:
    """Of P(better wins) = sigmoid(difference of scores), by confidence in the answer that the model prefers (0.5 to 1).

    Bins of equal width; empty ones are left out.
    """
    if not pairs:
        raise ValueError("calibration: no pairs")
    difference = np.array([pair.better - pair.worse for pair in pairs])
    probability = 1 / (1 + np.exp(-difference))
    confidence = np.maximum(probability, 1 - probability)
    place = np.minimum(num_bins - 1, ((confidence - 0.5) * 2 * num_bins).astype(int))
    bins = []
    for number in range(num_bins):
        members = np.flatnonzero(place == number)
        if len(members):
            right = clustered_share((pairs[i].prompt_id, pairs[i].right) for i in members)
            bins.append(Bin(float(confidence[members].mean()), right, len(members)))
    ece = sum(b.pairs * abs(b.confidence - b.right.mean) for b in bins) / len(pairs)
    log_loss = float(np.mean(np.logaddexp(0.0, -difference)))
    return Calibration(bins, ece, log_loss, float(np.mean((1 - probability) ** 2)))


def length_correlation(scores: Sequence[float], tokens: Sequence[int], prompts: Sequence[str]) -> dict[str, Any]:
    """Correlation of score and length over answers: Pearson, Spearman, and Pearson within prompts (each value less its
    prompt's mean), which is what a policy trained on the score would feel. None where one of the two doesn't vary.
    """
    x, y = np.asarray(scores, dtype=float), np.asarray(tokens, dtype=float)
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    count = np.bincount(group)
    centred = [values - (np.bincount(group, values) / count)[group] for values in (x, y)]
    return {
        "pearson": _pearson(x, y),
        "spearman": _pearson(_ranks(x), _ranks(y)),
        "within_prompt": _pearson(*centred),
    }


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 2 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts + 1) / 2)[inverse])


def margin_label(margin: float | None, cuts: Sequence[float]) -> str:
    """Which part of the margins a pair's lies in. Example: (2.0, [1, 3]) -> "1 to 3" """
    if margin is None:
        return "none given"
    for number, cut in enumerate(cuts):
        if margin <= cut:
            return f"up to {cut:g}" if number == 0 else f"above {cuts[number - 1]:g}, up to {cut:g}"
    return f"above {cuts[-1]:g}" if cuts else "any"


def margin_cuts(margins: Sequence[float]) -> list[float]:
    """Where to cut margins: between their values where there are at most five, else at their thirds."""
    values = sorted(set(margins))
    if len(values) <= 5:
        return values[:-1]
    return sorted({float(q) for q in np.quantile(np.array(margins), [1 / 3, 2 / 3])})


def histogram(groups: Mapping[str, Sequence[float]], bins: int = 20) -> dict[str, Any]:
    """Counts by group in `bins` bins of equal width over all values together."""
    every = np.concatenate([np.asarray(values, dtype=float) for values in groups.values()])
    edges = np.histogram_bin_edges(every, bins)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in groups.items()}
    return {"edges": edges.tolist(), "counts": counts}
