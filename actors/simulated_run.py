"""A PPO run over simulated roles: the real coordinator and its parts, and what the coordinator itself costs.

The overhead of a step is its wall time less its critical path: in each phase the longest sum of stated durations of any
rank. Everything else is overhead: sending, waiting, looking after actors, mixing scores, writing logs, and, since they
run on the same cores, the simulated ranks' own processes. In a weight sync rank 0 of the policy calls every engine:
that time is the policy's and is counted apart (`fan_out_s`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from rich.console import Console

from actors.coordinator import Coordinator
from actors.crew import Crew, Setup
from actors.engines import Engines
from actors.evaluation import HeldOut
from actors.generation import Generation
from actors.group import Group
from actors.patience import Patience
from actors.phases import Phases
from actors.recovery import Healer
from actors.scoring import Scoring
from actors.simulation import Hosts, Rates, Record
from actors.weights import WeightSync
from rayrl.algorithms.kl import make_controller
from rayrl.config.load import load
from rayrl.config.ppo import PPOConfig
from rayrl.rewards.mixture import Mixture
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.progress import Progress
from rayrl.tracking.recoveries import RecoveryLog
from rayrl.tracking.run_log import RunLog
from rayrl.tracking.storage_wait import Storage
from rayrl.types import Prompt, PromptRow

START_S = 300.0
PROMPT_TOKENS = 256
SAMPLES_PER_PROMPT = 4
PROMPTS_PER_ROLE = 3
"""So that every engine and every rank has as much to do whatever the number of roles."""


@dataclass(frozen=True)
class Fleet:
    """How many ranks each role has. Example: Fleet.of(32) == Fleet(16, 6, 6, 2, 2)"""

    engines: int
    policy: int
    critic: int
    reference: int
    reward: int

    @classmethod
    def of(cls, roles: int) -> Fleet:
        """Half of them engines, three in sixteen each policy and critic, the rest reference and reward workers."""
        trainers, scorers = max(1, 3 * roles // 16), max(1, roles // 16)
        return cls(roles - 2 * trainers - 2 * scorers, trainers, trainers, scorers, scorers)

    @property
    def roles(self) -> int:
        """All."""
        return self.engines + self.policy + self.critic + self.reference + self.reward

    def config(self, folder: Path, steps: int, settings: Sequence[str] = ()) -> PPOConfig:
        """A run's configuration, with `key=value` changes; of the models that it names none is loaded."""
        return load(
            PPOConfig,
            "tiny",
            [
                f"output_dir={folder}",
                f"steps={steps}",
                f"prompts_per_step={PROMPTS_PER_ROLE * self.roles}",
                f"samples_per_prompt={SAMPLES_PER_PROMPT}",
                f"policy.ranks={self.policy}",
                f"critic.ranks={self.critic}",
                f"reference.workers={self.reference}",
                f"rewards=[{{name: short, kind: rule, rule: length_window, workers: {self.reward}}}]",
                f"rollout.engines={self.engines}",
                "sync.bucket_mb=1024",
                "checkpoint.every=1000000",
                "evaluation.samples_per_prompt=1",
                "evaluation.wins=null",
                "logging.loggers=[]",
                "logging.progress=false",
                *settings,
            ],
        )


@dataclass(frozen=True)
class StepCost:
    """What a step cost besides the stated work. All in seconds."""

    wall_s: float
    critical_s: float
    """Stated durations along the critical path."""
    fan_out_s: float
    """What the policy's rank 0 needed in the sync besides the engines' loading."""
    driver_cpu_s: float
    """Processor time of the coordinator's process, all threads."""
    by_phase: dict[str, float]
    """The overhead; "between": outside of all phases, where metrics and logs are made."""

    @property
    def overhead_s(self) -> float:
        """The coordinator's."""
        return self.wall_s - self.critical_s - self.fan_out_s


