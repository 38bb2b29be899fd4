"""The report of a fine-tuning run: what it says of a good end, an early one, and one without validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayrl.evaluation.sft_report import sft_page, write_sft_report
from rayrl.evaluation.stage_report import Page, render_page
from rayrl.tracking.rows import replace_rows

ROWS = [
    {"step": 0, "loss/train": 3.0, "lr": 1e-4, "grad_norm": 1.0, "share/a<b>": 0.25, "share/c": 0.75, "tokens": 9,
     "time/tokens_per_second": 100.0},
    {"step": 1, "loss/train": 2.5, "lr": 1e-4, "grad_norm": 0.8, "share/a<b>": 0.5, "share/c": 0.5, "tokens": 9,
     "time/tokens_per_second": 120.0, "validation/loss": 2.0, "probe/accuracy": 0.75},
]  # fmt: skip


def summary(**keys: Any) -> dict[str, Any]:
    return {
        "headline": "2 of 2 steps",
        "objective": "chat",
        "steps": 2,
        "planned_steps": 2,
        "best_step": 2,
        "stopped": None,
        "validation_loss": {"before": 3.0, "after": 2.0},
        "probe_accuracy": {"before": 0.8, "after": 0.75},
        "tokens_per_second": 110.0,
        "examples": {"train": {"a<b>": 3, "c": 9}, "validation": {"a<b>": 1, "c": 0}},
        "rows": 20,
        "dropped": {"answer is empty": 7},
        "conversations_cut": 2,
        "turns_cut": 5,
        **keys,
    }


def test_a_page_is_whole_and_escaped(tmp_path: Path) -> None:
    replace_rows(tmp_path / "metrics.jsonl", ROWS)
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    (tmp_path / "config.yaml").write_text("model: {api_key: sk-12345}\n")
    text = write_sft_report(tmp_path).read_text()
    assert "Validation loss fell: 3.000 to 2.000" in text
    assert "a&lt;b&gt;" in text and "a<b>" not in text
    assert "2 conversations were too long and lost 5 answers." in text
    assert "7 of 20 rows weren&#39;t taken" in text
    assert "sk-12345" not in text
    assert "<script" not in text and "Not recorded" not in text


def test_what_stopped_a_run_stands_at_the_top() -> None:
    page = sft_page(summary(stopped="no better validation loss in 2 validations", best_step=1), ROWS)
    assert page.detail.startswith("No better validation loss in 2 validations.")
    assert "of step 1" in page.detail


def test_a_loss_that_rose_is_no_success() -> None:
    page = sft_page(summary(validation_loss={"before": 2.0, "after": 2.5}), ROWS)
    assert page.tone == "bad" and page.headline == "Validation loss didn't fall: 2.000 to 2.500"


def test_a_run_without_validation_or_probe(tmp_path: Path) -> None:
    nothing = {"before": None, "after": None}
    rows = [{key: value for key, value in row.items() if "/" not in key} for row in ROWS]
    page = sft_page(summary(validation_loss=nothing, probe_accuracy=nothing, objective="pretrain"), rows)
    assert page.headline == "Trained without validation" and page.tone == "open"
    text = render_page("run", page, {})
    assert "continued pre-training report" in text and "Not recorded" in text


def test_an_empty_page_renders(tmp_path: Path) -> None:
    assert "nothing yet" in render_page("run", Page("test", "nothing yet", ""), {})
