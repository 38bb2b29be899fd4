"""`rayrl pipeline ablation-tiny` for real: three fine-tunings, the loop, one and two stages, one evaluation of all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from run_cases import COMMAND, leaves_nothing

from rayrl.evaluation.numbers import read_numbers

MODELS = ["mixed", "full", "real", "distilled", "two-stage", "one-stage"]
SHORT = ("stages.ppo.steps=2", "stages.ppo.evaluation.every=0", "stages.eval.consultations=[]")


@pytest.mark.timeout(900)
def test_the_ablation_runs_to_a_report_of_all_six(tmp_path: Path) -> None:
    folder = tmp_path / "ablation"
    with leaves_nothing() as marks:
        done = subprocess.run(
            [COMMAND, "pipeline", "ablation-tiny", f"output_dir={folder.name}", *SHORT],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **marks},
            timeout=850,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    numbers = {(n.section, n.set, n.split, n.model, n.measure): n for n in read_numbers(folder / "eval/numbers.jsonl")}
    for model in MODELS:
        assert numbers["metrics", "heldout", "all", model, "answered"].mean == 1.0
        assert numbers["scores", "heldout", "all", model, "fluency"].n == 12
    for model in MODELS[1:]:  # each against fine-tuning alone, with intervals: what a part of the loop adds
        for section, measure in (("pairwise", "win rate"), ("differences", "asks")):
            found = numbers[section, "heldout", "all", f"{model} against mixed", measure]
            assert found.n == 12 and found.low is not None and found.high is not None
            assert found.low <= found.mean <= found.high
    page = (folder / "eval" / "report.html").read_text(encoding="utf-8")
    figures = ("Wins: heldout", "Wins by criterion: heldout", "Scores: heldout", "Training loss", "Validation loss")
    for figure in figures:
        assert figure in page
    # the legend of the loss curves names every run, two stages as one curve
    assert all(f">{model}</li>" in page for model in ("mixed", "real", "distilled", "two-stage", "one-stage"))
