"""What a finished run leaves: a link to the trained policy, summary.json, report.html, and a table on the console.

All of it is made from the run's files, so that a start that comes after a kill between the last checkpoint and the
summary can make it too.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from actors.evaluation import completeness
from actors.inputs import Inputs, read_inputs
from rayrl.config.ppo import PPOConfig
from rayrl.errors import UserError
from rayrl.evaluation.report import write_report
from rayrl.evaluation.summary import build_summary, summary_table, write_summary
from rayrl.rewards.questions import asks_question
from rayrl.tracking.checkpoints import link
from rayrl.tracking.rows import evaluation_path, read_rows, read_samples
from rayrl.types import Prompt

SUMMARY = "summary.json"


def finish(config: PPOConfig, folder: Path, last: tuple[int, Path], inputs: Inputs | None, console: Console) -> None:
    """`last`: steps trained and their checkpoint. `inputs` are read again where they are needed and None."""
    step, checkpoint = last
    link(folder, "policy", checkpoint / "policy")
    path = folder / SUMMARY
    if not path.exists():
        _summarise(folder, step, (inputs or read_inputs(config)).heldout)
    report = write_report(folder)
    console.print(summary_table(json.loads(path.read_text(encoding="utf-8"))))
    console.print(f"steps {step}   policy {folder / 'policy'}", soft_wrap=True)
    console.print(f"report {report}", soft_wrap=True)


def _summarise(folder: Path, step: int, heldout: list[Prompt]) -> None:
    before, after = (read_samples(evaluation_path(folder, trained)) for trained in (0, step))
    if not before or not after:
        raise UserError(f"{folder} has no evaluation after step {step}: set steps above {step} to go on from there")
    row = next(row for row in read_rows(folder / "metrics.jsonl") if row["step"] == step - 1)
    kl = {key: value for key, value in row.items() if key.startswith("kl/")}
    summary = build_summary(before, after, asks_question=asks_question, complete=completeness(heldout), kl=kl)
    write_summary(folder / SUMMARY, summary)
