"""Fine-tuning runs side by side on one page: their loss curves over the tokens trained (HuatuoGPT-II's Figure 7).

A run of several stages, such as continued pre-training and then fine-tuning, is one curve: a stage begins where the one
before ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl.errors import UserError
from rayrl.evaluation.plots import Panel, Plot, Series
from rayrl.evaluation.stage_report import Page, Table, render_page
from rayrl.tracking.rows import read_rows


@dataclass(frozen=True)
class Run:
    """A run's stages in their order: metrics and summary of each."""

    name: str
    rows: Sequence[Sequence[Mapping[str, Any]]]
    summaries: Sequence[Mapping[str, Any]]


def read_run(text: str) -> Run:
    """A run from `NAME=FOLDER` or `NAME=FOLDER+FOLDER`, its stages. Raises UserError where one isn't finished."""
    name, equals, folders = text.partition("=")
    if not equals or not name or not folders:
        raise UserError(f"{text!r}: name each run and its folder, as NAME=FOLDER or NAME=FOLDER+FOLDER")
    rows, summaries = [], []
    for folder in (Path(part).expanduser() for part in folders.split("+")):
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            rows.append(read_rows(folder / "metrics.jsonl"))
            summaries.append({"validation_loss": summary["validation_loss"], "steps": summary["steps"]})
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} isn't the folder of a finished `rayrl sft`: {error}") from error
        except KeyError as error:
            raise UserError(f"{folder} is another command's folder, not of a finished `rayrl sft`") from error
    return Run(name, rows, summaries)


def write_comparison(runs: Sequence[Run], path: Path) -> None:
    """Writes the page to `path`."""
    html = render_page(path.stem, comparison_page(runs), {})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8", errors="replace")


def comparison_page(runs: Sequence[Run]) -> Page:
    """The page of several runs."""
    return Page(
        kind="comparison",
        headline=", ".join(run.name for run in runs),
        detail="Losses are comparable where the runs validate on the same rows.",
        tables=[_table(runs)],
        sections=[("Loss", loss_plots(runs))],
    )


def loss_plots(runs: Sequence[Run]) -> list[Plot]:
    """Training and validation losses of several runs."""
    about_validation = "On the rows that are never trained on."
    return [
        _plot("Training loss", "Nats a counted token of each step's rows.", runs, "loss/train", points=False),
        _plot("Validation loss", about_validation, runs, "validation/loss", points=True),
    ]


def _plot(title: str, note: str, runs: Sequence[Run], key: str, *, points: bool) -> Plot:
    series = []
    for run in runs:
        x, y, tokens = [], [], 0
        for row in (row for stage in run.rows for row in stage):
            tokens += row["tokens"]
            if key in row:
                x.append(tokens / 1e6)
                y.append(row[key])
        if x:
            series.append(Series(run.name, x, y, points=points))
    return Plot(title, note, [Panel("loss", series)], wide=True, x_label="million tokens trained")


def _table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        tokens = sum(row["tokens"] for stage in run.rows for row in stage)
        losses = [summary["validation_loss"]["after"] for summary in run.summaries]
        shown = " then ".join("none" if loss is None else f"{loss:.3f}" for loss in losses)
        steps = " + ".join(str(summary["steps"]) for summary in run.summaries)
        rows.append((run.name, str(len(run.rows)), steps, f"{tokens:,}", shown))
    caption = "Steps and validation loss of each stage, in their order."
    return Table("Runs", caption, ("Run", "Stages", "Steps", "Tokens", "Validation loss"), rows)
