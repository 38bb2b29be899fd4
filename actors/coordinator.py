"""The PPO loop: one process that holds no model, sends references from group to group and keeps the run's small state.

It gets everything through its constructor. A step: generate; score with every source, the reference, the critic and the
policy at one time; update policy and critic at one time; push the new weights; evaluate, log, checkpoint. All that a
later step depends on is in `state_dict` and in the actors' own checkpoints, and every random choice derives from
(seed, step). So a run that was killed, and one that lost actors on its way, end as one that did not.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from actors.crew import Crew
from actors.evaluation import HeldOut
from actors.generation import Batch, Generation
from actors.metrics import batch_metrics, sample_ids, training_samples
from actors.patience import Patience
from actors.phases import Phases, Prepared
from actors.recovery import Healed, Healer
from actors.scoring import Scoring
from actors.weights import WeightSync
from actors.worker import union_s
from rayrl.algorithms.kl import KLController
from rayrl.config.ppo import PPOConfig
from rayrl.data.order import PromptOrder
from rayrl.errors import RunError
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.progress import Progress
from rayrl.tracking.recoveries import Recovery, RecoveryLog
from rayrl.tracking.run_log import RunLog
from rayrl.tracking.storage_wait import Storage
from rayrl.types import Prompt, Sample

logger = logging.getLogger(__name__)

T = TypeVar("T")


def note_damaged(store: CheckpointStore, log: RecoveryLog, step: int) -> None:
    """Damaged checkpoints that were set aside go into the log of recoveries."""
    while store.set_aside:
        log.add(Recovery("damaged", step, "loading", [store.set_aside.pop(0)], "took the one before", 0.0))


class WentBack(Exception):
    """The trainers hold an earlier step's weights: steps from there on are done again."""


