"""What a reward model's held-out scores say: summary.json, the scores themselves, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rayrl.config.reward import RewardConfig
from rayrl.evaluation.plots import Panel, Plot, Series
from rayrl.evaluation.preference_metrics import (
    ScoredPair,
    accuracy,
    accuracy_by,
    calibration,
    fit_length_rule,
    histogram,
    length_accuracy,
    length_correlation,
    length_matched,
    margin_cuts,
    margin_label,
)
from rayrl.evaluation.stage_report import Page, Table
from rayrl.evaluation.statistics import Estimate
from rayrl.learners.preferences import PreferenceSet
from rayrl.stages.reward_data import RewardData
from rayrl.stages.reward_worker import trained_blocks
from rayrl.tracking.rows import read_rows, replace_rows

LABELS = ("source", "rater", "department", "flaw", "margin")
"""What accuracy is reported by. Department and flaw are fields of the prompt."""


def scored_pairs(data: RewardData, scores: np.ndarray) -> list[ScoredPair]:
    """The decided held-out pairs with their scores (`scores`: of every held-out answer)."""
    heldout = data.heldout
    pairs = [(group, pair) for group in heldout.groups for pair in group.pairs]
    margins = [row.margin for row in data.heldout_comparisons if row.margin is not None and row.verdict != "tie"]
    cuts = margin_cuts(margins) if margins else []
    scored = []
    for (group, pair), row in zip(pairs, data.heldout_comparisons, strict=True):
        if pair.tie:
            continue
        labels = {"source": row.origin.source, "rater": row.rater, "margin": margin_label(row.margin, cuts)}
        labels |= {name: str(row.prompt.fields[name]) for name in ("department", "flaw") if name in row.prompt.fields}
        scored.append(
            ScoredPair(
                group.prompt_id,
                float(scores[pair.better]),
                float(scores[pair.worse]),
                len(heldout.answers[pair.better].response_ids_T),
                len(heldout.answers[pair.worse].response_ids_T),
                labels,
            )
        )
    return scored


def summarise(
    config: RewardConfig, data: RewardData, scores: np.ndarray, last: np.ndarray, state: dict[str, Any]
) -> dict[str, Any]:
    """The content of summary.json; estimates are mappings `mean, low, high, n` (n: prompts).

    `scores` are the best checkpoint's, `last` the last one's, whose accuracy wasn't chosen by looking.
    """
    pairs = scored_pairs(data, scores)
    rule = fit_length_rule(_lengths(data.train))
    found, baseline = accuracy(pairs), length_accuracy(pairs, rule)
    assert found is not None and found.low is not None and baseline is not None
    matched = length_matched(pairs, config.evaluation.length_ratio)
    answers = data.heldout.answers
    prompts = [group.prompt_id for group in data.heldout.groups for _ in group.rows]
    tokens = [len(answer.response_ids_T) for answer in answers]
    better, worse = [pair.better for pair in pairs], [pair.worse for pair in pairs]
    return {
        "headline": (
            f"held-out accuracy {found.mean:.3f} (95% interval {found.low:.3f} to {found.high:.3f}), "
            f"length alone {baseline.mean:.3f}"
        ),
        "model": config.model.model,
        "trained": trained_blocks(config.model.train),
        "steps": state["step"],
        "best_step": state["best_step"],
        "data": data.counts,
        "accuracy": asdict(found) | {"pairs": len(pairs)},
        "last_accuracy": _mapping(accuracy(scored_pairs(data, last))),
        "length_baseline": {
            "rule": rule.name,
            "target_tokens": rule.target,
            "accuracy": asdict(baseline),
            "below_accuracy": found.low > baseline.mean,
        },
        "by": {label: _by(pairs, label) for label in LABELS},
        "length_matched": {
            "ratio": config.evaluation.length_ratio,
            "pairs": len(matched),
            "accuracy": _mapping(accuracy(matched)),
        },
        "length_correlation": length_correlation(scores.tolist(), tokens, prompts),
        "calibration": asdict(calibration(pairs, config.evaluation.calibration_bins)),
        "scores": {
            "mean": float(np.mean(scores)),
            "std": float(np.std(scores)),
            "better": {"mean": float(np.mean(better)), "std": float(np.std(better))},
            "worse": {"mean": float(np.mean(worse)), "std": float(np.std(worse))},
            "histogram": histogram({"better": better, "worse": worse}),
        },
    }


def write_scores(path: Path, data: RewardData, scores: np.ndarray) -> None:
    """One row a held-out pair: the comparison's id, its verdict and both scores; no texts."""
    pairs = [pair for group in data.heldout.groups for pair in group.pairs]
    rows = []
    for pair, row in zip(pairs, data.heldout_comparisons, strict=True):
        first, second = (pair.worse, pair.better) if row.verdict == "b" else (pair.better, pair.worse)
        rows.append(
            {
                "id": row.id,
                "prompt_id": row.prompt.id,
                "verdict": row.verdict,
                "score_a": float(scores[first]),
                "score_b": float(scores[second]),
            }
        )
    replace_rows(path, rows)


