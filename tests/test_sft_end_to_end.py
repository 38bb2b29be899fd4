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


def test_answers_with_every_validation_are_compared_with_the_start_and_change_nothing(tmp_path: Path) -> None:
    shared = ["tiny", "max_steps=4", "validation.every=2", "loggers=[]"]
    shared += ["model.ranks=2", "model.zero_stage=2", "model.cpus_per_rank=0.5"]
    answers = "{prompts: {name: held, path: consultations-en}, num_prompts: 3, max_new_tokens: 6}"
    asked, silent = tmp_path / "asked", tmp_path / "silent"
    done = sft(*shared, f"output_dir={asked}", f"validation.answers={answers}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "wins against the start" in done.stdout
    assert sft(*shared, f"output_dir={silent}").returncode == 0
    rows, others = read_rows(asked / "metrics.jsonl"), read_rows(silent / "metrics.jsonl")
    assert [row["loss/train"] for row in rows] == [row["loss/train"] for row in others]
    told = [row for row in rows if "eval/win_rate" in row]
    assert [row["step"] for row in told] == [1, 3]
    for row in told:
        assert row["eval/wins"] + row["eval/ties"] + row["eval/losses"] == pytest.approx(1)
        assert row["eval/win_rate"] == pytest.approx(row["eval/wins"] + row["eval/ties"] / 2)
    files = sorted(path.name for path in (asked / "answers").iterdir())
    assert files == [f"step-{step:06d}.jsonl" for step in (0, 2, 4)]
    for file in files:
        made = read_rows(asked / "answers" / file)
        assert len(made) == 3 and all({"id", "messages", "answer"} <= row.keys() for row in made)
    assert "Wins against the start" in (asked / "report.html").read_text(encoding="utf-8")
    generation = json.loads((asked / "model" / "generation_config.json").read_text())
    assert generation == json.loads((silent / "model" / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["validation.answers={prompts: {name: p, path: /nowhere.jsonl}}"], "/nowhere.jsonl"),
        (
            ["validation.answers={prompts: {name: p, path: consultations-en}}", "model.zero_stage=3"],
            "zero_stage below 3",
        ),
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