class Coordinator:
    """Runs the steps."""

    def __init__(
        self,
        config: PPOConfig,
        prompts: Sequence[Prompt],
        crew: Crew,
        phases: Phases,
        generation: Generation,
        scoring: Scoring,
        sync: WeightSync,
        heldout: HeldOut,
        kl: KLController,
        log: RunLog,
        progress: Progress,
        store: CheckpointStore,
        storage: Storage,
        healer: Healer,
        patience: Patience,
    ) -> None:
        self.config, self.crew = config, crew
        self._prompts, self._phases, self._scoring, self._sync = list(prompts), phases, scoring, sync
        self._heldout, self._kl, self._log, self._progress, self._store = heldout, kl, log, progress, store
        self._storage, self._healer, self._patience = storage, healer, patience
        self._order = PromptOrder(len(self._prompts), config.prompts_per_step, config.seed, config.data.shuffle)
        self._step = 0
        """Steps that are applied; also the version of the weights."""
        self._check_from = 0
        self._began = self._saved = False
        self._best: tuple[int, float] | None = None
        self._start = self.state_dict(0)
        self._last_metrics: dict[str, float] = {}
        generation.on_loss = lambda error, what: healer.lose_engines(error, self._step)
        generation.on_none = self._bring_engine
        generation.on_queue = lambda waiting, running: log.now({"queue/waiting": waiting, "queue/running": running})

    def run(self, checkpoint: tuple[int, Path] | None = None) -> dict[str, float]:
        """All steps after `checkpoint` (step, folder), or all; the last step's metrics."""
        self._saved = checkpoint is not None
        while True:
            try:
                if not self._began:
                    with self._progress.phase("sync"):
                        self._attempt("sync", lambda: self._begin(checkpoint))
                self._patiently(lambda: self._heldout.drop_after(self._step), "evaluations of later steps")
                if self._step == 0:
                    with self._progress.phase("evaluate"):
                        self._evaluate(0)
                self._attempt("busy times", self._take_busy)
                self._progress.clock.take()
                while self._step < self.config.steps:
                    self._do_step(self._step)
                return self._last_metrics
            except WentBack:
                self._began = True  # with the weights of the step to which it went back

    def _begin(self, checkpoint: tuple[int, Path] | None) -> None:
        if checkpoint is not None:
            logger.info("resuming after step %d from %s", *checkpoint)
            self._load(*checkpoint)
        self.push("first weight sync")
        self._began = True

    def _do_step(self, step: int) -> None:
        batch, prepared = self._experience(step)
        metrics = batch_metrics(step, batch, prepared.scores, prepared.stats)
        self._sync.check(step, self._check_from, metrics["engine/logprob_gap"])
        with self._progress.phase("update"):
            coef = self._kl.value
            metrics |= self._attempt("update", lambda: self._phases.update(step, batch, prepared, coef), undo=True)
            self._kl.update(metrics["kl/mean_per_sequence"], len(batch.infos))
        self._step = step + 1
        with self._progress.phase("sync"):
            metrics["weights/bytes"] = self._attempt("sync", lambda: self.push(f"step {step}, weight sync"))
        rows = [self._prompts[i].row for i in self._order.batch(step)]
        samples = training_samples(step, batch, rows, prepared.scores, self.config.logging.samples_per_step)
        trained_on = sample_ids(batch, self._order.passes(step), self.config.samples_per_prompt)
        self._evaluate_log_checkpoint(step, metrics, samples, trained_on)

    def _experience(self, step: int) -> tuple[Batch, Prepared]:
        """Sampled and scored. Answers that went with their node are sampled again, by the same weights and seeds."""
        prompts = [self._prompts[i] for i in self._order.batch(step)]
        while True:
            with self._progress.phase("generate"):
                batch = self._attempt("generate", lambda: self._phases.generate(step, prompts))
            with self._progress.phase("score"):
                while True:
                    try:
                        return batch, self._phases.score(step, batch)
                    except Exception as error:  # whatever a lost actor may have caused
                        healed = self._heal(error, "score")
                        if healed.answers_lost:
                            break

    def push(self, what: str) -> int:
        """Sends the weights to all engines that are there, new ones too; bytes sent to each.

        Engines wake for it, since they can't load asleep, and stay awake until the next answers are sampled.
        """
        engines = self.crew.engines
        self._phases.colocated("wake", "offload")
        engines.start_missing()
        began = time.monotonic()
        new = engines.loaded() if len(engines.up) else engines.wait_for_one(what)
        waited_s = time.monotonic() - began
        targets = engines.up.part(engines.up.ranks)
        targets.add(new)
        sent, dead = self._sync.push(targets, self._step, what)
        alive = new.part([rank for rank, name in zip(new.ranks, new.names, strict=True) if name not in dead])
        engines.join(alive)
        if dead:
            self._healer.note_lost_in_sync(dead, self._step)
        if len(alive):
            self._healer.learn_processes([alive])
            self._check_from = self._step
            joined = f"{', '.join(alive.names)} joined"
            self._healer.log.add(Recovery("joined", self._step, "sync", [], joined, waited_s))
        return sent if len(engines.up) else self.push(what)

    def _bring_engine(self, what: str) -> None:
        self.push(f"{what}, weights for a new engine")

    def _attempt(self, phase: str, action: Callable[[], T], undo: bool = False) -> T:
        """`action`'s value, after recoveries where an actor was lost. Raises WentBack where steps are done again."""
        while True:
            try:
                return action()
            except WentBack:
                raise
            except Exception as error:  # whatever a lost actor may have caused
                self._heal(error, phase, undo)

    def _heal(self, error: Exception, phase: str, undo: bool = False) -> Healed:
        """Raises the error where no loss explains it, and WentBack where trainers were set back."""
        began, step, others_s = time.monotonic(), self._step, self._healer.log.seconds
        while True:
            try:
                healed = self._healer.heal(error, step, phase, undo, may_load=self._saved)
                if healed is None:
                    raise error
                if healed.trainers:
                    undo = True  # also where going back is interrupted
                    self._go_back()
                break
            except RunError:  # nothing is left to try; asking again would go on for ever
                raise
            except Exception as again:
                if again is error:
                    raise
                error = again
                undo = True  # trainers may be new by now, without their weights
        seconds = time.monotonic() - began
        back_to = self._step if healed.trainers else None
        others_s = self._healer.log.seconds - others_s  # waits for storage or an engine, which have their own lines
        self._healer.log.add(replace(healed.event, seconds=max(0.0, seconds - others_s), back_to=back_to))
        back = "" if back_to is None else f", back to the weights after {back_to} steps"
        logger.warning("step %d, %s: goes on after %.0f s: %s%s", step, phase, seconds, healed.event.action, back)
        if healed.trainers:
            raise WentBack
        return healed

    def _newest(self) -> tuple[int, Path] | None:
        with self._storage.answering("going back"):
            found = self._store.newest_whole()
        if found is None and self._saved:
            raise FileNotFoundError(errno.ENOENT, "the run's checkpoints aren't there")
        return found

    def _go_back(self) -> None:
        checkpoint = self._patiently(self._newest, "going back")
        note_damaged(self._store, self._healer.log, self._step)
        if checkpoint is None:
            self._step = self._check_from = 0
            self._set_state(self._start)
        else:
            self._load(*checkpoint)
        self._patiently(lambda: self._heldout.drop_after(self._step), "going back")
        self._patiently(lambda: self._log.rewind(self._step), "going back")
        self._progress.rewind(self._step)
        self.push(f"weights after step {self._step}")

    def _evaluate_log_checkpoint(
        self, step: int, metrics: dict[str, float], samples: list[Sample], trained_on: list[str]
    ) -> None:
        config, done = self.config, step + 1
        last, best = done == config.steps, False
        if last or (config.evaluation.every and done % config.evaluation.every == 0):
            with self._progress.phase("evaluate"):
                metrics |= self._heldout.metrics(self._evaluate(done))
            best = self._best is None or metrics["eval/mixed"] > self._best[1]
            if best:
                self._best = (done, metrics["eval/mixed"])
        metrics |= self._times(metrics["tokens/response"])
        engines = self.crew.engines
        metrics |= {"cluster/engines": float(len(engines.up)), "cluster/engines_wanted": float(engines.wanted)}
        metrics |= self._healer.log.take_metrics()
        self._patiently(lambda: self._log.step(step, metrics, samples, trained_on), f"log of step {step}")
        self._progress.finish_step(metrics)
        self._last_metrics = metrics
        if last or done % config.checkpoint.every == 0 or (best and config.checkpoint.keep_best):
            with self._progress.phase("checkpoint"):
                what = f"checkpoint after step {done}"
                self._attempt("checkpoint", lambda: self._patiently(lambda: self._save(done, what), what))

    def _evaluate(self, done: int) -> list[Sample]:
        what = f"evaluation after step {done}"
        return self._attempt("evaluate", lambda: self._patiently(lambda: self._heldout.run(done), what))

    def _patiently(self, action: Callable[[], T], what: str) -> T:
        def waited(seconds: float) -> None:
            self._healer.log.add(Recovery("storage", self._step, what, [], "waited for the storage", seconds))

        return self._storage.patiently(action, what, waited)

    def _times(self, tokens: float) -> dict[str, float]:
        by_role = self._attempt("busy times", self._take_busy)
        times = self._progress.clock.take()
        step_s = times["time/step"]
        everything = union_s([interval for intervals in by_role.values() for interval in intervals])
        busy = {f"busy/{role}": union_s(intervals) / step_s for role, intervals in by_role.items()}
        idle = max(0.0, step_s - everything)
        return {**times, **busy, "time/nothing_running": idle, "time/tokens_per_second": tokens / step_s}

    def _take_busy(self) -> dict[str, list[tuple[float, float]]]:
        """Intervals of work by role since the last call."""
        timeout_s = self.config.cluster.step_timeout_s
        kinds = [(kind, group) for kind, groups in self.crew.by_kind().items() for group in groups]
        started = [group.call("take_intervals") for _, group in kinds]  # all at one time
        taken: dict[str, list[tuple[float, float]]] = {}
        for (kind, group), refs in zip(kinds, started, strict=True):
            answers = group.wait(refs, timeout_s, "busy times", self._patience.watch("sync", group))
            taken.setdefault(kind, []).extend(interval for intervals in answers for interval in intervals)
        return taken

    def _save(self, done: int, what: str) -> None:
        """Checkpoint after `done` steps: beside the old ones, published by rename."""
        with self._storage.answering(what):
            folder = self._store.begin(done)
        sums = self._phases.save(folder, done, what)
        with self._storage.answering(what):
            self._store.publish(done, self.state_dict(done), sums)
            self._saved = True
            self._store.link("policy", done)
            if self._best and self.config.checkpoint.keep_best:
                self._store.link("best", self._best[0])
        self._log.now({"checkpoint/age_s": 0.0})

    def state_dict(self, done: int) -> dict[str, Any]:
        """What the next step depends on, apart from models: JSON."""
        return {
            "step": done,
            "kl": self._kl.state_dict(),
            "mixture": self._scoring.mixture.state_dict(),
            "best_step": self._best[0] if self._best else None,
            "best_score": self._best[1] if self._best else None,
        }

    def _load(self, step: int, folder: Path) -> None:
        """Restores a checkpoint into the actors and this process."""
        with self._storage.answering(f"loading {folder.name}"):
            state = self._store.read_state(folder)
        self._phases.load(folder)
        self._set_state(state)
        self._step = self._check_from = step

    def _set_state(self, state: dict[str, Any]) -> None:
        self._kl.load_state_dict(state["kl"])
        self._scoring.mixture.load_state_dict(state["mixture"])
        self._best = None if state["best_step"] is None else (state["best_step"], state["best_score"])
