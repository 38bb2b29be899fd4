"""The PPO loop over fake groups: order, versions, KL, checkpoints, omissions, penalties, resuming."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from actor_fakes import Critic, Engine, Events, Policy, Reference, Reward, group, prompts
from rich.console import Console

import actors.phases as phases_module
import actors.scoring as scoring_module
from actors.coordinator import Coordinator
from actors.crew import Crew
from actors.engines import Engines
from actors.evaluation import HeldOut
from actors.generation import Generation
from actors.group import Group
from actors.patience import Patience
from actors.phases import Phases
from actors.recovery import Healer
from actors.scoring import Scoring
from actors.weights import WeightSync
from cluster.health import Watch, wait_for
from cluster.session import connect
from rayrl.algorithms.kl import make_controller
from rayrl.config.judge import JudgeConfig
from rayrl.config.load import load
from rayrl.config.ppo import ClusterConfig, MixtureConfig, PPOConfig, RecoveryConfig, RewardEntry
from rayrl.errors import RunError
from rayrl.rewards.mixture import Mixture, RewardFailure
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.progress import Progress
from rayrl.tracking.recoveries import RecoveryLog, read_recoveries
from rayrl.tracking.rows import is_timing, read_rows, read_samples
from rayrl.tracking.run_log import RunLog
from rayrl.tracking.storage_wait import Storage
from rayrl.types import Rollout, SourceScores

ScoreOf = Callable[[Rollout], float | str]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with connect("local", num_cpus=1, object_store_mb=100):
        yield


def config(folder: Path, *overrides: str) -> PPOConfig:
    """Two policy and critic ranks, two engines, `length` (weight 1) and `repetition` (0.5), 8 prompts a step."""
    few = ("evaluation.num_prompts=4", "evaluation.samples_per_prompt=1", "logging.loggers=[]")
    return load(PPOConfig, "tiny", [f"output_dir={folder}", "rollout.engines=2", *few, *overrides])


class World:
    """A run of fakes in a folder."""

    def __init__(
        self,
        settings: PPOConfig,
        length: ScoreOf = lambda rollout: 1.0,
        endless: Callable[[str], bool] = lambda row_id: False,
        kl: Callable[[int], float] = lambda step: 0.5,
        first_step: int = 0,
    ) -> None:
        self.settings, self.events = settings, Events()
        self.resumes = first_step > 0
        self.folder = Path(settings.output_dir)

        def metrics(step: int) -> dict[str, float]:
            return {"loss/policy": 0.1 * step, "kl/mean_per_sequence": kl(step)}

        names = ("policy[0]", "policy[1]")
        self.policy = [Policy(name, self.events, metrics) for name in names]
        critic = [Critic(f"critic[{i}]", self.events, lambda step: {"loss/value": 0.2}) for i in range(2)]
        engines = [Engine(f"rollout[{i}]", self.events, endless) for i in range(2)]
        rewards = [
            group("reward:length", Reward("reward:length[0]", self.events, length)),
            group("reward:repetition", Reward("reward:repetition[0]", self.events, lambda rollout: 0.5)),
        ]
        uses_critic = settings.uses_critic
        crew = Crew(
            group("policy", *self.policy),
            group("critic", *critic) if uses_critic else None,
            group("reference", Reference("reference[0]", self.events)),
            Engines(group("rollout", *engines), len(engines)),
            rewards,
        )
        patience = Patience(settings.cluster, settings.recovery)
        generation = Generation(crew.engines, settings.policy.ranks, patience)
        scoring = Scoring(settings.rewards, rewards, Mixture(settings.rewards, settings.mixture), patience)
        everything = prompts(24)
        storage = Storage(settings.recovery.storage_wait_s)
        heldout = HeldOut(
            everything[20:], settings.evaluation, generation, scoring, self.folder, storage, settings.seed
        )
        console = Console(quiet=True)
        self.log = RunLog(self.folder, settings.logging, resume_step=first_step, console=console)
        self.store = CheckpointStore(self.folder, settings.checkpoint.keep_last, settings.checkpoint.keep_best)
        self.kl = make_controller(settings.algorithm.kl)
        self.coordinator = Coordinator(
            settings,
            everything[:20],
            crew,
            Phases(settings, crew, generation, scoring, patience),
            generation,
            scoring,
            WeightSync(crew.policy, settings.sync, "shared_memory", 1, patience),
            heldout,
            self.kl,
            self.log,
            Progress(settings.steps, first_step=first_step, enabled=False, console=console),
            self.store,
            storage,
            Healer(crew, RecoveryLog(self.folder, storage), settings.recovery.max_per_step, 60),
            patience,
        )

    def run(self) -> dict[str, float]:
        with self.log:
            return self.coordinator.run(self.store.newest_whole() if self.resumes else None)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.folder / "metrics.jsonl")

    def of(self, method: str, actor: str = "") -> Events:
        return [event for event in self.events if event[1] == method and event[0].startswith(actor)]


def test_order_of_a_step(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=2", "checkpoint.every=1"))
    world.run()
    begin = next(i for i, event in enumerate(world.events) if event[1] == "update" and event[2] == 0)
    after_first = [event[1] for event in world.events[begin:]]
    kinds = [kind for kind, before in zip(after_first, ["", *after_first], strict=False) if kind != before]
    step = ["update", "push", "save"]
    scoring = [
        "score",
        "take",
        "prepare",
        "take",
        "prepare",
        "take",
        "logprobs",
    ]  # of the policy, then of each critic rank
    assert kinds == [*step, "generate", *scoring, "update", "push", "generate", "score", "save"]


def test_every_rank_gets_its_own_answers_and_scores(tmp_path: Path) -> None:
    settings = config(tmp_path, "steps=1", "samples_per_prompt=2")
    world = World(settings, length=lambda r: float(r.prompt.row.id[1:]) + 100 * r.sample_index)
    world.run()
    asked = [
        row_id for event in world.of("generate")[-4:-2] for row_id in event[2]
    ]  # the last two are the evaluation's
    seen = [pair for event in world.of("take", "policy") for pair in event[2]]
    assert seen == [(row_id, sample) for row_id in asked for sample in (0, 1)]
    assert [event[2] for event in world.of("take", "policy")] == [event[2] for event in world.of("take", "critic")]
    assert [event[2] for event in world.of("prepare", "critic")] == [None, None]
    expected = [float(row_id[1:]) + 100 * sample + 0.25 for row_id, sample in seen]
    for role in ("policy", "critic"):
        assert [score for event in world.of("update", role) for score in event[3]] == expected


def test_critic_ranks_get_the_trunk_that_they_share(tmp_path: Path) -> None:
    same = "{mode: last_n, num_layers: 1}"
    world = World(config(tmp_path, "steps=1", f"policy.train={same}", f"critic.train={same}"))
    world.run()
    assert [event[2] for event in world.of("prepare", "critic")] == ["trunk of policy[0]", "trunk of policy[1]"]


def test_versions(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=3"))
    world.run()
    assert [event[2:] for event in world.of("push", "policy[0]")] == [
        (version, ["rollout[0]", "rollout[1]"]) for version in range(4)
    ]
    assert [event[2:] for event in world.of("push", "policy[1]")] == [(version, []) for version in range(4)]
    assert [row["weights/version"] for row in world.rows] == [0, 1, 2]
    assert all(row["weights/bytes"] == 20 for row in world.rows)


def test_a_lost_sync_stops_the_run(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=3", "checkpoint.every=1"))
    world.policy[0].pushes = False
    with pytest.raises(RunError, match=r"step 1: answers carry weight versions \[0\]; a sync was lost"):
        world.coordinator.run()
    assert [row["step"] for row in world.rows] == [0]


def test_seeds_differ_by_step_engine_and_purpose(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=3"))
    world.run()
    seeds = [event[3] for event in world.of("generate")]
    assert len(seeds) == 2 * (3 + 2)  # engines times steps and evaluations
    assert len(set(seeds)) == len(seeds)
    again = World(config(tmp_path / "again", "steps=3"))
    again.run()
    assert [event[3] for event in again.of("generate")] == seeds


def test_kl_controller_moves_once_a_step(tmp_path: Path) -> None:
    adaptive = "algorithm.kl={controller: adaptive, coef: 0.1, target: 1.0, horizon: 80}"
    world = World(config(tmp_path, "steps=3", adaptive), kl=lambda step: [2.0, 0.9, 0.0][step])
    world.run()
    # 8 sequences a step: +0.2 * 8/80, then -0.1 * 8/80, then -0.2 * 8/80.
    first, second, third = 0.1, 0.1 * 1.02, 0.1 * 1.02 * 0.99
    assert [row["kl/coef"] for row in world.rows] == pytest.approx([first, second, third])
    assert world.kl.value == pytest.approx(third * 0.98)
    assert [event[4] for event in world.of("update", "policy[1]")] == pytest.approx([first, second, third])


def test_checkpoints_at_the_right_steps_and_the_best_kept(tmp_path: Path) -> None:
    by_version = [0.0, 0.3, 0.2, 0.9, 0.5, 0.6]
    settings = config(tmp_path, "steps=5", "checkpoint={every: 2, keep_last: 1}", "evaluation.every=1")
    world = World(settings, length=lambda rollout: by_version[rollout.weight_version])
    world.run()
    assert [event[2] for event in world.of("save", "critic[1]")] == [
        f"step-00000{n}.partial"
        for n in (1, 2, 3, 4, 5)  # 1 and 3 are the best so far, 2 and 4 due, 5 the last
    ]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000005"]
    state = json.loads((tmp_path / "checkpoints/step-000005/state.json").read_text("utf-8"))
    assert (state["step"], state["best_step"], state["best_score"]) == (5, 3, pytest.approx(0.9 + 0.25))
    assert [row["eval/mixed"] for row in world.rows] == pytest.approx([score + 0.25 for score in by_version[1:]])


def test_omissions_are_counted_and_failures_stop(tmp_path: Path) -> None:
    def sometimes(rollout: Rollout) -> float | str:
        return "TimeoutError: slow" if rollout.prompt.row.id in ("p03", "p07") else 1.0

    world = World(config(tmp_path / "omit", "steps=3", "rewards.length.on_failure=omit"), length=sometimes)
    world.run()
    batches = [event[2] for event in world.of("generate")]
    for step, row in enumerate(world.rows):
        asked = batches[2 + 2 * step] + batches[3 + 2 * step]  # after the evaluation's two
        failed = sum(row_id in ("p03", "p07") for row_id in asked)
        assert row["omitted/length"] == failed
        # A sample without `length` (weight 1 of 1.5) has `repetition` alone: 0.5 * 0.5 * 1.5 / 0.5.
        assert row["score/mixed"] == pytest.approx(((8 - failed) * 1.25 + failed * 0.75) / 8)
        assert row["score/length"] == 1.0
    assert sum(row["omitted/length"] for row in world.rows) > 0

    world = World(config(tmp_path / "stop", "steps=3"), length=sometimes)
    with pytest.raises(
        RewardFailure, match=r"^step \d: reward 'length' failed on .*TimeoutError: slow; mend the source"
    ):
        world.run()


def test_penalty_for_a_missing_end_token(tmp_path: Path) -> None:
    settings = config(tmp_path, "steps=1", "algorithm.missing_eos_penalty=0.75")
    world = World(settings, endless=lambda row_id: int(row_id[1:]) % 2 == 1)
    metrics = world.run()
    ids = [row_id for event in world.of("take", "policy") for row_id, _ in event[2]]
    scores = [score for event in world.of("update", "policy") for score in event[3]]
    assert scores == [1.25 - (0.75 if int(row_id[1:]) % 2 else 0.0) for row_id in ids]
    assert metrics["score/mixed"] == 1.25  # the penalty is the algorithm's, not a source's
    assert metrics["length/ended_share"] == sum(int(row_id[1:]) % 2 == 0 for row_id in ids) / 8


def test_numbers_that_are_not_finite_stop_before_engines_and_checkpoints_see_them(tmp_path: Path) -> None:
    settings = config(tmp_path, "steps=3", "checkpoint.every=1")
    world = World(settings, kl=lambda step: float("inf") if step == 1 else 0.5)
    with pytest.raises(RunError, match=r"step 1: kl/mean_per_sequence is inf: training has diverged"):
        world.run()
    assert [event[2] for event in world.of("push", "policy[0]")] == [0, 1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_engine_and_trainer_that_disagree_stop_the_run(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=1", "sync.max_logprob_gap=1.0e-5"))
    with pytest.raises(RunError, match=r"step 0: engine and trainer log-probabilities .* differ by 0\.0001 nats"):
        world.run()
    assert not world.of("update")


def test_devices_are_handed_over_between_phases(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=2", "rollout.sleep_between_phases=true", "evaluation.every=1"))
    world.run()
    states: dict[str, str] = {}
    for name, kind, *rest in world.events:
        if kind in ("wake", "sleep", "offload", "reload"):
            states[name] = kind
            trainers = {states.get(other) for other in ("policy[0]", "policy[1]", "critic[0]", "critic[1]")}
            if kind in ("wake", "sleep"):
                assert trainers == {"offload"}, "the device is free before an engine wakes, and until it sleeps"
            if kind == "reload":
                assert states["rollout[0]"] == states["rollout[1]"] == "sleep"
        elif kind == "generate" or (kind == "push" and rest[1]):
            assert states["rollout[0]"] == states["rollout[1]"] == "wake", (name, kind)
        elif kind in ("prepare", "update"):
            assert states["rollout[0]"] == states["rollout[1]"] == "sleep", (name, kind)
            assert states[name] == "reload"
    assert len(world.of("wake", "rollout[0]")) == 3  # first push, and each step's
    assert len(world.of("sleep", "rollout[0]")) == 2
    assert len(world.of("generate", "rollout[0]")) == 2 + 3  # steps, and evaluations before and after each


def test_errors_in_the_score_phase_name_their_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(config(tmp_path, "steps=1"))
    awaited: list[tuple[str, list[str]]] = []

    def note(refs: list[Any], timeout_s: float, what: str, who: list[str], watch: Watch) -> list[Any]:
        awaited.append((what, list(who)))
        return wait_for(refs, timeout_s, what, who, watch)

    monkeypatch.setattr(phases_module, "wait_for", note)
    world.run()
    policy, critic = ["policy[0]", "policy[1]"], ["critic[0]", "critic[1]"]
    assert awaited[0] == (
        "step 0, log-probabilities",
        [*policy, *policy, *critic, "reference[0]", "reference[0]"],  # encode, prepare, values, two shards
    )


def test_evaluation_checks_the_weights_it_samples_with(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=1"))
    world.policy[0].pushes = False
    with pytest.raises(RunError, match=r"evaluation after step 1: answers carry weight versions \[0\]"):
        world.run()
    assert not (tmp_path / "evaluation/step-000001.jsonl").exists()


def test_a_start_drops_evaluations_of_later_steps(tmp_path: Path) -> None:
    World(config(tmp_path, "steps=2", "evaluation.every=1")).run()
    again = World(config(tmp_path, "steps=1"))
    again.run()
    files = sorted(path.name for path in (tmp_path / "evaluation").iterdir())
    assert files == ["step-000000.jsonl", "step-000001.jsonl"]
    assert len(again.of("generate")) == 2 + 2, "the first evaluation is read, that after the step is made anew"


def test_links_name_the_last_and_the_best_policy(tmp_path: Path) -> None:
    by_version = [0.0, 0.9, 0.5]
    settings = config(tmp_path, "steps=2", "checkpoint.every=1", "evaluation.every=1")
    World(settings, length=lambda rollout: by_version[rollout.weight_version]).run()
    assert str((tmp_path / "policy").readlink()) == "checkpoints/step-000002/policy"
    assert str((tmp_path / "best").readlink()) == "checkpoints/step-000001/policy"


def test_samples_are_those_of_the_step(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=2", "logging.samples_per_step=3"))
    world.run()
    samples = read_samples(tmp_path / "samples.jsonl")
    assert [sample.step for sample in samples] == [0, 0, 0, 1, 1, 1]
    for sample in samples:
        number = int(sample.prompt_id[1:])
        assert sample.response == f"answer 0 to {sample.prompt_id}"
        assert sample.messages == [{"role": "user", "content": f"question {number}"}]
        assert sample.raw == {"length": 1.0, "repetition": 0.5}
        assert (sample.mixed, sample.num_tokens) == (1.25, 3)


def test_a_resumed_run_goes_on_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    overrides = (
        "algorithm.kl={controller: adaptive, coef: 0.1, target: 1.0, horizon: 80}",
        "rewards.length.normalise=running_std",
        "checkpoint.every=1",
        "evaluation.every=1",
    )

    def score(rollout: Rollout) -> float:
        return (int(rollout.prompt.row.id[1:]) * 7 + rollout.weight_version * 3) % 11 - (rollout.weight_version == 3)

    whole = World(config(tmp_path / "whole", "steps=4", *overrides), length=score)
    whole.run()
    World(config(tmp_path / "parts", "steps=2", *overrides), length=score).run()
    rest = World(config(tmp_path / "parts", "steps=4", *overrides), length=score, first_step=2)
    latest = rest.store.latest()
    assert latest is not None and latest[0] == 2
    rest.run()

    def learning(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if not is_timing(key)} for row in rows]

    assert [row["step"] for row in rest.rows] == [0, 1, 2, 3]
    assert learning(rest.rows) == learning(whole.rows)
    states = [json.loads((w.folder / "checkpoints/step-000004/state.json").read_text("utf-8")) for w in (whole, rest)]
    assert states[0] == states[1]
    assert [event[2] for event in rest.of("load")] == ["step-000002"] * 4


@pytest.mark.parametrize("take_turns", [True, False])
def test_the_policy_begins_after_the_reward_models_where_roles_take_turns(
    take_turns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = "rewards=[{name: length, kind: model, model: m}, {name: repetition, kind: rule, rule: repetition}]"
    world = World(config(tmp_path, "steps=1", rewards, f"cluster.take_turns={take_turns}"))

    def waiting(refs: Any, timeout_s: float, what: str, who: Any, watch: Watch) -> list[Any]:
        world.events.append((what, "wait"))
        return wait_for(refs, timeout_s, what, who, watch)

    monkeypatch.setattr(scoring_module, "wait_for", waiting)
    world.run()
    first_view = next(i for i, event in enumerate(world.events) if event[:2] == ("policy[0]", "prepare"))
    waits = [event[0] for event in world.events[:first_view] if event[1] == "wait" and event[0].startswith("step 0")]
    assert waits == (["step 0, reward length"] if take_turns else [])


def test_where_roles_take_turns_a_reward_model_is_waited_for_and_a_judge_is_not() -> None:
    @ray.remote(num_cpus=0)
    def answer(after_s: float) -> SourceScores:
        time.sleep(after_s)
        return SourceScores("any", [1.0])

    entries = [
        RewardEntry(name="judge", kind="judge", judge=JudgeConfig()),
        RewardEntry(name="preferences", kind="model", model="m"),
    ]
    judged, scored = answer.remote(60.0), answer.remote(0.3)
    started = [[("judge[0]", judged)], [("preferences[0]", scored)]]
    patience = Patience(ClusterConfig(), RecoveryConfig())
    groups = [Group("reward:judge", []), Group("reward:preferences", [])]
    Scoring(entries, groups, Mixture(entries, MixtureConfig()), patience).wait_for_models(started, "step 0")
    assert ray.wait([judged, scored], num_returns=2, timeout=0) == ([scored], [judged])
    ray.cancel(judged, force=True)


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=2", "checkpoint.every=1"))
    world.policy[1].disk_fails = 1
    world.run()
    assert [row["step"] for row in world.rows] == [0, 1]
    assert [event[2] for event in world.of("save", "policy[1]")] == ["step-000001.partial", "step-000002.partial"]
    (event,) = read_recoveries(tmp_path)
    assert (event.cause, event.phase) == ("storage", "checkpoint after step 1")
    assert event.seconds > 0.9


def test_a_run_whose_disk_stays_full_ends_and_can_be_resumed(tmp_path: Path) -> None:
    world = World(config(tmp_path, "steps=3", "checkpoint.every=1", "recovery.storage_wait_s=0.5"))
    world.policy[0].disk_fails = 100
    with pytest.raises(RunError, match=r"checkpoint after step 1: the storage failed .* No space left .* goes on from"):
        world.run()
    again = World(config(tmp_path, "steps=3", "checkpoint.every=1"))
    again.run()
    assert [row["step"] for row in again.rows] == [0, 1, 2]


def test_experience_names_every_sample_once(tmp_path: Path) -> None:
    """20 prompts, 8 a step: the third step begins in the first pass and ends in the second."""
    World(config(tmp_path, "steps=3", "samples_per_prompt=2", "data.shuffle=false")).run()
    rows = read_rows(tmp_path / "experience.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["samples"][:3] == ["0/p00#0", "0/p00#1", "0/p01#0"]
    assert rows[2]["samples"][6:10] == ["0/p19#0", "0/p19#1", "1/p00#0", "1/p00#1"]
    everything = [name for row in rows for name in row["samples"]]
    assert len(everything) == len(set(everything)) == 3 * 8 * 2
