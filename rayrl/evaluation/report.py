"""Builds report.html, one self-contained page, from a run's folder.

Reads metrics.jsonl, samples.jsonl, summary.json, config.yaml and evaluation/step-NNNNNN.jsonl; what isn't there yet is
said in words, so that the page can be made at any time of a run. The page has no script and may fetch nothing (its
content security policy forbids both); every text of a sample, name or config is escaped by the template engine.
Plots are in figures.py and plots.py, the layout in assets/report.html.j2 and report.css.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from rayrl.evaluation.figures import Evaluations, machine_plots, score_plots, training_plots, win_plot
from rayrl.evaluation.plots import Drawing, draw
from rayrl.evaluation.summary import format_interval, format_number, is_clear, summary_rows
from rayrl.tracking.progress import duration
from rayrl.tracking.recoveries import Recovery, read_recoveries
from rayrl.tracking.rows import read_rows, read_samples
from rayrl.tracking.secrets import masked
from rayrl.types import Sample

PAIRS_SHOWN = 12
STEPS_SHOWN = 8
SAMPLES_A_STEP = 2
RECOVERIES_SHOWN = 100
ROLES = {"user": "Patient", "assistant": "Doctor", "system": "Instructions"}

T = TypeVar("T")


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html and return its path.

    Raises FileNotFoundError where the folder doesn't exist, ValueError where one of its files is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"report: no run's folder at {folder}")
    path = folder / "report.html"
    beside = folder / "report.html.new"
    beside.write_text(render_report(folder), encoding="utf-8", errors="replace")
    beside.replace(path)
    return path


def render_report(folder: Path) -> str:
    """The page's HTML."""
    rows = read_rows(folder / "metrics.jsonl")
    evaluations = _read_evaluations(folder / "evaluation")
    summary = read_summary(folder / "summary.json")
    config = read_config(folder / "config.yaml")
    sections = [
        ("Scores", [*score_plots(rows, evaluations), *win_plot(rows)]),
        ("Training", training_plots(rows)),
        ("Machine", machine_plots(rows)),
    ]
    pairs, prompts = compare_samples(evaluations)
    environment = page_environment()
    environment.globals |= {"format_number": format_number, "format_interval": format_interval, "is_clear": is_clear}
    return environment.get_template("report.html.j2").render(
        name=folder.resolve().name,
        headline=headline(summary, rows),
        facts=_facts(folder, rows, config),
        tiles=_tiles(summary, rows),
        summary=summary,
        summary_rows=summary_rows(summary) if summary else [],
        sections=[(title, [shown(plot, f"{title}{i}") for i, plot in enumerate(plots)]) for title, plots in sections],
        pairs=pairs,
        num_prompts=prompts,
        evaluated_steps=sorted(evaluations),
        timeline=samples_over_time(read_samples(folder / "samples.jsonl")),
        recoveries=recovery_rows(read_recoveries(folder)),
        roles=ROLES,
        config=config_lines(config),
    )