def page(folder: Path, summary: dict[str, Any]) -> Page:
    """The report."""
    found, baseline = summary["accuracy"], summary["length_baseline"]
    above = baseline["below_accuracy"]
    length = f"length alone gets {_percent(baseline['accuracy']['mean'])}"
    matched = summary["length_matched"]
    correlation = summary["length_correlation"]["within_prompt"]
    calibrated = summary["calibration"]
    return Page(
        kind="reward model",
        headline=f"Prefers the better of two held-out answers in {_percent(found['mean'])} of pairs",
        tone="good" if above else "bad",
        detail=f"95% interval {_interval(found)}, over {found['n']} prompts; {length}"
        + (", below the interval." if above else ": not clearly less."),
        facts=[
            ("Start", summary["model"]),
            ("Trained", summary["trained"]),
            ("Pairs", f"{summary['data']['train']['pairs']} to train, {summary['data']['heldout']['pairs']} held out"),
            (
                "Best checkpoint",
                f"after step {summary['best_step']} of {summary['steps']}, by these pairs; the last one: "
                f"{_percent(summary['last_accuracy']['mean'])} ({_interval(summary['last_accuracy'])})",
            ),
        ],
        tiles=[
            ("Accuracy", _percent(found["mean"]), _interval(found)),
            ("Length alone", _percent(baseline["accuracy"]["mean"]), _rule(baseline)),
            (
                "Length matched",
                "–" if matched["accuracy"] is None else _percent(matched["accuracy"]["mean"]),
                f"{matched['pairs']} pairs within a ratio of {matched['ratio']:g}",
            ),
            ("Calibration error", _percent(calibrated["ece"]), f"log loss {calibrated['log_loss']:.3f}"),
            (
                "Score and length",
                "–" if correlation is None else f"{correlation:+.2f}".replace("-", "−"),
                "correlation within prompts",
            ),
        ],
        tables=[_table(label, rows) for label, rows in summary["by"].items() if rows],
        sections=_plots(summary, read_rows(folder / "metrics.jsonl")),
    )


def _lengths(data: PreferenceSet) -> list[tuple[int, int]]:
    tokens = [len(answer.response_ids_T) for answer in data.answers]
    pairs = [pair for group in data.groups for pair in group.pairs]
    return [(tokens[pair.better], tokens[pair.worse]) for pair in pairs if not pair.tie] or [(1, 1)]


def _by(pairs: Sequence[ScoredPair], label: str) -> dict[str, Any]:
    return {name: asdict(value) | {"pairs": count} for name, (value, count) in accuracy_by(pairs, label).items()}


def _mapping(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def _table(label: str, rows: dict[str, Any]) -> Table:
    cells = [(name, str(row["pairs"]), _percent(row["mean"]), _interval(row)) for name, row in rows.items()]
    note = f"Held-out accuracy by {label}; 95% intervals over prompts."
    return Table(f"By {label}", note, (label.capitalize(), "Pairs", "Accuracy", "95% interval"), cells)


def _plots(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[Plot]]]:
    bins = summary["calibration"]["bins"]
    confidence = [b["confidence"] for b in bins]
    right = [b["right"]["mean"] for b in bins]
    low, high = [b["right"]["low"] for b in bins], [b["right"]["high"] for b in bins]
    curve = Series("held-out pairs, 95% interval", confidence, right, low, high, points=True)
    ideal = Series("perfect calibration", [0.5, 1.0], [0.5, 1.0])
    spread = summary["scores"]["histogram"]
    centres = [(a + b) / 2 for a, b in zip(spread["edges"], spread["edges"][1:], strict=False)]
    counts = [
        Series(name, centres, [float(n) for n in spread["counts"][key]])
        for name, key in (("better answers", "better"), ("worse answers", "worse"))
    ]
    steps = [float(row["step"] + 1) for row in rows]
    evaluated = [row for row in rows if "heldout/accuracy" in row]
    at = [float(row["step"] + 1) for row in evaluated]
    losses = [
        Series("training batch", steps, [row["loss/ranking"] for row in rows]),
        Series("held-out pairs", at, [row["heldout/loss"] for row in evaluated], points=True),
    ]
    trained = [row for row in rows if "accuracy/train" in row]
    accuracies = [
        Series("training batch", [float(r["step"] + 1) for r in trained], [r["accuracy/train"] for r in trained]),
        Series("held-out pairs", at, [row["heldout/accuracy"] for row in evaluated], points=True),
    ]
    training = [
        Plot(
            "Accuracy", "Share of pairs whose better answer scores higher.", [Panel("right", accuracies, percent=True)]
        ),
        Plot("Ranking loss", "Nats a pair; 0.693 knows nothing.", [Panel("loss", losses)]),
    ]
    scores = [
        Plot(
            "Reliability",
            "How often the preferred answer is the better one, by the model's confidence in it.",
            [Panel("right", [curve, ideal], percent=True)],
            x_label="confidence",
        ),
        Plot("Distribution", "Held-out answers by their score.", [Panel("answers", counts)], x_label="score"),
    ]
    return [("Training", training), ("Scores", scores)]


def _rule(baseline: dict[str, Any]) -> str:
    if baseline["rule"] == "near":
        return f"the nearer to {baseline['target_tokens']:.0f} tokens, the better"
    return f"the {baseline['rule']}, the better"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _interval(estimate: dict[str, Any]) -> str:
    return f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}%"
