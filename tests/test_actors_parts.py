"""What needs no Ray: cutting a batch into chunks, busy time, whether a folder may be resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.generation import cut
from actors.record import data_read
from actors.resume import check_same_data, check_same_run
from actors.worker import Worker, busy, union_s
from rayrl.config.load import dump, load
from rayrl.config.ppo import PPOConfig
from rayrl.data.lock import only_run
from rayrl.errors import UserError


def test_cut_by_hand() -> None:
    assert cut(4, 1, 1) == [(0, 4, 0, 0)]
    assert cut(4, 1, 2) == [(0, 2, 0, 0), (2, 4, 0, 1)]
    assert cut(4, 2, 1) == [(0, 2, 0, 0), (2, 4, 1, 0)]
    assert cut(12, 3, 2) == [(0, 4, 0, 0), (4, 6, 1, 0), (6, 8, 1, 1), (8, 12, 2, 1)]


@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 12))
def test_cut_gives_every_prompt_to_one_engine_and_one_rank(num_prompts: int, engines: int, ranks: int) -> None:
    pieces = cut(num_prompts, engines, ranks)
    assert [i for start, stop, _, _ in pieces for i in range(start, stop)] == list(range(num_prompts))
    assert all(start < stop for start, stop, _, _ in pieces)
    assert len(pieces) <= engines + ranks - 1
    for column, parts in ((2, engines), (3, ranks)):
        owners = [piece[column] for piece in pieces]
        assert owners == sorted(owners)  # consecutive prompts
        assert set(owners) <= set(range(parts))
        sizes = [
            sum(stop - start for start, stop, *owner in pieces if owner[column - 2] == part) for part in range(parts)
        ]
        assert max(sizes) - min(sizes) <= 1 + (num_prompts % parts > 0)
        if num_prompts % parts == 0:
            assert set(sizes) == {num_prompts // parts}


def test_union_s_by_hand() -> None:
    assert union_s([]) == 0
    assert union_s([(1.0, 3.0)]) == 2
    assert union_s([(0.0, 1.0), (2.0, 4.0)]) == 3  # apart
    assert union_s([(2.0, 4.0), (0.0, 3.0)]) == 4  # overlapping, out of order
    assert union_s([(0.0, 10.0), (2.0, 3.0), (4.0, 5.0)]) == 10  # nested
    assert union_s([(0.0, 1.0), (1.0, 2.0), (1.0, 1.0)]) == 2  # touching; one of no length


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10))))
def test_union_s_counts_every_second_once(begin_and_length: list[tuple[int, int]]) -> None:
    intervals = [(float(a), float(a + length)) for a, length in begin_and_length]
    seconds = {second for a, length in begin_and_length for second in range(a, a + length)}
    assert union_s(intervals) == len(seconds)


class Busy(Worker):
    @busy
    def work(self, fail: bool) -> str:
        if fail:
            raise ValueError("work failed")
        return "done"


def test_busy_time_counts_failures_too() -> None:
    worker = Busy()
    assert worker.work(False) == "done"
    with pytest.raises(ValueError, match="work failed"):
        worker.work(True)
    taken = worker.take_intervals()
    assert len(taken) == 2
    assert all(begin <= end for begin, end in taken)
    assert worker.take_intervals() == []


@pytest.mark.parametrize(
    ("overrides", "backend"),
    [
        ([], "shared_memory"),
        (["rollout.gpus_per_engine=1"], "nccl"),
        (["rollout.gpus_per_engine=1", "cluster.colocate=[[policy, critic]]"], "nccl"),
        (["rollout.gpus_per_engine=0.5", "cluster.colocate=[[policy, rollout]]"], "ipc"),
        (["rollout.gpus_per_engine=1", "rollout.backend=hf"], "shared_memory"),
        (["rollout.gpus_per_engine=1", "sync.backend=shared_memory"], "shared_memory"),
    ],
)
def test_transfer_backend(overrides: list[str], backend: str) -> None:
    assert load(PPOConfig, "tiny", overrides).transfer_backend == backend


def test_ipc_needs_a_policy_rank_beside_every_engine() -> None:
    shared = ["rollout.gpus_per_engine=0.5", "cluster.colocate=[[policy, rollout]]", "rollout.engines=3"]
    with pytest.raises(UserError, match=r"over ipc .* at most policy\.ranks \(2\), got 3"):
        load(PPOConfig, "tiny", shared)
    assert load(PPOConfig, "tiny", [*shared, "sync.backend=nccl"]).transfer_backend == "nccl"


class Asked:
    """An engine's handle that notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.transfer = self

    def remote(self, *args: Any) -> int:
        self.calls.append(args)
        return len(self.calls)


