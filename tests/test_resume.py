"""A run whose driver is killed and started again ends as one that wasn't: one moment of scripts/soak_kill.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rayrl.tracking.rows import read_rows

ROOT = Path(__file__).resolve().parents[1]
SHORT = (
    "steps=3", "checkpoint.every=1", "evaluation.num_prompts=4", "rollout.max_new_tokens=8", "prompts_per_step=4",
    "policy.ranks=1", "critic.ranks=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak_kill", ROOT / "scripts" / "soak_kill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak_kill"] = module
    spec.loader.exec_module(module)
    return module


def test_a_killed_run_ends_as_a_whole_one(soak: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs a vLLM engine (pip install 'rayrl[cpu]')")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    soak.run_to_the_end(whole, *SHORT)
    soak.run_and_kill(killed, soak.Moment("update", 3, 0.02), *SHORT)
    assert not (killed / "summary.json").exists()
    assert [row["step"] for row in read_rows(killed / "metrics.jsonl")] == [0, 1]
    soak.run_to_the_end(killed, *SHORT)
    assert soak.differences(whole, killed) == []
    assert [row["step"] for row in read_rows(killed / "metrics.jsonl")] == [0, 1, 2]
    # The comparison sees a single bit and a single row.
    weights = killed / "checkpoints/step-000003/policy/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    rows = (killed / "metrics.jsonl").read_text().splitlines()
    (killed / "metrics.jsonl").write_text("\n".join([*rows, rows[-1]]) + "\n")
    found = soak.differences(whole, killed)
    assert "metrics.jsonl (steps [0, 1, 2] and [0, 1, 2, 2])" in found
    assert "checkpoints/step-000003/policy/model.safetensors" in found
