"""Losses and hangs over real Ray actors without models: who is noticed, what is replaced, what is asked again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from actors.crew import Crew, load_all
from actors.engines import MAX_FAILED_STARTS, Engines
from actors.generation import Batch, Generation
from actors.group import Group
from actors.patience import Patience
from actors.recovery import Healer
from actors.worker import BESIDE_WORK, Worker, busy
from cluster.errors import ActorLost, AnswerGone, AnswerTimeout
from cluster.health import conditions, wait_for
from cluster.session import connect
from cluster.stuck import end_stuck
from rayrl.config.ppo import ClusterConfig, RecoveryConfig
from rayrl.errors import RunError
from rayrl.heartbeat import beat
from rayrl.tracking.recoveries import RecoveryLog, read_recoveries
from rayrl.tracking.storage_wait import Storage
from rayrl.types import Prompt, PromptRow, Rollout, RolloutInfo

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import test modules


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with connect("local", num_cpus=2, object_store_mb=100):
        yield


class Part(Worker):
    """An actor of any role; what it does is to sleep, counting or not."""

    @busy
    def setup(self) -> dict[str, Any]:
        return {}

    @busy
    def work(self, seconds: float, counts: bool) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if counts:
                beat()
        return "done"

    @busy
    def fail(self, message: str) -> None:
        raise RuntimeError(message)


class SlowEngine(Part):
    """Answers each prompt with its own number, after `seconds`."""

    @busy
    def setup(self, seconds: float, fails: bool = False) -> dict[str, Any]:
        if fails:
            raise OSError("no such model")
        self._seconds = seconds
        return {}

    @busy
    def generate(self, chunks: list[list[Prompt]], num_samples: int, seed: int, num_texts: int) -> list[Any]:
        time.sleep(self._seconds)
        out: list[Any] = []
        for chunk in chunks:
            rollouts = [
                Rollout(p, i, np.array([seed % 1000, 2]), np.zeros(2, np.float32), "text", True, 0)
                for p in chunk
                for i in range(num_samples)
            ]
            out += [rollouts, [RolloutInfo(r.prompt.row.id, 2, True, 0, None) for r in rollouts]]
        return out


def group(role: str, count: int, actor: type = Part) -> Group:
    remote = ray.remote(num_cpus=0, concurrency_groups=BESIDE_WORK)(actor)
    made = Group(role, [remote.remote() for _ in range(count)], lambda rank: remote.remote())
    ray.get(made.call("progress"))  # a watch takes one that still starts for one that is stuck
    return made


def prompts(count: int) -> list[Prompt]:
    return [Prompt(PromptRow(f"p{i}", [{"role": "user", "content": "?"}]), np.array([1, i])) for i in range(count)]


def patience(no_progress_s: float = 2.0) -> Patience:
    return Patience(ClusterConfig(), RecoveryConfig(no_progress_s=no_progress_s))


def pid(one: Group, rank: int = 0) -> int:
    return int(ray.get(one.by_name[f"{one.role}[{rank}]"].process.remote()).pid)


def crew(engines: Engines, policy: Group, reward: Group) -> Crew:
    def setup(part: Group) -> list[ray.ObjectRef]:
        return part.call("setup")

    return Crew(policy, None, None, engines, [reward], dict.fromkeys(("policy", "reward:x"), setup))


def test_actors_say_how_they_are_beside_their_work() -> None:
    workers = group("policy", 4)
    busy_one = workers.handles[0].work.remote(300.0, True)
    wait_until(workers.handles[0], "busy")
    wait_until(workers.handles[3], "idle")
    os.kill(pid(workers, 1), signal.SIGSTOP)
    ray.kill(workers.handles[2])
    wait_until(workers.handles[2], "dead")
    found = conditions(workers.by_name, timeout_s=5.0)
    assert found == {"policy[0]": "busy", "policy[1]": "silent", "policy[2]": "dead", "policy[3]": "idle"}
    ray.cancel(busy_one, force=False)
    for rank in workers.ranks:
        workers.remove(rank)


def wait_until(handle: Any, condition: str) -> None:
    """Neither a call nor `ray.kill` waits."""
    deadline = time.monotonic() + 60
    while conditions({"x": handle}, timeout_s=5.0)["x"] != condition:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_watch_tells_slow_from_stuck() -> None:
    workers = group("policy", 2)
    slow = workers.handles[0].work.remote(8.0, True)  # twice the limit, but it gets on
    watch = patience(4.0).watch("update", workers)
    assert wait_for([slow], 60, "step 1, update", ["policy[0]"], watch) == ["done"]
    stuck = workers.handles[1].work.remote(60.0, False)
    watch, began = patience(4.0).watch("update", workers), time.monotonic()
    with pytest.raises(AnswerTimeout, match=r"policy\[1\] made no progress for 4 s \(step 1, update\)") as caught:
        wait_for([stuck], 60, "step 1, update", ["policy[1]"], watch)
    assert caught.value.who == ("policy[1]",)
    assert 4.0 < time.monotonic() - began < 20.0


def test_one_that_waits_for_a_stopped_one_is_not_blamed() -> None:
    workers = group("policy", 2)
    stopped = pid(workers, 0)
    os.kill(stopped, signal.SIGSTOP)
    waiting = [workers.handles[0].work.remote(0.1, False), workers.handles[1].work.remote(30.0, False)]
    with pytest.raises(AnswerTimeout) as caught:
        wait_for(waiting, 60, "step 1, update", workers.names, patience(4.0).watch("update", workers))
    assert caught.value.who == ("policy[0]",)
    os.kill(stopped, signal.SIGCONT)
    for handle in workers.handles:
        end_stuck(ray.get(handle.process.remote(), timeout=60), 20)


def test_the_stack_of_a_stopped_actor_is_read_and_the_actor_ended() -> None:
    worker = group("policy", 1)
    process = ray.get(worker.handles[0].process.remote())
    answer = worker.handles[0].work.remote(60.0, False)
    wait_until(worker.handles[0], "busy")
    os.kill(process.pid, signal.SIGSTOP)
    text = end_stuck(process, 20)
    assert text is not None
    assert "in work" in text and "test_actors_recovery.py" in text
    assert is_gone(process.pid), "its memory is free when its place is taken"
    with pytest.raises(ActorLost, match=r"policy\[0\] died"):
        wait_for([answer], 30, "step 1, update", ["policy[0]"])
    assert end_stuck(process, 20) is None, "a pid that is free, or another's, is left alone"


def test_a_stuck_actor_ends_though_the_first_helper_is_lost() -> None:
    """Ray may give the task to an idle worker that is just about to end."""
    worker = group("policy", 1)
    process = ray.get(worker.handles[0].process.remote())
    empty = ray.get(worker.handles[0].__ray_call__.remote(lambda _: os.memfd_create("empty")))
    os.kill(process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(_kill_helper)
        end_stuck(replace(process, stack_fd=empty), 60)  # no stack comes, so that the helper waits for a while
        killed.result()
    assert is_gone(process.pid)


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _kill_helper() -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for one in psutil.Process().children(recursive=True):  # other tests have helpers too
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(one.cmdline()).startswith("ray::_end_here"):
                    return one.kill()
        time.sleep(0.05)
    raise AssertionError("no helper was there")


def generate(engines: Engines, healer: Healer | None, no_progress_s: float = 30.0) -> Batch:
    generation = Generation(engines, 1, patience(no_progress_s))
    if healer is not None:
        generation.on_loss = lambda error, what: healer.lose_engines(error, 0)
    return generation.generate(prompts(7), 2, (0, 0), "step 0, generation", 0)


def sampled(batch: Batch) -> list[tuple[str, int, int]]:
    return [(r.prompt.row.id, r.sample_index, int(r.response_ids_T[0])) for ref in batch.refs for r in ray.get(ref)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_prompts_of_a_lost_engine_go_to_the_others(how: signal.Signals, tmp_path: Path) -> None:
    whole = group("rollout", 3, SlowEngine)
    ray.get(whole.call("setup", 0.0))
    expected = sampled(generate(Engines(whole, 3), None))
    assert [row_id for row_id, _, _ in expected] == [f"p{i}" for i in range(7) for _ in range(2)]

    some = group("rollout", 3, SlowEngine)
    ray.get(some.call("setup", 2.0))
    engines = Engines(some, 3, lambda part: part.call("setup", 0.0))
    healer = Healer(crew(engines, group("policy", 1), group("reward:x", 1)), RecoveryLog(tmp_path, Storage(1.0)), 3, 60)
    healer.learn_processes([some])
    victim = pid(some, 1)
    timer = time.monotonic()
    threading.Timer(0.5, os.kill, (victim, how)).start()
    got = sampled(generate(engines, healer, no_progress_s=4.0))
    assert got == expected, "each sample once, by the seed of its share, whoever sampled it"
    assert time.monotonic() - timer < 90
    assert engines.up.ranks == [0, 2]
    (event,) = read_recoveries(tmp_path)
    assert (event.cause, event.lost) == ("hung" if how == signal.SIGSTOP else "died", ["rollout[1]"])
    assert bool(event.stacks) is (how == signal.SIGSTOP)
    assert event.action == "prompts went to other engines"
    new = engines.wait_for_one("test")
    assert new.names == ["rollout[1]"]
    engines.join(new)
    assert engines.up.names == ["rollout[0]", "rollout[1]", "rollout[2]"]


def test_where_no_engine_is_left_one_is_brought(tmp_path: Path) -> None:
    only = group("rollout", 1, SlowEngine)
    engines = Engines(only, 2, lambda part: part.call("setup", 0.0))
    healer = Healer(crew(engines, group("policy", 1), group("reward:x", 1)), RecoveryLog(tmp_path, Storage(1.0)), 3, 60)
    ray.kill(only.handles[0])
    healer.lose_engines(ActorLost("rollout[0] died", "rollout[0]", "step 3, generate"), 3)
    (event,) = read_recoveries(tmp_path)
    assert (event.lost, event.action) == (["rollout[0]"], "no other was left: waited for one")
    generation = Generation(engines, 1, patience(30.0))
    with pytest.raises(RunError, match="step 3: no engine is left"):
        generation.generate(prompts(4), 1, (0, 0), "step 3", 0)
    generation.on_none = lambda what: engines.join(engines.wait_for_one(what))
    batch = generation.generate(prompts(4), 1, (0, 0), "step 3", 0)
    assert [row_id for row_id, _, _ in sampled(batch)] == ["p0", "p1", "p2", "p3"], "one engine, both shares"


def test_an_engine_that_never_starts_is_given_up() -> None:
    engines = Engines(group("rollout", 1, SlowEngine), 1, lambda part: part.call("setup", 0.0, True))
    engines.drop(0)
    with pytest.raises(RunError, match="step 3: no engine is left, and none of 1 could be started again"):
        engines.wait_for_one("step 3")
    assert MAX_FAILED_STARTS == 3


def test_an_engine_that_dies_before_it_is_up_is_started_again() -> None:
    engines = Engines(group("rollout", 1, SlowEngine), 2, lambda part: part.call("setup", 0.0))
    engines.start_missing()
    assert engines.has("rollout[1]") and "rollout[1]" not in engines.up.names
    deadline = time.monotonic() + 120
    while not len(first := engines.loaded()) and time.monotonic() < deadline:
        time.sleep(0.1)
    engines.drop(1)  # as a weight sync does, when it finds it dead
    assert not engines.has("rollout[1]") and len(engines.loaded()) == 0
    engines.start_missing()
    while not len(second := engines.loaded()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert second.names == first.names and second.handles != first.handles


def test_engines_come_when_there_is_room() -> None:
    room: set[int] = set()
    engines = Engines(group("rollout", 1, SlowEngine), 3, lambda part: part.call("setup", 0.0), room.__contains__)
    engines.start_missing()
    assert len(engines.loaded()) == 0
    room.add(2)
    engines.start_missing()
    deadline = time.monotonic() + 120
    while not len(new := engines.loaded()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert new.names == ["rollout[2]"]
    engines.join(new)
    assert engines.up.ranks == [0, 2]


class DiesOnce(Part):
    """The first actor of its kind dies while it loads."""

    @busy
    def setup(self, folder: Path) -> dict[str, Any]:
        if not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(1)
        return {}


def test_a_start_that_loses_an_actor_begins_again(tmp_path: Path) -> None:
    reward = group("reward:x", 2, DiesOnce)
    ours = Crew(
        group("policy", 1), None, None, Engines(group("rollout", 1), 1), [reward],
        {"policy": lambda part: part.call("setup"), "rollout": lambda part: part.call("setup"),
         "reward:x": lambda part: part.call("setup", tmp_path)},
    )  # fmt: skip
    actors = load_all(ours, 60, 1)
    assert sorted(actors) == ["policy[0]", "reward:x[0]", "reward:x[1]", "rollout[0]"]
    (tmp_path / "died").unlink()
    for one in ours.groups:
        one.renew(one.ranks)
    with pytest.raises(ActorLost, match=r"reward:x\[\d\] died \(start\)"):
        load_all(ours, 60, 0)


def lost(healer: Healer, error: Exception, **kwargs: Any) -> Any:
    return healer.heal(error, 4, "score", **{"undo": False, "may_load": True, **kwargs})


def test_what_is_replaced_after_which_loss(tmp_path: Path) -> None:
    policy, reward, engine = group("policy", 2), group("reward:x", 2), group("rollout", 1, SlowEngine)
    ours = crew(Engines(engine, 1), policy, reward)
    healer = Healer(ours, RecoveryLog(tmp_path, Storage(1.0)), 3, 60)
    assert lost(healer, RuntimeError("the loss is NaN")) is None, "nobody is lost: not for us"

    before, others = reward.by_name["reward:x[1]"], policy.handles
    ray.kill(before)
    healed = lost(healer, ActorLost("reward:x[1] died", "reward:x[1]", "step 4, score"))
    assert (healed.trainers, healed.answers_lost) == (False, False)
    assert reward.by_name["reward:x[1]"] != before and policy.handles == others
    assert (healed.event.cause, list(healed.event.lost)) == ("died", ["reward:x[1]"])

    ray.kill(policy.handles[0])
    wait_until(policy.handles[0], "dead")
    healed = lost(healer, RuntimeError("gloo: Connection closed by peer"))
    assert healed.trainers
    assert not set(policy.handles) & set(others), "a group that lost a rank is new as a whole"
    assert healed.event.lost == ["policy[0]"]

    never = Healer(ours, RecoveryLog(tmp_path, Storage(1.0)), 0, 60)
    lost(never, AnswerGone("lay on a node that is gone"))
    with pytest.raises(RunError, match="recovered 0 times"):  # no loss explains a second one
        lost(never, AnswerGone("lay on a node that is gone"))
    kept = policy.handles
    healed = lost(healer, AnswerGone("lay on a node that is gone"))
    assert (healed.trainers, healed.answers_lost) == (False, True)
    assert policy.handles == kept

    healed = lost(healer, AnswerGone("lay on a node that is gone"), undo=True)
    assert healed.trainers and policy.handles == kept, "a checkpoint sets living trainers back"
    ray.kill(reward.handles[0])
    healed = lost(healer, ActorLost("died", "reward:x[0]", "x"), undo=True, may_load=False)
    assert healed.trainers and not set(policy.handles) & set(kept), "without a checkpoint only new ones are as at first"

    ray.kill(reward.handles[0])
    with pytest.raises(RunError, match=r"step 4 was recovered 3 times \(recovery.max_per_step\), and then: died"):
        lost(healer, ActorLost("died", "reward:x[0]", "x"))


def test_limits_by_role_and_phase() -> None:
    config = RecoveryConfig(no_progress_s=50, no_progress_s_of={"policy": {"update": 700}, "reward": {"score": 9}})
    ours = Patience(ClusterConfig(), config)
    assert ours.limit_s("policy", "update") == 700
    assert ours.limit_s("policy", "score") == 50
    assert ours.limit_s("reward:questions", "score") == 9
