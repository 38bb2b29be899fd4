"""The parts that need Ray, on one real local cluster of four logical CPUs."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table

from cluster import health
from cluster.errors import ActorLost, AnswerTimeout, DoesNotFit, PlacementTimeout
from cluster.placement import Placement, nodes
from cluster.session import Session, connect
from cluster.specs import RoleSpec
from rayrl.errors import UserError


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Session]:
    with connect("local", num_cpus=4, object_store_mb=100) as session:
        yield session
    assert not ray.is_initialized()


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self, problem: str | None = None) -> None:
        if problem is not None:
            raise UserError(problem)

    def echo(self, value: object) -> object:
        return value

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self, problem: str) -> None:
        raise UserError(problem)

    def die_after(self, seconds: float) -> None:
        time.sleep(seconds)
        os._exit(1)

    def fail_after(self, seconds: float) -> None:
        time.sleep(seconds)
        raise RuntimeError("connection closed by peer")

    def ask(self, other: ray.actor.ActorHandle) -> object:
        return ray.get(other.echo.remote(1))

    def where(self) -> tuple[str | None, str | None, str | None]:
        group = ray.util.get_current_placement_group()
        environ = os.environ
        return (
            group.id.hex() if group is not None else None,
            environ.get("OMP_NUM_THREADS"),
            environ.get("CUDA_VISIBLE_DEVICES"),
        )


def test_session_is_private_and_reused(local_ray: Session) -> None:
    assert local_ray.local
    root = Path("/tmp") / f"rayrl-{os.getuid()}"
    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    assert folder.parent.parent.name == root.name, "its files are under a folder of the user's own"
    assert stat.S_IMODE(folder.parent.parent.stat().st_mode) == 0o700, "which Ray has left closed"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    with connect("local") as inner:
        assert inner.address == local_ray.address
        assert not inner.local
    assert ray.is_initialized(), "whoever came later doesn't close it"


def test_a_submitted_jobs_driver_joins_the_cluster_it_runs_on(local_ray: Session) -> None:
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from cluster.session import connect\n"
        "with connect('local') as session: print(session.address, session.local)"
    )
    environ = os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": local_ray.address}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == [local_ray.address, "False"]
    assert f"this is a submitted Ray job: joining its cluster at {local_ray.address}" in done.stderr
    assert len(ray.nodes()) == 1


def test_answers_come_in_order(local_ray: Session) -> None:
    slow, fast = Worker.remote(), Worker.remote()
    refs = [slow.sleep.remote(0.3), fast.echo.remote(2)]
    assert health.wait_for(refs, 30, "step 1, test", ["slow[0]", "fast[0]"]) == [None, 2]
    calls = {"fast[0]": fast.echo.remote("a"), "slow[0]": slow.echo.remote("b")}
    assert health.wait_for(list(calls.values()), 30, "step 1, test", list(calls)) == ["a", "b"]
    assert health.wait_for([], 1, "nothing", []) == []
    with pytest.raises(ValueError, match="1 references, but 0 names"):
        health.wait_for([fast.echo.remote(1)], 1, "test", [])


def test_timeout_names_who_is_missing(local_ray: Session) -> None:
    workers = [Worker.remote() for _ in range(3)]
    health.wait_for([worker.echo.remote(0) for worker in workers], 60, "start", ["a", "b", "c"])
    refs = [workers[0].sleep.remote(30), workers[1].echo.remote(1), workers[2].sleep.remote(30)]
    began = time.monotonic()
    with pytest.raises(AnswerTimeout) as caught:
        health.wait_for(refs, 2.0, "step 12, update", ["policy[0]", "policy[1]", "critic[0]"])
    assert time.monotonic() - began < 15
    assert caught.value.who == ("policy[0]", "critic[0]")
    assert str(caught.value).startswith(
        "no answer from policy[0], critic[0] within 2 s (step 12, update; 1 of 3 answered)"
    )
    for worker in workers:
        ray.kill(worker)


def test_death_is_named_at_once_though_others_hang(local_ray: Session) -> None:
    hanging, dying = Worker.remote(), Worker.remote()
    health.wait_for([hanging.echo.remote(0), dying.echo.remote(0)], 60, "start", ["a", "b"])
    refs = [hanging.sleep.remote(60), dying.die_after.remote(0.2)]
    began = time.monotonic()
    with pytest.raises(ActorLost) as caught:
        health.wait_for(refs, 60, "step 3, generate", ["rollout[0]", "rollout[1]"])
    assert time.monotonic() - began < 20
    assert (caught.value.who, caught.value.what) == ("rollout[1]", "step 3, generate")
    assert str(caught.value).startswith("rollout[1] died (step 3, generate): its worker process has died")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ray.exceptions.RayActorError)
    ray.kill(hanging)


def test_death_explains_the_errors_of_others(local_ray: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "GRACE_S", 20.0)  # it is over when the death is known
    failing, dying = Worker.remote(), Worker.remote()
    health.wait_for([failing.echo.remote(0), dying.echo.remote(0)], 60, "start", ["a", "b"])
    refs = [failing.fail_after.remote(0.0), dying.die_after.remote(0.3)]
    with pytest.raises(ActorLost, match=r"policy\[1\] died"):
        health.wait_for(refs, 60, "step 3, update", ["policy[0]", "policy[1]"])


def test_an_actors_error_keeps_its_type_and_sentence(local_ray: Session) -> None:
    worker = Worker.remote()
    with pytest.raises(UserError) as caught:
        health.wait_for([worker.fail.remote("the score is NaN")], 60, "step 3, score", ["reward:x[0]"])
    assert type(caught.value) is UserError
    assert str(caught.value) == "the score is NaN"
    assert caught.value.__notes__ == ["raised in reward:x[0] (step 3, score)"]
    assert isinstance(caught.value.__cause__, ray.exceptions.RayTaskError), "the remote traceback stays with it"


def test_death_of_an_actor_behind_the_one_asked(local_ray: Session) -> None:
    front, back = Worker.remote(), Worker.remote()
    ray.kill(back)
    with pytest.raises(ActorLost, match=r"an actor that policy\[0\] depends on died \(step 1, sync\)"):
        health.wait_for([front.ask.remote(back)], 60, "step 1, sync", ["policy[0]"])


def test_failed_constructor_is_told_in_a_sentence(local_ray: Session) -> None:
    worker = Worker.remote("no such checkpoint: x")
    with pytest.raises(ActorLost) as caught:
        health.wait_for([worker.echo.remote(1)], 60, "start", ["policy[0]"])
    assert str(caught.value) == "policy[0] failed to start (start): rayrl.errors.UserError: no such checkpoint: x"


def test_roles_share_bundles_and_give_them_back(local_ray: Session) -> None:
    specs = [
        RoleSpec("policy", 2, cpus=0.5, env={"OMP_NUM_THREADS": "3"}),
        RoleSpec("critic", 2, cpus=0.25, colocate_with="policy"),
        RoleSpec("reward:x", 1, cpus=0.1),
    ]
    placement = Placement.create(specs, timeout_s=30)
    actors = {
        (spec.name, rank): Worker.options(**placement.options(spec.name, rank)).remote()
        for spec in specs
        for rank in range(spec.ranks)
    }
    calls = {f"{name}[{rank}]": actor.where.remote() for (name, rank), actor in actors.items()}
    where = dict(zip(calls, health.wait_for(list(calls.values()), 60, "start", list(calls)), strict=True))
    groups = {name: group for name, (group, _, _) in where.items()}
    assert groups["policy[0]"] == groups["policy[1]"] == groups["critic[0]"] == groups["critic[1]"]
    assert groups["reward:x[0]"] not in (None, groups["policy[0]"])
    assert where["policy[1]"][1] == "3"
    assert {devices for _, _, devices in where.values()} == {""}, "who claims no GPU sees none"
    with pytest.raises(IndexError, match="role 'policy' has ranks 0 to 1, not 2"):
        placement.options("policy", 2)
    # Ray kills them a little after the bundles are gone, so a call that outlasts that is what shows it.
    unanswered = actors["policy", 0].sleep.remote(60)
    placement.remove()
    placement.remove()
    with pytest.raises(ActorLost):
        health.wait_for([unanswered], 50, "after", ["policy[0]"])
    wait_until_free(4)


def test_what_can_never_fit_reserves_nothing(local_ray: Session) -> None:
    assert [node.cpus for node in nodes()] == [4]
    before = placement_group_table()
    with pytest.raises(DoesNotFit, match="5 CPUs are asked and 4 there"):
        Placement.create([RoleSpec("policy", 5, cpus=1)], timeout_s=30)
    assert placement_group_table().keys() == before.keys(), "Ray lists removed groups too"


def test_waiting_for_a_busy_cluster_ends_and_names_the_role(local_ray: Session) -> None:
    first = Placement.create([RoleSpec("other", 3, cpus=1)], timeout_s=30)
    with pytest.raises(PlacementTimeout, match="no room for policy within 5 s") as caught:
        Placement.create([RoleSpec("small", 1, cpus=0.5), RoleSpec("policy", 2, cpus=1)], timeout_s=5)
    assert "CPU and 0 GPU are free" in str(caught.value)
    first.remove()
    wait_until_free(4)


def wait_until_free(cpus: float) -> None:
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0.0) != cpus:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
