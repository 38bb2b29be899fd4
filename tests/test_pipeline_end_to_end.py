"""`rayrl pipeline tiny` for real: vLLM, a judge over HTTP, Ray Train; killed, it ends as an unbroken run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from run_cases import COMMAND, leaves_nothing
from safetensors.numpy import load_file

from rayrl.data.candidates import read_candidates
from rayrl.data.preferences import read_preferences
from rayrl.evaluation.report import render_report
from rayrl.tracking.rows import is_timing, read_rows

STAGES = ["sft", "sample", "feedback", "reward", "ppo"]
SHORT = (
    "stages.sft.max_steps=6",
    "stages.sft.validation.every=3",
    "stages.sample.num_prompts=12",
    "stages.sample.shard_size=2",
    "stages.ppo.steps=3",
    "stages.ppo.checkpoint.every=1",
    "stages.ppo.prompts_per_step=4",
    "stages.ppo.evaluation.num_prompts=4",
    "stages.ppo.logging.loggers=[]",
)


def pipeline(folder: Path) -> list[str]:
    """Run beside the folder, whose path is relative as a user's is."""
    return [COMMAND, "pipeline", "tiny", f"output_dir={folder.name}", *SHORT]


def run_to_the_end(folder: Path) -> str:
    with leaves_nothing() as marks:
        done = subprocess.run(
            pipeline(folder),
            capture_output=True,
            text=True,
            cwd=folder.parent,
            env={**os.environ, **marks},
            timeout=500,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def run_and_kill(folder: Path, moment: Path) -> None:
    """Starts the pipeline and kills its process as soon as the file is there."""
    with leaves_nothing() as marks:
        process = subprocess.Popen(
            pipeline(folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder.parent,
            env={**os.environ, **marks},
        )
        deadline = time.monotonic() + 400
        while not moment.exists():
            assert process.poll() is None, f"ended before {moment.name} was there"
            assert time.monotonic() < deadline, f"{moment} never came"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    pytest.importorskip("vllm", reason="needs a vLLM engine (pip install 'rayrl[cpu]')")
    folder = tmp_path_factory.mktemp("pipeline") / "whole"
    return folder, run_to_the_end(folder)


@pytest.mark.timeout(900)
def test_every_stage_ran_on_real_parts(whole: tuple[Path, str]) -> None:
    folder, said = whole
    for number, name in enumerate(STAGES, start=1):
        assert f"[{number}/5] {name}: done in " in said
    candidates = read_candidates(folder / "sample").rows
    assert len(candidates) == 12 and all(row.model == "whole/sft/model" for row in candidates)
    comparisons = read_preferences(folder / "feedback" / "preferences.parquet")
    raters = {row.rater.split(":")[0] for row in comparisons}
    assert raters == {"judge", "rubric", "file"}
    judged = [row for row in comparisons if row.rater.startswith("judge")]
    assert judged and all(row.verdict in ("a", "b", "tie", "inconsistent") for row in judged)
    actors = json.loads((folder / "ppo" / "run.json").read_text())["actors"]
    assert "vllm" in actors["rollout[0]"]["engine"]
    last = read_rows(folder / "ppo" / "metrics.jsonl")[-1]
    assert {"score/preferences", "score/judge", "score/length"} <= {key.removesuffix("/mean") for key in last}, last
    assert (folder / "ppo" / "policy" / "model.safetensors").is_file()
    assert "preferences" in render_report(folder / "ppo")


@pytest.mark.timeout(900)
def test_run_again_it_does_nothing(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    started = time.monotonic()
    said = run_to_the_end(folder)
    assert [f"[{number}/5] {name}: done before" in said for number, name in enumerate(STAGES, start=1)] == [True] * 5
    assert time.monotonic() - started < 120


@pytest.mark.timeout(1500)
def test_killed_it_ends_as_an_unbroken_run(whole: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = whole
    killed = tmp_path / "killed"
    run_and_kill(killed, killed / "sample.partial" / "candidates-00000.jsonl")
    written = (killed / "sample.partial" / "candidates-00000.jsonl").stat().st_mtime_ns
    record = json.loads((killed / "pipeline.json").read_text())
    assert "seconds" in record["sft"] and "seconds" not in record["sample"]
    said = run_to_the_end(killed)
    assert "sft: done before" in said and "sample: done before" not in said
    assert (killed / "sample" / "candidates-00000.jsonl").stat().st_mtime_ns == written, "kept, not made again"
    assert differences(folder, killed) == []


def differences(one: Path, other: Path) -> list[str]:
    """What isn't the same in two runs' results: weights by their bits, answers, verdicts, metrics without timings."""
    found = []
    for name in ("sft/model", "reward/model", "ppo/policy"):
        a, b = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        found += [f"{name}: {key}" for key in a if a[key].tobytes() != b[key].tobytes()]
    for read in (_answers, _verdicts, _metrics):
        if read(one) != read(other):
            found.append(read.__name__)
    return found


def _answers(folder: Path) -> list[Any]:
    return [(row.prompt.id, row.answers) for row in read_candidates(folder / "sample").rows]


def _verdicts(folder: Path) -> list[Any]:
    rows = read_preferences(folder / "feedback" / "preferences.parquet")
    return [(row.id, row.verdict, row.margin, row.scores) for row in rows]


def _metrics(folder: Path) -> list[Any]:
    rows = [row for stage in ("sample", "ppo") for row in read_rows(folder / stage / "metrics.jsonl")]
    return [{key: value for key, value in row.items() if not is_timing(key)} for row in rows]
