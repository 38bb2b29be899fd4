"""The command `rayrl sft` for real: Ray Train, two ranks under DeepSpeed, files; and the errors a user sees."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from run_cases import COMMAND

from rayrl.cli import main
from rayrl.tracking.rows import read_rows


def sft(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "sft", *words], capture_output=True, text=True, timeout=300)


def test_two_ranks_from_sources_to_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [
        "tiny",
        f"output_dir={folder}",
        "max_steps=3",
        "validation.every=3",
        "model.ranks=2",
        "model.zero_stage=2",
        "model.cpus_per_rank=0.5",
        "loggers=[]",
    ]
    done = sft(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 3/3" in done.stdout
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(0 < row["share/doctor"] < 1 for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["best_step"] == 3
    assert summary["validation_loss"]["after"] < summary["validation_loss"]["before"]
    assert 0 <= summary["probe_accuracy"]["after"] <= 1
    for name in ("config.yaml", "rejected.jsonl", "used.jsonl", "report.html", "manifest.json"):
        assert (folder / name).is_file(), name
    assert not (folder / "data").exists()
    assert {path.name for path in (folder / "model").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    }
    again = sft(*arguments)
    assert again.returncode == 0 and "is done: nothing to train" in again.stdout
    other = sft(*arguments, "seed=1")
    assert other.returncode == 2 and "another configuration" in other.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.model=/nowhere"], "No checkpoint at /nowhere"),
        (["data.sources.distilled.path=/nowhere.jsonl"], "/nowhere.jsonl"),
        (["data.max_tokens=5000"], "more than the 2048 positions"),
        (["data.max_tokens=8"], "no row is usable"),
        (["model.train.mode=p_tuning"], "p_tuning needs data.packing=false"),
        (["model.train.mode=last_n", "model.train.num_layers=2"], "use model.train.mode=full"),
        (["probe.questions=/nowhere.jsonl"], "probe.questions: no file /nowhere.jsonl"),
        (["model.chat_template={{ messages }}"], "a model can't be trained on it; set model.chat_template"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["sft", "tiny", f"output_dir={tmp_path / 'run'}", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()  # nothing is in the way of a second try