class Timeline(Progress):
    """Notes when phases and steps were."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps, enabled=False, console=Console(quiet=True))
        self.phases: list[tuple[str, float, float]] = []
        self.ends: list[tuple[float, float]] = []
        """(time, processor time used) after each step."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See Progress."""
        began = time.time()
        with super().phase(name):
            yield
        self.phases.append((name, began, time.time()))

    def finish_step(self, metrics: Mapping[str, float]) -> None:
        """See Progress."""
        super().finish_step(metrics)
        self.ends.append((time.time(), time.process_time()))

    def costs(self, records: Sequence[Record]) -> list[StepCost]:
        """Of every step but the first, whose beginning wasn't noted."""
        costs = []
        for (began, cpu_before), (ended, cpu) in zip(self.ends, self.ends[1:], strict=False):
            critical = fan_out = 0.0
            by_phase = {"between": ended - began}
            for name, start, stop in (p for p in self.phases if began <= p[1] < ended):
                own = [record for record in records if start <= record.began < stop]
                pushed = sum(record.seconds for record in own if record.method == "push")
                stated = _longest(record for record in own if record.method != "push")
                sending = max(0.0, pushed - stated) if pushed else 0.0
                critical, fan_out = critical + stated, fan_out + sending
                by_phase[name] = by_phase.get(name, 0.0) + stop - start - stated - sending
                by_phase["between"] -= stop - start
            costs.append(StepCost(ended - began, critical, fan_out, cpu - cpu_before, by_phase))
        return costs


class SimulatedRun:
    """A run in a folder, whose roles are simulated; Ray must be connected."""

    def __init__(
        self,
        folder: Path,
        fleet: Fleet,
        rates: Rates,
        steps: int,
        ranks_per_host: int = 64,
        settings: Sequence[str] = (),
    ) -> None:
        """Starts the hosts and waits for them. `settings`: changes of the configuration, `key=value`."""
        self.config, self.folder = fleet.config(folder, steps, settings), folder
        self.hosts = Hosts(rates, ranks_per_host)
        folder.mkdir(parents=True, exist_ok=True)
        config, hosts = self.config, self.hosts

        def group(role: str, ranks: int) -> Group:
            return Group(role, [hosts.new(role, rank) for rank in range(ranks)], _maker(hosts, role))

        def setup(part: Group) -> list[ray.ObjectRef]:
            return part.call("setup")

        rewards = [group("reward:short", fleet.reward)]
        engines = Engines(group("rollout", fleet.engines), fleet.engines, setup, start_s=START_S)
        setups: dict[str, Setup] = dict.fromkeys(("policy", "critic", "reference", "reward:short"), setup)
        self.crew = Crew(
            group("policy", fleet.policy),
            group("critic", fleet.critic),
            group("reference", fleet.reference),
            engines,
            rewards,
            setups,
        )
        self.crew.load(self.crew.groups[:-1], START_S, "start")
        engines.up.run(START_S, "start", "setup")
        hosts.started = True
        self.timeline = Timeline(config.steps)

    def run(self) -> dict[str, float]:
        """All steps; the last one's metrics."""
        config, crew = self.config, self.crew
        patience = Patience(config.cluster, config.recovery)
        storage = Storage(config.recovery.storage_wait_s)
        healer = Healer(crew, RecoveryLog(self.folder, storage), config.recovery.max_per_step, START_S)
        healer.learn_processes(crew.groups)
        generation = Generation(crew.engines, config.policy.ranks, patience)
        scoring = Scoring(config.rewards, crew.rewards, Mixture(config.rewards, config.mixture), patience)
        prompts = _prompts(2 * config.prompts_per_step)
        heldout = HeldOut(prompts[:2], config.evaluation, generation, scoring, self.folder, storage, config.seed)
        with RunLog(self.folder, config.logging, console=self.timeline.console, storage=storage) as log:
            return Coordinator(
                config,
                prompts,
                crew,
                Phases(config, crew, generation, scoring, patience),
                generation,
                scoring,
                WeightSync(crew.policy, config.sync, "shared_memory", 1, patience),
                heldout,
                make_controller(config.algorithm.kl),
                log,
                self.timeline,
                CheckpointStore(self.folder, config.checkpoint.keep_last, config.checkpoint.keep_best),
                storage,
                healer,
                patience,
            ).run()

    def costs(self) -> tuple[list[StepCost], int]:
        """Of every step but the first, and how often in all watches asked a rank how far it is."""
        records, checks = self.hosts.report()
        return self.timeline.costs(records), checks

    def close(self) -> None:
        """Ends the hosts."""
        for host in self.hosts.handles:
            ray.kill(host)


def _maker(hosts: Hosts, role: str) -> Callable[[int], object]:
    return lambda rank: hosts.new(role, rank)


def _longest(records: Iterator[Record]) -> float:
    by_rank: defaultdict[str, float] = defaultdict(float)
    for record in records:
        by_rank[record.rank] += record.seconds
    return max(by_rank.values(), default=0.0)


def _prompts(count: int) -> list[Prompt]:
    ids = np.zeros(PROMPT_TOKENS, np.int64)
    return [Prompt(PromptRow(f"p{i}", [{"role": "user", "content": "simulated"}]), ids) for i in range(count)]