def page_environment() -> Environment:
    """Templates of pages: every value is escaped, and one that isn't given is an error."""
    return Environment(
        loader=PackageLoader("rayrl", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def headline(summary: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The result in a sentence (`text`), what supports it (`detail`) and how to mark it (`tone`)."""
    if summary is None:
        logged = f"{len(rows)} step{'s' if len(rows) != 1 else ''}"
        text = f"{logged} logged, no result yet" if rows else "Nothing logged yet"
        detail = "The result appears here once the held-out prompts have been evaluated before and after training."
        return {"text": text, "detail": detail, "tone": "open"}
    mixed, change = summary["mixed"], summary["mixed"]["difference"]
    before, after = (format_number(mixed[name]["mean"], "score") for name in ("before", "after"))
    verb = {"rose": "rose", "fell": "fell"}.get(summary["verdict"])
    text = f"The mixed score {verb} from {before} to {after}" if verb else "The mixed score shows no clear change"
    interval = format_interval(change, "score", signed=True)
    detail = f"Change {format_number(change['mean'], 'score', signed=True)}"
    detail += f" (95% interval {interval})" if interval else " (no interval from one prompt)"
    detail += f", paired over {change['n']} held-out prompts"
    if not verb:
        detail += f": {before} before, {after} after"
    return {
        "text": text,
        "detail": f"{detail}.",
        "tone": {"rose": "good", "fell": "bad"}.get(summary["verdict"], "open"),
    }


def compare_samples(evaluations: Evaluations) -> tuple[list[dict[str, Any]], int]:
    """Held-out prompts with their first answer before and after, evenly picked by id, and how many prompts there are.

    With one evaluation alone `after` is None.
    """
    if not evaluations:
        return [], 0
    first, last = (_first_answers(evaluations[step]) for step in (min(evaluations), max(evaluations)))
    shared = sorted(first.keys() & last.keys())
    pairs = []
    for prompt_id in evenly(shared, PAIRS_SHOWN):
        before, after = first[prompt_id], last[prompt_id] if len(evaluations) > 1 else None
        scores = [(name, before.raw.get(name), after.raw.get(name) if after else None) for name in before.raw]
        mixed = ("mixed", before.mixed, after.mixed if after else None)
        pairs.append({"before": before, "after": after, "scores": [mixed, *scores]})
    return pairs, len(shared)


def samples_over_time(samples: Sequence[Sample]) -> list[tuple[int, list[Sample]]]:
    """A few training samples of a few steps from the first to the last."""
    by_step: dict[int, list[Sample]] = {}
    for sample in samples:
        by_step.setdefault(sample.step, []).append(sample)
    return [(step, by_step[step][:SAMPLES_A_STEP]) for step in evenly(sorted(by_step), STEPS_SHOWN)]


def recovery_rows(recoveries: Sequence[Recovery]) -> list[dict[str, str]]:
    """What the page says of each loss: when, what, what was done, how long it took. The newest RECOVERIES_SHOWN."""
    causes = {
        "died": "died", "hung": "hung", "joined": "an engine joined", "resumed": "a new driver",
        "storage": "storage failed", "damaged": "damaged checkpoint", "connection": "connection broke",
    }  # fmt: skip
    rows = []
    for event in recoveries[-RECOVERIES_SHOWN:]:
        again = event.back_to is not None and event.back_to < event.step
        done = f"{event.action}; steps from {event.back_to} on done again" if again else event.action
        rows.append(
            {
                "step": str(event.step),
                "phase": event.phase,
                "what": ": ".join(part for part in (causes[event.cause], ", ".join(event.lost)) if part),
                "done": done,
                "took": duration(event.seconds) if event.seconds else "",
                "stacks": ", ".join(event.stacks),
            }
        )
    return rows


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items at even distances, the first and the last among them. Example: (0..9, 4) -> 0, 3, 6, 9"""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _first_answers(samples: Sequence[Sample]) -> dict[str, Sample]:
    return {sample.prompt_id: sample for sample in reversed(samples)}


def _read_evaluations(folder: Path) -> Evaluations:
    """Held-out samples by the step in the file's name; an empty file counts as none."""
    named = {path: re.fullmatch(r"step-(\d+)\.jsonl", path.name) for path in sorted(folder.glob("*.jsonl"))}
    read = {int(match[1]): read_samples(path) for path, match in named.items() if match}
    return {step: samples for step, samples in read.items() if samples}


def read_summary(path: Path) -> dict[str, Any] | None:
    """The run's summary.json; None where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_config(path: Path) -> dict[str, Any]:
    """The resolved config with its secrets masked; empty where there is no file."""
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return dict(masked(config or {}))


def _facts(folder: Path, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the header says of the run; a fact that isn't known is left out."""
    facts = []
    if config:
        planned = config["steps"]
        facts += [("Model", str(config["policy"]["model"])), ("Estimator", config["algorithm"]["estimator"].upper())]
        facts += [("Steps", f"{len(rows)} of {planned}"), ("Seed", str(config["seed"]))]
    elif rows:
        facts.append(("Steps", str(len(rows))))
    seconds = sum(row.get("time/step", 0.0) for row in rows)
    if seconds:
        facts.append(("Training time", duration(seconds)))
    if rows:
        last = datetime.fromtimestamp((folder / "metrics.jsonl").stat().st_mtime, tz=UTC)
        facts.append(("Last step", f"{last:%Y-%m-%d %H:%M} UTC"))
    return facts


def _tiles(summary: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The numbers at the top: of the summary where there is one, else of the last steps."""
    tiles = []
    if summary:
        shares = summary["question_share"]
        for label, row in (
            ("Mixed score", summary["mixed"]),
            ("Asks where needed", shares["incomplete"]),
            ("Asks where not needed", shares["complete"]),
            ("Tokens an answer", summary["length"]),
        ):
            if row["after"] and row["before"]:
                value = format_number(row["after"]["mean"], row["unit"])
                tiles.append({"label": label, "value": value, "note": f"{_before(row)} before"})
    wins = [row["eval/win_rate"] for row in rows if "eval/win_rate" in row]
    if wins:
        tiles.append({"label": "Wins against the start", "value": f"{wins[-1]:.0%}", "note": "a tie counts half"})
    kl = [row["kl/mean_per_sequence"] for row in rows if "kl/mean_per_sequence" in row]
    if kl:
        tiles.append({"label": "KL a sequence", "value": f"{kl[-1]:.3f}", "note": "nats, last step"})
    steps = [row["time/step"] for row in rows if "time/step" in row]
    if steps:
        tiles.append({"label": "Time a step", "value": duration(median(steps)), "note": "median"})
    return tiles


def _before(row: Mapping[str, Any]) -> str:
    return format_number(row["before"]["mean"], row["unit"])


def shown(plot: Drawing, prefix: str) -> dict[str, Any]:
    """What a template shows of a plot; `prefix` keeps its ids apart from those of the page's other plots."""
    return {"plot": plot, "svg": None if plot.empty else draw(plot, prefix.lower())}


def config_lines(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The config as YAML, each line split into its key and the rest."""
    if not config:
        return []
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
    lines = []
    for line in text.splitlines():
        key = re.match(r"[\s-]*[\w.]+:(?=\s|$)", line)
        lines.append((key[0], line[key.end() :]) if key else ("", line))
    return lines
