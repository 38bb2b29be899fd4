"""Two ranks in real processes over gloo: every ZeRO stage, one rank or two, and resuming give the same weights.

All scenarios run in one pair of processes (rank_process.py), because starting a pair takes longer than training.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from local_cluster import free_port

POLICIES = [
    *(f"policy:full:{stage}:{model}" for model in ("tiny-random", "tiny-random-untied") for stage in range(4)),
    *(f"policy:last_n:{stage}:{model}" for model in ("tiny-random", "tiny-random-untied") for stage in (0, 2, 3)),
    *(f"policy:lora:{stage}:tiny-random" for stage in (0, 2, 3)),
]
CRITICS = [f"critic:{train}:{stage}" for train in ("full", "last_n", "lora") for stage in (0, 2, 3)]
RESUMES = [
    *(f"resume:{role}:full:{stage}" for role in ("policy", "critic") for stage in (0, 2, 3)),
    *(f"resume:policy:{train}:{stage}" for train in ("last_n", "lora") for stage in (2, 3)),
]
BF16 = [f"policy:full:{stage}:tiny-random:bf16" for stage in (0, 1)]
PTX = [f"ptx:{stage}" for stage in (0, 3)]
ONE_RANK = ["policy:full:0:tiny-random", "policy:last_n:0:tiny-random", "critic:full:0", "ptx:0"]


def run_ranks(world: int, folder: Path, scenarios: list[str]) -> None:
    """Starts the ranks and waits; a failure shows the output of every rank that failed."""
    command = [sys.executable, str(Path(__file__).parent / "rank_process.py")]
    port = str(free_port())
    logs = [folder / f"rank{rank}.log" for rank in range(world)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            arguments = [*command, str(rank), str(world), port, str(folder), *scenarios]
            ranks.append(subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=400) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    failed = [log.read_text()[-3000:] for log, code in zip(logs, codes, strict=True) if code]
    assert not failed, "\n".join(failed)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    run_ranks(2, folder, [*POLICIES, *CRITICS, *RESUMES, *BF16, *PTX])
    return folder


@pytest.fixture(scope="module")
def one_rank_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-rank")
    run_ranks(1, folder, ONE_RANK)
    return folder


def read(folder: Path, scenario: str) -> Any:
    return torch.load(folder / f"{scenario}.pt", weights_only=False)


def assert_same_weights(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Within 1e-5 of the tensor's own norm."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.isfinite(tensor).all()
        distance = (got[name].double() - tensor.double()).norm() / tensor.double().norm()
        assert distance <= 1e-5, (name, distance.item())


def moved(result: dict[str, Any], start: dict[str, Any]) -> set[str]:
    return {name for name, tensor in result["weights"].items() if not torch.equal(tensor, start["weights"][name])}


@pytest.mark.parametrize("scenario", [s for s in [*POLICIES, *CRITICS] if ":0" not in s])
def test_every_zero_stage_gives_the_same_weights(two_ranks: Path, scenario: str) -> None:
    kind, train, _, *rest = scenario.split(":")
    got, want = read(two_ranks, scenario), read(two_ranks, ":".join([kind, train, "0", *rest]))
    assert_same_weights(got["weights"], want["weights"])
    for ours, theirs in zip(got["metrics"], want["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("scenario", ONE_RANK)
def test_two_ranks_train_as_one(two_ranks: Path, one_rank_alone: Path, scenario: str) -> None:
    """Their token counts differ, so a mean over ranks would be wrong; counts are global."""
    got, want = read(two_ranks, scenario), read(one_rank_alone, scenario)
    assert_same_weights(got["weights"], want["weights"])
    for ours, theirs in zip(got["metrics"], want["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_training_changed_what_it_should(two_ranks: Path) -> None:
    """Against another mode's run from the same start: what both leave alone is the checkpoint's."""
    from rayrl.models.builtin import resolve_model
    from rayrl.models.loading import load_causal_lm

    start = {"weights": dict(load_causal_lm(resolve_model("tiny-random"), "fp32").named_parameters())}
    names = set(start["weights"])
    assert moved(read(two_ranks, "policy:full:3:tiny-random"), start) == names
    top = {name for name in names if name.startswith(("model.layers.1.", "model.norm"))}
    assert moved(read(two_ranks, "policy:last_n:3:tiny-random"), start) == top
    linear = {name for name in names if name.endswith("_proj.weight")}
    assert moved(read(two_ranks, "policy:lora:3:tiny-random"), start) == linear


@pytest.mark.parametrize("scenario", RESUMES)
def test_three_steps_saved_and_two_more_are_five(two_ranks: Path, scenario: str) -> None:
    result = read(two_ranks, scenario)
    assert all(torch.equal(result["loaded"][name], tensor) for name, tensor in result["saved"].items())
    assert all(torch.equal(result["resumed"][name], tensor) for name, tensor in result["straight"].items())
    assert any(not torch.equal(result["saved"][name], tensor) for name, tensor in result["straight"].items())
    straight, halves = result["metrics"]
    assert straight == halves


@pytest.mark.parametrize("scenario", BF16)
def test_bf16_trains_near_fp32(two_ranks: Path, scenario: str) -> None:
    got, exact = read(two_ranks, scenario), read(two_ranks, "policy:full:0:tiny-random")
    assert {tensor.dtype for tensor in got["weights"].values()} == {torch.bfloat16}
    for ours, theirs in zip(got["metrics"], exact["metrics"], strict=True):
        assert ours["policy/grad_norm"] == pytest.approx(theirs["policy/grad_norm"], rel=0.15)
        assert ours["lr/policy"] == theirs["lr/policy"]


def test_a_rank_without_supervised_rows_still_takes_part(two_ranks: Path) -> None:
    """Under ZeRO-3 each forward pass gathers weights: a rank that left one out would leave the other waiting."""
    assert_same_weights(read(two_ranks, "ptx:3")["weights"], read(two_ranks, "ptx:0")["weights"])
