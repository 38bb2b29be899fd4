"""What the report of a fine-tuning run shows, from its metrics.jsonl and summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayrl.evaluation.figures import panel, win_plot
from rayrl.evaluation.plots import Panel, Plot, Series
from rayrl.evaluation.stage_report import Page, Table, write_page
from rayrl.tracking.rows import read_rows

Rows = Sequence[Mapping[str, Any]]


def write_sft_report(folder: Path) -> Path:
    """Writes `folder`/report.html of a finished run and returns its path."""
    rows = read_rows(folder / "metrics.jsonl")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return write_page(folder, sft_page(summary, rows))


def sft_page(summary: Mapping[str, Any], rows: Rows) -> Page:
    """The page of a run."""
    loss, probe = summary["validation_loss"], summary["probe_accuracy"]
    tiles = []
    if loss["after"] is not None:
        tiles.append(("Validation loss", f"{loss['after']:.3f}", f"{loss['before']:.3f} before, nats a token"))
    if probe["after"] is not None:
        tiles.append(("General questions right", f"{probe['after']:.0%}", f"{probe['before']:.0%} before"))
    tiles.append(("Best step", str(summary["best_step"]), f"of {summary['steps']} done"))
    if summary["tokens_per_second"] is not None:
        tiles.append(("Tokens a second", f"{summary['tokens_per_second']:.0f}", "median step"))
    detail = summary["stopped"] or f"All of {summary['planned_steps']} planned steps"
    improved = loss["after"] is not None and loss["after"] < loss["before"]
    return Page(
        kind="fine-tuning" if summary["objective"] == "chat" else "continued pre-training",
        headline=_headline(loss, improved),
        detail=f"{detail[0].upper()}{detail[1:]}. The model is the best checkpoint, of step {summary['best_step']}.",
        tone="good" if improved else "open" if loss["after"] is None else "bad",
        tiles=tiles,
        sections=[("Training", _plots(summary, rows))],
        tables=[_sources(summary), _dropped(summary)],
    )


def _headline(loss: Mapping[str, float | None], improved: bool) -> str:
    if loss["after"] is None:
        return "Trained without validation"
    verb = "fell" if improved else "didn't fall"
    return f"Validation loss {verb}: {loss['before']:.3f} to {loss['after']:.3f}"


def _plots(summary: Mapping[str, Any], rows: Rows) -> list[Plot]:
    names = list(summary["examples"]["train"])
    return [
        Plot(
            "Loss",
            "Nats a counted token: of each step's rows while training, and of the rows that are never trained on.",
            [
                Panel(
                    "loss",
                    panel(rows, "loss", {"training": "loss/train"}).series
                    + _points(rows, "validation", "validation/loss", summary["validation_loss"]["before"]),
                )
            ],
            wide=True,
        ),
        Plot(
            "General questions",
            "Share of general-knowledge questions that the model still answers right.",
            [
                Panel(
                    "right",
                    _points(rows, "right", "probe/accuracy", summary["probe_accuracy"]["before"]),
                    percent=True,
                )
            ],
        ),
        *win_plot(rows),
        Plot(
            "Learning rate and gradients",
            "Rate of each step, and the norm of its gradient before clipping.",
            [panel(rows, "rate", {"rate": "lr"}), panel(rows, "norm", {"gradient norm": "grad_norm"})],
        ),
        Plot(
            "Sources",
            "Share of each step's counted tokens by source."
            + (" Below: as the sampling's formula has it." if summary.get("expected_shares") else ""),
            [
                Panel("share", panel(rows, "share", {name: f"share/{name}" for name in names}).series, stacked=True),
                *_expected(summary.get("expected_shares")),
            ],
        ),
        Plot(
            "Speed",
            "Tokens a second, all ranks together, evaluation left out.",
            [panel(rows, "tokens/s", {"tokens a second": "time/tokens_per_second"})],
        ),
    ]


def _expected(shares: Mapping[str, Sequence[float]] | None) -> list[Panel]:
    """Shares that one-stage sampling should have, by its closed form."""
    if not shares:
        return []
    steps = list(shares["step"])
    series = [Series(name, steps, list(values)) for name, values in shares.items() if name != "step"]
    return [Panel("expected", series, stacked=True)]


def _points(rows: Rows, name: str, key: str, start: float | None) -> list[Series]:
    """What was measured after steps, and before the first."""
    found = [(row["step"] + 1.0, row[key]) for row in rows if key in row]
    if start is not None:
        found = [(0.0, start), *found]
    return [Series(name, [x for x, _ in found], [y for _, y in found], points=True)] if found else []


def _sources(summary: Mapping[str, Any]) -> Table:
    train, held = summary["examples"]["train"], summary["examples"]["validation"]
    rows = [(name, str(train.get(name, 0)), str(held.get(name, 0))) for name in {**train, **held}]
    cut = summary["conversations_cut"]
    caption = f"Examples by source. {cut} conversations were too long and lost {summary['turns_cut']} answers."
    return Table("Data", caption, ("Source", "Trained on", "Validated on"), rows)


def _dropped(summary: Mapping[str, Any]) -> Table:
    dropped = summary["dropped"]
    rows = [(reason, str(count)) for reason, count in sorted(dropped.items(), key=lambda item: -item[1])[:12]]
    caption = f"{sum(dropped.values())} of {summary['rows']} rows weren't taken; rejected.jsonl says which."
    return Table("Rows left out", caption, ("Reason", "Rows"), rows)
