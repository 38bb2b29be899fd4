"""The PPO loop: one process that holds no model, sends references from group to group and keeps the run's small state.

It gets everything through its constructor. A step: generate; score with every source, the reference, the critic and the
policy at one time; update policy and critic at one time; push the new weights; evaluate, log, checkpoint. All that a
later step depends on is in `state_dict` and in the actors' own checkpoints, and every random choice derives from
(seed, step), so a run that was killed ends as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.evaluation import HeldOut
from actors.generation import Batch, Generation
from actors.group import Group
from actors.metrics import batch_metrics, require_finite, training_samples
from actors.scoring import Scoring
from actors.weights import WeightSync
from actors.worker import union_s
from cluster.health import wait_for
from rayrl.algorithms.kl import KLController
from rayrl.config.ppo import PPOConfig
from rayrl.data.order import PromptOrder
from rayrl.placement import shares_trunk
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.progress import Progress
from rayrl.tracking.run_log import RunLog
from rayrl.types import MixedScores, Prompt, Sample

TRAINING_SEED = 0
"""Second integer of a training batch's seed (evaluation.py has its own)."""


@dataclass
class Roles:
    """The groups of actors of a run."""

    policy: Group
    critic: Group | None
    reference: Group | None
    rollout: Group
    rewards: list[Group]

    def all(self) -> dict[str, list[Group]]:
        """By the name under which their busy time is logged."""
        named = {"policy": [self.policy], "rollout": [self.rollout], "reward": self.rewards}
        named |= {"critic": [self.critic]} if self.critic else {}
        return named | ({"reference": [self.reference]} if self.reference else {})


@dataclass(frozen=True)
class Prepared:
    """What a step's update needs: references, and the scores."""

    logprobs: list[ray.ObjectRef]
    ref_logprobs: list[ray.ObjectRef]
    values: list[ray.ObjectRef | None]
    stats: list[Mapping[str, float]]
    scores: MixedScores


