"""The run of `rayrl sft`, once it is known that there is something to do (sft.py)."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cluster.session import connect
from rayrl.config.load import dump
from rayrl.config.sft import SFTConfig
from rayrl.data.examples import Examples
from rayrl.data.lock import only_run
from rayrl.data.stage_folder import StageFolder
from rayrl.errors import UserError
from rayrl.evaluation.sft_report import write_sft_report
from rayrl.models.builtin import resolve_model
from rayrl.models.loading import check_blocks, model_config
from rayrl.stages.sft_answers import light_prompts
from rayrl.stages.sft_data import DATA, READY, DataCounts, read_counts, sft_tokenizer, write_data
from rayrl.stages.sft_one_stage import shares_over_steps
from rayrl.stages.sft_probe import Probe
from rayrl.stages.sft_worker import MODEL, OUTCOME, loop, plan_of
from rayrl.stages.train_workers import check_fits_here, run_workers, watch
from rayrl.tracking.rows import read_rows

SAY_EVERY_S = 5.0
_SAID = {
    "loss/train": "loss",
    "validation/loss": "validation",
    "probe/accuracy": "probe",
    "eval/win_rate": "wins against the start",
}
"""Metrics on the console, and what they are called there."""


def run(config: SFTConfig, stage: StageFolder, console: Console) -> None:
    """Runs or resumes the stage. Raises UserError for bad input, RunError for a run that failed."""
    check_fits_here(config.model, config.ray, "sft")
    model_path = resolve_model(config.model.model)
    _check_model(config, model_path)
    tokenizer = sft_tokenizer(config, model_path)
    Probe.load(config.probe, tokenizer, config.objective == "chat")  # its errors before anything starts
    if config.validation.answers is not None:
        light_prompts(config.validation.answers, tokenizer, config.data.system_prompt, config.data.max_tokens)
    new = not stage.begun
    folder = stage.begin()
    with only_run(folder):
        try:
            counts = read_counts(folder) or write_data(config, tokenizer, folder)
        except BaseException:
            if new:  # bad input leaves no folder
                stage.discard()
            raise
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        steps = plan_of(config, Examples.load(folder / DATA / "train")).steps
        _say_data(counts, steps, console)
        _train(config, folder, model_path, steps, console)
        summary = _summary(config, folder, counts, steps)
        if config.mode == "one_stage":
            summary["expected_shares"] = shares_over_steps(config, Examples.load(folder / DATA / "train"), steps)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_sft_report(folder)
        (folder / DATA / READY).unlink(missing_ok=True)  # first: half of it must not be taken for the whole
        shutil.rmtree(folder / DATA)
        taken = sum(counts.train.values()) + sum(counts.validation.values())
        stage.publish({"in": counts.rows, "out": taken, "dropped": counts.dropped}, config.seed)
    console.print(summary["headline"], soft_wrap=True)
    console.print(f"model: {folder / MODEL}; report: {folder / 'report.html'}", soft_wrap=True)


def _check_model(config: SFTConfig, model_path: str) -> None:
    """What can be wrong with the model's shape, before anything starts."""
    if config.model.train.mode == "last_n":
        check_blocks(model_path, config.model.train, "model.train")
    window = getattr(model_config(model_path).get_text_config(), "max_position_embeddings", None)
    if window is not None and config.data.max_tokens > window:
        raise UserError(
            f"data.max_tokens is {config.data.max_tokens}, more than the {window} positions of {model_path}: lower it"
        )


def _say_data(counts: DataCounts, steps: int, console: Console) -> None:
    console.print(
        f"{sum(counts.train.values())} examples to train on in {steps} steps ({counts.train_tokens} tokens an epoch at "
        f"weight 1, {counts.loss_tokens} of them counted), {sum(counts.validation.values())} to validate",
        soft_wrap=True,
    )
    if counts.conversations_cut:
        console.print(f"{counts.conversations_cut} conversations were too long and lost {counts.turns_cut} answers")
    for reason, number in counts.dropped.items():
        console.print(f"left out: {number}, {reason}", soft_wrap=True, markup=False)


def _train(config: SFTConfig, folder: Path, model_path: str, steps: int, console: Console) -> None:
    settings = {"config": config.model_dump(mode="json"), "folder": str(folder), "model_path": model_path}
    with (
        connect(config.ray.address, object_store_mb=config.ray.object_store_mb),
        watch(folder / "metrics.jsonl", _Progress(steps, console)),
    ):
        run_workers(
            loop,
            settings,
            config.model,
            config.ray,
            collective_timeout_s=config.collective_timeout_s,
            max_failures=config.max_failures,
        )


class _Progress:
    """One line a step on the console, at most every few seconds; validations and the last always."""

    def __init__(self, steps: int, console: Console) -> None:
        self._steps, self._console, self._said = steps, console, -SAY_EVERY_S

    def __call__(self, row: dict[str, Any]) -> None:
        done, now = row["step"] + 1, time.monotonic()
        if "validation/loss" not in row and done < self._steps and now - self._said < SAY_EVERY_S:
            return
        self._said = now
        parts = [f"step {done}/{self._steps}"]
        for key, name in _SAID.items():
            if key in row:
                parts.append(f"{name} {row[key]:.3f}")
        parts.append(f"{row['time/tokens_per_second']:.0f} tokens/s")
        self._console.print(Text(", ".join(parts)), soft_wrap=True)


def _summary(config: SFTConfig, folder: Path, counts: DataCounts, steps: int) -> dict[str, Any]:
    outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    (folder / OUTCOME).unlink()
    rows = read_rows(folder / "metrics.jsonl")
    best = next((row for row in rows if row["step"] + 1 == outcome["best_step"]), {})
    start = outcome["start"]
    speeds = sorted(row["time/tokens_per_second"] for row in rows)
    before, after = start.get("validation/loss"), best.get("validation/loss")
    headline = f"{outcome['step']} of {steps} steps"
    if before is not None and after is not None:
        headline += f", validation loss {before:.3f} → {after:.3f}"
    if outcome["stopped"]:
        headline += f"; stopped: {outcome['stopped']}"
    return {
        "headline": headline,
        "objective": config.objective,
        "steps": outcome["step"],
        "planned_steps": steps,
        "best_step": outcome["best_step"],
        "stopped": outcome["stopped"],
        "validation_loss": {"before": before, "after": after},
        "probe_accuracy": {"before": start.get("probe/accuracy"), "after": best.get("probe/accuracy")},
        "tokens": sum(row["tokens"] for row in rows),
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "examples": {"train": counts.train, "validation": counts.validation},
        "rows": counts.rows,
        "dropped": counts.dropped,
        "conversations_cut": counts.conversations_cut,
        "turns_cut": counts.turns_cut,
        "explosions": sum(row.get("guard/exploded", 0) + row.get("guard/skipped", 0) for row in rows),
    }
