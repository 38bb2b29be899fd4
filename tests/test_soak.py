"""A run on three nodes that loses a node, its head, its driver and actors of each role ends as one that didn't.

Two kills of each kind and a hang of each role in one run; scripts/soak.sh without arguments makes a run of 20 for each.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rayrl.tracking.recoveries import read_recoveries

ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the runs, and what the script printed."""
    pytest.importorskip("vllm", reason="needs a vLLM engine (pip install 'rayrl[cpu]')")
    folder = tmp_path_factory.mktemp("soak")
    options = ["--together", "--kills", "2", "--hangs", "1", "--folder", str(folder)]
    done = subprocess.run(
        ["bash", "scripts/soak.sh", *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return folder, done.stdout


def test_a_run_that_loses_everything_in_turn_ends_with_the_same_bits(soaked: tuple[Path, str]) -> None:
    folder, output = soaked
    assert "1 of 1 runs the same" in output
    assert len(re.findall(r"^  killed ", output, re.MULTILINE)) == 2 * 8
    assert len(re.findall(r"^  stopped \w+ \(", output, re.MULTILINE)) == 5
    (run,) = [path for path in folder.iterdir() if not path.name.startswith("unbroken")]
    causes = {event.cause for event in read_recoveries(run)}
    assert {"died", "hung", "joined", "resumed"} <= causes
    assert "Recoveries" in (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", ROOT / "scripts" / "soak.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "soak", module)
    spec.loader.exec_module(module)
    return module


def test_the_comparison_sees_a_bit_a_row_and_a_sample(
    soaked: tuple[Path, str], soak: ModuleType, tmp_path: Path
) -> None:
    (whole,) = soaked[0].glob("unbroken-*")
    other = tmp_path / "other"
    shutil.copytree(whole, other, symlinks=True)
    assert list(soak.differences(whole, other)) == []
    weights = max(other.glob("checkpoints/step-*")) / "policy/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    rows = (other / "metrics.jsonl").read_text().splitlines()
    (other / "metrics.jsonl").write_text("\n".join([*rows, rows[-1]]) + "\n")
    experience = (other / "experience.jsonl").read_text()
    first = re.search(r'"([^"]+#0)", "([^"]+#0)"', experience)
    assert first is not None
    (other / "experience.jsonl").write_text(experience.replace(first[2], first[1], 1))
    found = "\n".join(soak.differences(whole, other))
    assert f"{other}: steps aren't there once each" in found
    assert f"samples ['{first[1]}'] were trained on twice" in found
    assert str(weights.relative_to(other)) in found


def test_moments_are_spread_over_phases_and_kinds(soak: ModuleType) -> None:
    kills = soak.plan(soak.KINDS, 20, 1, seed=3)
    assert kills == soak.plan(soak.KINDS, 20, 1, seed=3)
    assert len(kills) == 8 * 20 + 5
    assert {kill.phase for kill in kills} == set(soak.PHASES)
    assert all(a.step < b.step for a, b in itertools.pairwise(kills))