class Coordinator:
    """Runs the steps."""

    def __init__(
        self,
        config: PPOConfig,
        prompts: Sequence[Prompt],
        roles: Roles,
        generation: Generation,
        scoring: Scoring,
        sync: WeightSync,
        heldout: HeldOut,
        kl: KLController,
        log: RunLog,
        progress: Progress,
        store: CheckpointStore,
        first_step: int,
    ) -> None:
        self.config, self.roles = config, roles
        self._prompts, self._generation, self._scoring, self._sync = list(prompts), generation, scoring, sync
        self._heldout, self._kl, self._log, self._progress, self._store = heldout, kl, log, progress, store
        self._order = PromptOrder(len(self._prompts), config.prompts_per_step, config.seed, config.data.shuffle)
        self._first_step = first_step
        self._best: tuple[int, float] | None = None
        self._last_metrics: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """All steps that are left; the last step's metrics. The engines have the weights of `first_step` by now."""
        self._heldout.drop_after(self._first_step)
        if self._first_step == 0:
            with self._progress.phase("evaluate"):
                self._heldout.run(0)
        self._take_busy()
        self._progress.clock.take()
        for step in range(self._first_step, self.config.steps):
            batch = self._generate(step)
            prepared = self._score(step, batch)
            metrics = batch_metrics(step, batch, prepared.scores, prepared.stats)
            self._sync.check(step, self._first_step, metrics["engine/logprob_gap"])
            metrics |= self._update(step, batch, prepared)
            with self._progress.phase("sync"):
                metrics["weights/bytes"] = self.push(step + 1, f"step {step}, weight sync")
            rows = [self._prompts[i].row for i in self._order.batch(step)]
            samples = training_samples(step, batch, rows, prepared.scores, self.config.logging.samples_per_step)
            self._evaluate_log_checkpoint(step, metrics, samples)
        return self._last_metrics

    def push(self, version: int, what: str) -> int:
        """Sends the weights after `version` steps; bytes sent.

        Engines wake for it, since they can't load asleep, and stay awake until the next answers are sampled.
        """
        self._colocated("wake", "offload")
        return self._sync.push(version, what)

    def _generate(self, step: int) -> Batch:
        config = self.config
        with self._progress.phase("generate"):
            prompts = [self._prompts[i] for i in self._order.batch(step)]
            seed = (config.seed, TRAINING_SEED, step)
            batch = self._generation.generate(
                prompts, config.samples_per_prompt, seed, f"step {step}, generation", config.logging.samples_per_step
            )
            self._colocated("sleep", "reload")
        batch.check_version(step, f"step {step}")
        return batch

    def _colocated(self, engines: str, trainers: str) -> None:
        """Where roles share devices: engines wake as optimizer state leaves, and the other way round."""
        if not self.config.rollout.sleep_between_phases:
            return
        timeout_s = self.config.cluster.step_timeout_s
        groups = [self.roles.policy, *([self.roles.critic] if self.roles.critic else [])]
        calls = [(group, trainers) for group in groups]
        calls.insert(0 if engines == "sleep" else len(calls), (self.roles.rollout, engines))
        for group, method in calls:
            group.run(timeout_s, method, method)

    def _score(self, step: int, batch: Batch) -> Prepared:
        roles, timeout_s = self.roles, self.config.cluster.step_timeout_s
        shards = [batch.of_rank(rank) for rank in range(len(roles.policy))]
        with self._progress.phase("score"):
            started = self._scoring.start(batch.refs)
            if self.config.cluster.take_turns:
                self._scoring.wait_for_models(started, f"step {step}")
            share = shares_trunk(self.config)
            trunks = roles.policy.each("encode", [(share, *shard) for shard in shards], num_returns=2)
            views = roles.policy.each("prepare", [()] * len(shards), num_returns=3)
            # Big answers stay where they are; small ones beside them say when, and whose error it was.
            names = roles.policy.names
            awaited = [(name, done) for name, (_, done) in zip(names, trunks, strict=True)]
            awaited += [(name, stats) for name, (_, _, stats) in zip(names, views, strict=True)]
            self._turn(awaited, f"step {step}, log-probabilities of the policy")
            values: list[Any] = [None] * len(shards)
            if roles.critic:
                given = [trunk for trunk, _ in trunks] if share else values
                answers = roles.critic.each(
                    "prepare", [(given[i], *shard) for i, shard in enumerate(shards)], num_returns=2
                )
                values = [value for value, _ in answers]
                awaited += [(name, done) for name, (_, done) in zip(roles.critic.names, answers, strict=True)]
                self._turn(awaited, f"step {step}, values")
            reference = [view[1] for view in views]
            if roles.reference:
                answers = roles.reference.in_turn("logprobs", shards, num_returns=2)
                reference = [logprobs for logprobs, _ in answers]
                names = roles.reference.names
                awaited += [(names[i % len(names)], done) for i, (_, done) in enumerate(answers)]
            scores = self._scoring.finish(started, f"step {step}")
            what = f"step {step}, log-probabilities"
            small = wait_for([ref for _, ref in awaited], timeout_s, what, [name for name, _ in awaited])
            stats = small[len(shards) : 2 * len(shards)]
        return Prepared([view[0] for view in views], reference, values, stats, scores)

    def _turn(self, started: Sequence[tuple[str, ray.ObjectRef]], what: str) -> None:
        """Where roles share cores, the next one waits until these are done."""
        if self.config.cluster.take_turns:
            wait_for(
                [ref for _, ref in started], self.config.cluster.step_timeout_s, what, [name for name, _ in started]
            )

    def _update(self, step: int, batch: Batch, prepared: Prepared) -> dict[str, float]:
        roles, coef = self.roles, self._kl.value
        ranks = len(roles.policy)
        final = self._final_scores(batch, prepared.scores)
        per_rank = len(final) // ranks
        scores = [final[i * per_rank : (i + 1) * per_rank] for i in range(ranks)]
        with self._progress.phase("update"):
            timeout_s, what = self.config.cluster.step_timeout_s, f"step {step}, update"
            refs: list[ray.ObjectRef] = []
            names: list[str] = []
            if roles.critic:
                refs = roles.critic.each(
                    "update",
                    [(step, scores[i], coef, prepared.logprobs[i], prepared.ref_logprobs[i]) for i in range(ranks)],
                )
                names = roles.critic.names
                self._turn(list(zip(names, refs, strict=True)), what)
            refs = refs + roles.policy.each(
                "update",
                [(step, scores[i], coef, prepared.ref_logprobs[i], prepared.values[i]) for i in range(ranks)],
            )
            answers = wait_for(refs, timeout_s, what, [*names, *roles.policy.names])
        metrics = {"kl/coef": coef, **answers[0], **answers[-1]}
        require_finite(step, metrics)
        self._kl.update(metrics["kl/mean_per_sequence"], len(final))
        return metrics

    def _final_scores(self, batch: Batch, scores: MixedScores) -> list[float]:
        penalty = self.config.algorithm.missing_eos_penalty
        return [s - (0.0 if info.ended else penalty) for s, info in zip(scores.mixed_B, batch.infos, strict=True)]

    def _evaluate_log_checkpoint(self, step: int, metrics: dict[str, float], samples: list[Sample]) -> None:
        config, done = self.config, step + 1
        last, best = done == config.steps, False
        if last or (config.evaluation.every and done % config.evaluation.every == 0):
            with self._progress.phase("evaluate"):
                metrics |= self._heldout.metrics(self._heldout.run(done))
            best = self._best is None or metrics["eval/mixed"] > self._best[1]
            if best:
                self._best = (done, metrics["eval/mixed"])
        metrics |= self._times(metrics["tokens/response"])
        self._log.samples(samples)
        self._log.metrics(step, metrics)
        self._progress.finish_step(metrics)
        self._last_metrics = metrics
        if last or done % config.checkpoint.every == 0 or (best and config.checkpoint.keep_best):
            with self._progress.phase("checkpoint"):
                self.save(done)

    def _times(self, tokens: float) -> dict[str, float]:
        by_role = self._take_busy()
        times = self._progress.clock.take()
        step_s = times["time/step"]
        everything = union_s([interval for intervals in by_role.values() for interval in intervals])
        busy = {f"busy/{role}": union_s(intervals) / step_s for role, intervals in by_role.items()}
        idle = max(0.0, step_s - everything)
        return {**times, **busy, "time/nothing_running": idle, "time/tokens_per_second": tokens / step_s}

    def _take_busy(self) -> dict[str, list[tuple[float, float]]]:
        """Intervals of work by role since the last call."""
        timeout_s = self.config.cluster.step_timeout_s
        return {
            role: [
                interval
                for group in groups
                for intervals in group.run(timeout_s, "busy times", "take_intervals")
                for interval in intervals
            ]
            for role, groups in self.roles.all().items()
        }

    def save(self, done: int) -> None:
        """Checkpoint after `done` steps: beside the old ones, published by rename."""
        folder = self._store.begin(done)
        timeout_s, what = self.config.cluster.step_timeout_s, f"checkpoint after step {done}"
        refs = self.roles.policy.call("save", folder)
        names = list(self.roles.policy.names)
        if self.roles.critic:
            refs += self.roles.critic.call("save", folder)
            names += self.roles.critic.names
        wait_for(refs, timeout_s, what, names)
        self._store.publish(done, self.state_dict(done))
        self._store.link("policy", done)
        if self._best and self.config.checkpoint.keep_best:
            self._store.link("best", self._best[0])

    def state_dict(self, done: int) -> dict[str, Any]:
        """What the next step depends on, apart from models: JSON."""
        return {
            "step": done,
            "kl": self._kl.state_dict(),
            "mixture": self._scoring.mixture.state_dict(),
            "best_step": self._best[0] if self._best else None,
            "best_score": self._best[1] if self._best else None,
        }

    def load(self, folder: Path) -> None:
        """Restores a checkpoint into the actors and this process."""
        state = self._store.read_state(folder)
        timeout_s = self.config.cluster.start_timeout_s
        for group in [self.roles.policy, *([self.roles.critic] if self.roles.critic else [])]:
            group.run(timeout_s, f"loading {folder.name}", "load", folder)
        self._kl.load_state_dict(state["kl"])
        self._scoring.mixture.load_state_dict(state["mixture"])
        if state["best_step"] is not None:
            self._best = (state["best_step"], state["best_score"])