def test_every_engine_has_its_own_ranks_in_a_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    device_transfer = pytest.importorskip("actors.device_transfer", reason="needs vLLM")
    limits: list[float] = []
    monkeypatch.setattr(device_transfer, "wait_for", lambda refs, timeout_s, what, who: limits.append(timeout_s))
    engines = [Asked(), Asked(), Asked()]
    client = device_transfer.EngineClient(engines, ["rollout[0]", "rollout[1]", "rollout[2]"], 2, 60.0)
    assert client.num_workers == 6
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    infos = [engine.calls[0][1]["init_info"] for engine in engines]
    assert [info["rank_offset"] for info in infos] == [1, 3, 5]
    assert {info["world_size"] for info in infos} == {7}
    client.init_weight_transfer_engine({"packed": True})  # ipc
    assert engines[2].calls[1] == ("init_weight_transfer_engine", {"init_info": {"packed": True}})
    client.start_weight_update()
    assert 60.0 >= limits[0] >= limits[1] >= limits[2] > 0, "one limit for all"


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_run(folder):
        with pytest.raises(UserError, match=f"output_dir {folder} is in use by another run"), only_run(folder):
            pytest.fail("two runs in one folder")
        check_same_run(
            load(PPOConfig, "tiny", [f"output_dir={folder}"]), folder
        )  # the lock doesn't make it a foreign folder
    with only_run(folder):
        pass


def test_a_resumed_run_may_raise_its_judges_budget(tmp_path: Path) -> None:
    judge = "rewards=[{name: judge, kind: judge, judge: {budget: {calls: 9}}}]"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(load(PPOConfig, "tiny", [f"output_dir={folder}", judge])), "utf-8")
    allowed = [
        "rewards.judge.judge.budget.calls=99",
        "rewards.judge.judge.concurrency=2",
        "rewards.judge.on_failure=omit",
        "rewards.judge.timeout_s=60",
    ]
    check_same_run(load(PPOConfig, "tiny", [judge, *allowed]), folder)
    with pytest.raises(UserError, match=r"another rewards\.judge\.judge\.max_tokens"):
        check_same_run(load(PPOConfig, "tiny", [judge, "rewards.judge.judge.max_tokens=9"]), folder)


def test_a_resumed_run_reads_the_rows_it_began_with(tmp_path: Path) -> None:
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    folder.mkdir()
    prompts.write_text("1")
    inputs = data_read(load(PPOConfig, "tiny", [f"data.prompts={prompts}", "data.heldout=consultations-en"]))
    assert set(inputs) == {str(prompts), "consultations-en"}
    check_same_data(folder)  # nothing there
    (folder / "run.json").write_text(json.dumps({"inputs": inputs}))
    check_same_data(folder)
    prompts.write_text("2")
    with pytest.raises(UserError, match=f"{prompts} has changed since the run in {folder} read it"):
        check_same_data(folder)


def test_which_settings_a_resumed_run_may_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = load(PPOConfig, "tiny", [f"output_dir={folder}"])
    check_same_run(config, folder)  # nothing there
    folder.mkdir()
    check_same_run(config, folder)  # an empty folder
    (folder / "config.yaml.new").touch()
    check_same_run(config, folder)  # a start that was killed while it wrote
    (folder / "config.yaml").write_text(dump(config), "utf-8")
    allowed = ["steps=9", "checkpoint.every=1", "logging.samples_per_step=0", "cluster.step_timeout_s=60"]
    check_same_run(load(PPOConfig, "tiny", [f"output_dir={folder}", *allowed]), folder)
    for change in ("seed=1", "rewards.length.weight=2", "policy.optimizer.lr=0.1", "data.prompts=consultations-zh"):
        with pytest.raises(UserError) as caught:
            check_same_run(load(PPOConfig, "tiny", [change]), folder)
        assert change.split("=")[0] in str(caught.value)
