"""`rayrl reward` as a user runs it, two ranks through Ray Train; killed and started again, it ends as if unbroken."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from reward_cases import pair_rows, read, reward_config, write_jsonl
from run_cases import COMMAND, MARK, leaves_nothing, marked, rayrl

from rayrl.models.scorer import RewardModel
from rayrl.tracking.rows import is_timing, read_rows

PAIRS = 60


def arguments(folder: Path, *more: str) -> tuple[str, ...]:
    pairs = folder.parent / "pairs.jsonl"
    return (
        "reward",
        "tiny",
        f"output_dir={folder}",
        f"data.sources=[{{name: made, path: {pairs}}}]",
        "data.heldout=[]",
        "data.heldout_fraction=0.25",
        "prompts_per_step=4",
        "epochs=3",
        "loggers=[]",
        *more,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("reward")
    write_jsonl(folder / "pairs.jsonl", pair_rows(PAIRS))
    done = rayrl(*arguments(folder / "whole"))
    assert done.returncode == 0, done.stderr
    return folder / "whole", done


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return content


def test_learns_what_the_pairs_show(unbroken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = unbroken
    found = summary(folder)
    assert found["accuracy"]["mean"] > 0.9 and found["accuracy"]["low"] < found["accuracy"]["mean"]
    assert found["by"]["source"]["made"]["pairs"] == found["accuracy"]["pairs"]
    assert set(found["by"]["department"]) == {"neurology", "surgery"}
    assert set(found["by"]["flaw"]) == {"no_question"} and len(found["by"]["margin"]) == 3
    assert found["scores"]["std"] > 0 and found["scores"]["better"]["mean"] > found["scores"]["worse"]["mean"]
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["counts"]["in"] == PAIRS and manifest["counts"]["heldout"]["pairs"] == found["accuracy"]["pairs"]
    assert re.search(r"held-out accuracy [\d.]+ \(95% interval", done.stdout)
    page = (folder / "report.html").read_text("utf-8")
    for text in ("Reliability", "By department", "Length alone", "neurology"):
        assert text in page
    assert "<script" not in page


def test_ppo_reads_the_scores_of_the_report(unbroken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The saved model, loaded as PPO loads it, gives the held-out scores that the summary is made of."""
    folder, _ = unbroken
    data = read(reward_config(folder.parent / "pairs.jsonl"))
    model = RewardModel(str(folder / "model"), "fp32", data.pad_id, batch_size=4)
    scores = model.score(data.heldout.answers)
    rows = read_rows(folder / "heldout_scores.jsonl")
    pairs = [pair for group in data.heldout.groups for pair in group.pairs]
    assert [row["id"] for row in rows] == [row.id for row in data.heldout_comparisons]
    for row, pair in zip(rows, pairs, strict=True):
        assert row["score_a"] == pytest.approx(scores[pair.better], abs=1e-4)
        assert row["score_b"] == pytest.approx(scores[pair.worse], abs=1e-4)


def test_a_finished_run_does_nothing(unbroken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = unbroken
    before = (folder / "summary.json").stat().st_mtime_ns
    again = rayrl(*arguments(folder))
    assert again.returncode == 0 and "is done" in again.stdout
    assert (folder / "summary.json").stat().st_mtime_ns == before
    other = rayrl(*arguments(folder, "seed=7"))
    assert other.returncode == 2 and "another configuration" in other.stderr


def test_a_killed_run_ends_as_the_unbroken_one(unbroken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    whole, _ = unbroken
    folder = whole.parent / "killed"
    with leaves_nothing() as marks:
        process = subprocess.Popen(
            [COMMAND, *arguments(folder)],
            env={**os.environ, **marks},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*/state.json")):
            assert process.poll() is None and time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        psutil.wait_procs(marked(marks[MARK]), timeout=30)
    assert not (folder / "summary.json").exists()
    done = rayrl(*arguments(folder))
    assert done.returncode == 0, done.stderr
    assert untimed(folder) == untimed(whole)
    assert summary(folder) == summary(whole)
    name = "model/model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not is_timing(key)} for row in read_rows(folder / "metrics.jsonl")
    ]


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    missing = rayrl(*arguments(tmp_path / "out"))
    assert missing.returncode == 2 and "pairs.jsonl" in missing.stderr and "Traceback" not in missing.stderr
    unset = rayrl("reward", "zhongjing")
    assert unset.returncode == 2 and "model.model" in unset.stderr
