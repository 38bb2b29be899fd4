"""Which plots a run's report shows, from its metric rows and held-out evaluations.

A training row of step k was measured with the weights after k steps and is drawn at k; what was evaluated after step
k is drawn at k + 1. A metric that no row has makes an empty plot, which the page says in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rayrl.evaluation.plots import Panel, Plot, Series
from rayrl.evaluation.statistics import Estimate, by_prompt, mean_interval
from rayrl.types import Sample

Rows = Sequence[Mapping[str, Any]]
Evaluations = Mapping[int, Sequence[Sample]]
"""Held-out samples by the number of steps trained before them."""

PHASES = ("generate", "score", "prepare", "update", "sync", "checkpoint", "evaluate", "coordinator")


def score_plots(rows: Rows, evaluations: Evaluations) -> list[Plot]:
    """The mixed score, then one plot a source: training batches and held-out prompts."""
    plots = [_score_plot("mixed", "Mixed score", rows, evaluations)]
    return plots + [_score_plot(name, name, rows, evaluations) for name in source_names(rows, evaluations)]


def source_names(rows: Rows, evaluations: Evaluations) -> list[str]:
    """Names of the reward sources, as training rows and evaluations have them."""
    logged = [key.removeprefix("score/") for row in rows for key in row if key.startswith("score/")]
    evaluated = [name for samples in evaluations.values() for sample in samples[:1] for name in sample.raw]
    return [name for name in dict.fromkeys([*logged, *evaluated]) if name != "mixed"]


def training_plots(rows: Rows) -> list[Plot]:
    """How far the policy moved, what it writes and how well the optimisation goes."""
    return [
        Plot(
            "KL from the reference",
            "How far the policy moved from its start, in nats a sequence, and the penalty's coefficient.",
            [
                panel(rows, "KL", {"KL a sequence": "kl/mean_per_sequence"}),
                panel(rows, "coefficient", {"coefficient": "kl/coef"}),
            ],
        ),
        Plot(
            "Answer length",
            "Tokens an answer, and the share of answers that closed with an end token.",
            [
                panel(rows, "tokens", {"mean": "length/mean", "longest": "length/max"}),
                panel(rows, "ended", {"ended": "length/ended_share"}, percent=True),
            ],
        ),
        Plot(
            "Losses",
            "Clipped policy loss, value loss and the weighted supervised term (if on), averaged over a step's updates.",
            [
                panel(rows, "policy", {"policy": "loss/policy", "supervised": "loss/ptx"}),
                panel(rows, "value", {"value": "loss/value"}),
            ],
        ),
        Plot(
            "Engine against trainer",
            "Mean absolute gap between the log-probabilities of the engine that sampled and of the trainer, in nats.",
            [panel(rows, "gap", {"log-probability gap": "engine/logprob_gap"})],
            tall=True,
        ),
        Plot(
            "Policy updates",
            "Share of tokens whose ratio was clipped, and the approximate KL to the policy that sampled.",
            [
                panel(rows, "clipped", {"clip fraction": "policy/clip_fraction"}),
                panel(rows, "KL", {"KL of the update": "policy/approx_kl"}),
            ],
        ),
        Plot(
            "Entropy and critic",
            "Entropy of the policy a token, and the share of the returns' variance that the critic explains.",
            [
                panel(rows, "entropy", {"entropy": "policy/entropy"}),
                panel(rows, "explained", {"explained variance": "value/explained_variance"}),
            ],
        ),
    ]


def win_plot(rows: Rows) -> list[Plot]:
    """How often held-out answers win against those before training; none where nobody was asked."""
    told = [row for row in rows if "eval/win_rate" in row]
    if not told:
        return []
    x = [float(row["step"]) + 1 for row in told]
    y, low, high = ([row[key] for row in told] for key in ("eval/win_rate", "eval/win_rate_low", "eval/win_rate_high"))
    series = Series("win rate", x, y, low, high, points=True)
    note = "Held-out answers against those before training, a tie counting half; 95% intervals."
    return [Plot("Wins against the start", note, [Panel("win rate", [series], percent=True)])]


def machine_plots(rows: Rows) -> list[Plot]:
    """Where the time went."""
    phases = {name: [row.get(f"time/{name}", 0.0) for row in rows] for name in PHASES}
    steps = [float(row["step"]) for row in rows]
    stack = [Series(name, steps, seconds) for name, seconds in phases.items() if any(seconds)]
    roles = sorted({key.removeprefix("busy/") for row in rows for key in row if key.startswith("busy/")})
    return [
        Plot(
            "Time by phase",
            "Seconds a step, by what the run was doing. Coordinator: nothing else was running.",
            [Panel("seconds", stack, stacked=True)],
        ),
        Plot(
            "Busy share by role",
            "Share of each step in which a role's actors were working.",
            [panel(rows, "busy", {role: f"busy/{role}" for role in roles}, percent=True)],
        ),
    ]


def _score_plot(name: str, title: str, rows: Rows, evaluations: Evaluations) -> Plot:
    train = panel(rows, "score", {"training prompts": f"score/{name}"}).series
    points = _evaluated(name, rows, evaluations)
    heldout = []
    if points:
        estimates = list(points.values())
        low = [estimate.mean if estimate.low is None else estimate.low for estimate in estimates]
        high = [estimate.mean if estimate.high is None else estimate.high for estimate in estimates]
        means = [estimate.mean for estimate in estimates]
        heldout = [Series("held-out prompts, 95% interval", [float(x) for x in points], means, low, high, points=True)]
    note = "Weighted sum of the sources: what training raises." if name == "mixed" else "Raw score of this source."
    return Plot(title, note, [Panel("score", train + heldout)], wide=name == "mixed")


def _evaluated(name: str, rows: Rows, evaluations: Evaluations) -> dict[int, Estimate]:
    """Held-out estimates by steps trained: from the rows, and from the stored samples where there are any."""
    points: dict[int, Estimate] = {}
    for row in rows:
        if f"eval/{name}" in row:
            mean = row[f"eval/{name}"]
            points[row["step"] + 1] = Estimate(mean, row.get(f"eval/{name}_low"), row.get(f"eval/{name}_high"), 0)
    for step, samples in evaluations.items():
        values = [(s.prompt_id, s.mixed if name == "mixed" else s.raw.get(name)) for s in samples]
        means = by_prompt((prompt_id, value) for prompt_id, value in values if value is not None)
        if means:
            points[step] = mean_interval(means.values())
    return dict(sorted(points.items()))


def panel(rows: Rows, label: str, keys: Mapping[str, str], percent: bool = False) -> Panel:
    """A line for each name whose metric some row has. `keys`: name -> metric."""
    lines = [Series(name, *_column(rows, key)) for name, key in keys.items()]
    return Panel(label, [series for series in lines if series.x], percent=percent)


def _column(rows: Iterable[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have the key."""
    have = [row for row in rows if key in row]
    return [float(row["step"]) for row in have], [float(row[key]) for row in have]
