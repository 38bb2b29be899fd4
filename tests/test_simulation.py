"""A PPO run over simulated roles: complete, the same by seed, whole after the loss of a host, and cheap."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.simulated_run import Fleet, SimulatedRun, StepCost
from actors.simulation import Rates
from cluster.session import connect
from rayrl.errors import RunError
from rayrl.tracking import run_log
from rayrl.tracking.recoveries import Recovery, RecoveryLog, read_recoveries
from rayrl.tracking.rows import is_timing, read_rows, replace_rows

FAST = Rates(speed=60.0)
"""Steps of a second."""


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with connect("local", num_cpus=2, object_store_mb=150):
        yield


def learning(folder: Path) -> list[dict[str, Any]]:
    rows = read_rows(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not is_timing(key)} for row in rows]


@pytest.fixture(scope="module")
def whole(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepCost]]:
    """A run of 32 roles in which nothing happens: its folder, and the costs of its second and third step."""
    folder = tmp_path_factory.mktemp("whole")
    run = SimulatedRun(folder, Fleet.of(32), FAST, 3, ranks_per_host=8)
    run.run()
    costs, _ = run.costs()
    run.close()
    return folder, costs


def test_a_fleet_has_as_many_roles_as_were_asked() -> None:
    for roles in (8, 32, 128, 512):
        assert Fleet.of(roles).roles == roles
    assert Fleet.of(512) == Fleet(256, 96, 96, 32, 32)


def test_32_simulated_roles_train_completely_and_cheaply(whole: tuple[Path, list[StepCost]]) -> None:
    folder, costs = whole
    rows, experience = read_rows(folder / "metrics.jsonl"), read_rows(folder / "experience.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(len(set(row["samples"])) == 3 * 32 * 4 for row in experience)
    assert all(0 < row["busy/rollout"] <= 1 and row["cluster/engines"] == 16 for row in rows)
    assert (folder / "checkpoints/step-000003/state.json").exists()
    assert len(costs) == 2
    for cost in costs:
        assert cost.critical_s > 0.5
        assert cost.overhead_s > 0
        assert sum(cost.by_phase.values()) == pytest.approx(cost.overhead_s)
        assert cost.driver_cpu_s < 1.2
    if os.getloadavg()[0] < 4:  # else this machine does much besides
        assert min(cost.overhead_s for cost in costs) < 1.2, "2% of a step of 60 s"


def test_the_same_seed_gives_the_same_run_and_another_one_other_lengths(
    whole: tuple[Path, list[StepCost]], tmp_path: Path
) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        run = SimulatedRun(tmp_path / name, Fleet.of(32), Rates(seed=seed, speed=300.0), 3)
        run.run()
        run.close()
    assert learning(tmp_path / "again") == learning(whole[0]) != learning(tmp_path / "other")
    samples = [read_rows(folder / "samples.jsonl") for folder in (tmp_path / "again", whole[0])]
    assert samples[0] == samples[1] != []


def lose(run: SimulatedRun, hosts: list[Any], in_phase: str = "generate") -> threading.Thread:
    """Kills these hosts shortly after the phase has begun in the second step."""
    begun, enter = threading.Event(), run.timeline.clock.phase

    def phase(name: str) -> Any:
        if name == in_phase and len(run.timeline.ends) == 1:
            begun.set()
        return enter(name)

    def kill() -> None:
        begun.wait(60)
        time.sleep(0.1)
        for host in hosts:
            ray.kill(host)

    run.timeline.clock.phase = phase  # type: ignore[method-assign]
    killer = threading.Thread(target=kill)
    killer.start()
    return killer


def test_a_host_that_dies_with_its_engines_is_one_loss_and_changes_nothing(
    whole: tuple[Path, list[StepCost]], tmp_path: Path
) -> None:
    run = SimulatedRun(tmp_path, Fleet.of(32), FAST, 3, ranks_per_host=8)
    engines = run.crew.engines.up.handles
    assert engines[7].host != engines[8].host == engines[15].host
    killer = lose(run, [engines[8].host])
    run.run()
    killer.join()
    run.close()
    assert learning(tmp_path) == learning(whole[0])
    died, *others = read_recoveries(tmp_path)
    assert (died.cause, died.step) == ("died", 1)
    assert sorted(died.lost) == sorted(f"rollout[{rank}]" for rank in range(8, 16))
    assert {event.cause for event in others} <= {"joined"}


def test_a_policy_that_dies_comes_back_from_the_checkpoint(whole: tuple[Path, list[StepCost]], tmp_path: Path) -> None:
    run = SimulatedRun(tmp_path, Fleet.of(32), FAST, 3, settings=["checkpoint.every=1"])
    killer = lose(run, [run.crew.policy.handles[0].host], "update")
    run.run()
    killer.join()
    run.close()
    assert learning(tmp_path) == learning(whole[0])
    (event,) = read_recoveries(tmp_path)
    assert (event.cause, event.step, event.back_to) == ("died", 1, 1)
    assert sorted(event.lost) == [f"policy[{rank}]" for rank in range(6)]


def test_a_full_disk_is_waited_for_on_the_way_back(
    whole: tuple[Path, list[StepCost]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimulatedRun(tmp_path, Fleet.of(32), FAST, 3, settings=["checkpoint.every=1"])
    written: list[Path] = []

    def full_at_first(path: Path, rows: Sequence[dict[str, Any]]) -> None:
        written.append(path)
        if run.timeline.ends and len(written) < 5:  # that of the start writes two
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_rows(path, rows)

    monkeypatch.setattr(run_log, "replace_rows", full_at_first)
    added: dict[str, float] = {}
    add = RecoveryLog.add

    def noted(log: RecoveryLog, event: Recovery) -> None:
        added[event.cause] = time.time()
        add(log, event)

    monkeypatch.setattr(RecoveryLog, "add", noted)
    killer = lose(run, [run.crew.policy.handles[0].host], "update")
    run.run()
    killer.join()
    run.close()
    assert learning(tmp_path) == learning(whole[0])
    storage, died = read_recoveries(tmp_path)
    assert (storage.cause, storage.phase, storage.step) == ("storage", "going back", 1)
    assert storage.seconds > 1
    assert (died.cause, died.back_to) == ("died", 1)
    assert died.seconds + storage.seconds == pytest.approx(added["died"] - died.time, abs=0.5), "each second once"


def test_a_run_that_loses_more_than_it_may_ends(tmp_path: Path) -> None:
    run = SimulatedRun(tmp_path, Fleet.of(8), FAST, 3, settings=["recovery.max_per_step=0"])
    killer = lose(run, run.hosts.handles[:1])
    with pytest.raises(RunError, match=r"step 1 was recovered 0 times \(recovery.max_per_step\)"):
        run.run()
    killer.join()
    run.close()
