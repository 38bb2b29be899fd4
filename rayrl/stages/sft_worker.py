"""What every rank of `rayrl sft` runs: the loop over optimizer steps, evaluations, checkpoints, the final model.

Rank 0 writes; all ranks take the same decisions from the same all-reduced numbers. A run that was killed goes on from
its newest checkpoint: the plan is a function of the seed, every step's random numbers of seed, step and rank, and the
rest is in the checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from rayrl.algorithms.priority_sampling import priority_order
from rayrl.config.ppo import LoggingConfig
from rayrl.config.sft import SFTConfig
from rayrl.data.chat import checkpoint_end_token_ids
from rayrl.data.examples import Examples
from rayrl.data.packing import Plan, make_plan, pack, plan_in_order
from rayrl.errors import RunError
from rayrl.learners.sft import SFTLearner
from rayrl.stages.sft_answers import LightEvaluation, light_prompts
from rayrl.stages.sft_data import DATA, sft_tokenizer
from rayrl.stages.sft_probe import Probe
from rayrl.stages.train_workers import join
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.run_log import RunLog

logger = logging.getLogger(__name__)

MODEL = "model"
OUTCOME = "outcome.json"


@dataclass
class RunState:
    """What the next step depends on, beside model and optimizer; state.json of a checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    best_step: int | None = None
    best_loss: float | None = None
    worse: int = 0
    """Validations in a row without a better loss."""
    start: dict[str, float] = field(default_factory=dict)
    """Validation loss and probe before the first step."""
    stopped: str | None = None
    """Why the run ended early."""
    guard: dict[str, Any] = field(default_factory=dict)


def loop(settings: dict[str, Any]) -> None:
    """One rank. `settings`: the configuration's values, the run's folder and the model's path."""
    config = SFTConfig.model_validate(settings["config"])
    rank, world = join(config.model, config.collective_timeout_s)
    Trainer(config, Path(settings["folder"]), settings["model_path"], rank, world).run()


def plan_of(config: SFTConfig, data: Examples) -> Plan:
    """The run's rows in order."""
    sizes = data.sizes(len(config.data.sources))
    weights = [source.weight for source in config.data.sources]
    row_tokens = config.data.max_tokens if config.data.packing else None
    batch_size, max_steps = config.batch_size, config.max_steps
    if config.mode == "one_stage":
        order = priority_order(sizes, weights, [source.epochs or 1.0 for source in config.data.sources], config.seed)
        return plan_in_order(order, data.lengths, batch_size=batch_size, row_tokens=row_tokens, max_steps=max_steps)
    return make_plan(
        data.lengths,
        sizes,
        weights,
        epochs=config.epochs,
        batch_size=batch_size,
        row_tokens=row_tokens,
        seed=config.seed,
        max_steps=max_steps,
    )


class Trainer:
    """One rank's run."""

    def __init__(self, config: SFTConfig, folder: Path, model_path: str, rank: int, world: int) -> None:
        self._config, self._folder, self._rank = config, folder, rank
        self._data = Examples.load(folder / DATA / "train")
        self._lengths, self._counted = self._data.lengths, self._data.counted
        self._plan = plan_of(config, self._data)
        self._every = config.validation.every or self._plan.steps_per_epoch
        self._tokenizer = sft_tokenizer(config, model_path)
        self._probe = Probe.load(config.probe, self._tokenizer, config.objective == "chat")
        self._held = Examples.load(folder / DATA / "validation")
        self._held_names = [source.name for source in config.data.validation or config.data.sources]
        self._names = [source.name for source in config.data.sources]
        self._learner = SFTLearner(
            config.model,
            config.guard,
            model_path,
            packed=config.data.packing,
            pad_id=int(self._tokenizer.pad_token_id),
            batch_size=config.batch_size,
            total_steps=self._plan.steps,
            num_sources=len(self._names),
            seed=config.seed,
            rank=rank,
            world=world,
        )
        if config.objective == "chat":  # so that engines stop where the template ends a turn
            ends = checkpoint_end_token_ids(self._tokenizer, model_path)
            self._learner.parts.model.generation_config.eos_token_id = list(ends)
        self._light = self._light_evaluation(model_path)
        self._store = CheckpointStore(folder, config.checkpoint.keep_last, keep_best=True)
        self._state = RunState()

    def run(self) -> None:
        """Trains to the end, or to where the run must stop; leaves `model/` and outcome.json."""
        latest = self._store.latest()
        if latest is not None:
            self._restore(latest[1])
        else:
            if self._light is not None:
                self._light.run(self._learner, 0)
            dist.barrier()
            self._state.start = self._evaluate()
            bad = [key for key, value in self._state.start.items() if not np.isfinite(value)]
            if bad:
                raise RunError(f"before training, {', '.join(bad)} isn't finite: check model.model, or use dtype fp32")
        log = self._open_log()
        try:
            while self._state.step < self._plan.steps and self._state.stopped is None:
                self._one_step(log)
        finally:
            if log is not None:
                log.close()
        self._export()

    def _light_evaluation(self, model_path: str) -> LightEvaluation | None:
        """On rank 0, where it is configured."""
        config = self._config.validation.answers
        if config is None or self._rank != 0:
            return None
        data = self._config.data
        prompts = light_prompts(config, self._tokenizer, data.system_prompt, data.max_tokens)
        ends = checkpoint_end_token_ids(self._tokenizer, model_path)
        return LightEvaluation(config, prompts, self._tokenizer, ends, self._folder)

    def _one_step(self, log: RunLog | None) -> None:
        state, began = self._state, time.monotonic()
        rows = self._plan.step(state.step)
        examples = np.array([i for row in rows for i in row])
        metrics = self._learner.step(state.step, rows, self._data, int(self._counted[examples].sum()))
        tokens = int(self._lengths[examples].sum())
        seconds = time.monotonic() - began
        metrics |= {"tokens": tokens, "time/step": seconds, "time/tokens_per_second": tokens / seconds}
        for source, name in enumerate(self._names):
            metrics[f"share/{name}"] = metrics.pop(f"share/{source}")
        number, state.step = state.step, state.step + 1
        last = state.step == self._plan.steps
        evaluated = state.step % self._every == 0 or last
        if evaluated:
            if self._light is not None:
                metrics |= self._light.run(self._learner, state.step)
            dist.barrier()  # the others wait for rank 0's answers
            values = self._evaluate()
            self._judge(values)
            metrics |= {key: value for key, value in values.items() if np.isfinite(value)}
        if log is not None:
            log.metrics(number, metrics)
        every = self._config.checkpoint.every
        if evaluated or (every is not None and state.step % every == 0):
            self._save()

    def _evaluate(self) -> dict[str, float]:
        """Validation loss (over all and by source) and the probe's share of right answers; {} without either."""
        values: dict[str, float] = {}
        if len(self._held):
            lengths = self._held.lengths.tolist()
            packing = self._config.data.packing
            rows = pack(lengths, self._config.data.max_tokens) if packing else [[i] for i in range(len(lengths))]
            sequences = [[self._held.example(i) for i in row] for row in rows]
            sources = [[int(self._held.sources[i]) for i in row] for row in rows]
            logprobs, tokens = self._learner.sums(sequences, sources, len(self._held_names))
            values["validation/loss"] = float(-logprobs.sum() / tokens.sum())
            if len(self._held_names) > 1:
                values |= {
                    f"validation/loss/{name}": float(-logprobs[i] / tokens[i])
                    for i, name in enumerate(self._held_names)
                    if tokens[i]
                }
        if self._probe is not None:
            values["probe/accuracy"] = self._probe.accuracy(self._learner)
        return values

    def _judge(self, values: dict[str, float]) -> None:
        """Whether this is the best so far, and whether the run goes on."""
        config, state = self._config, self._state
        if self._probe is not None:
            fallen = state.start["probe/accuracy"] - values["probe/accuracy"]
            if fallen > config.probe.max_fall:
                text = (
                    f"general ability fell from {state.start['probe/accuracy']:.0%} to {values['probe/accuracy']:.0%} "
                    f"by step {state.step}"
                )
                if config.probe.action == "stop":
                    state.stopped = text
                    return
                if self._rank == 0:
                    logger.warning("%s", text)
        loss = values.get("validation/loss")
        if loss is None:
            state.best_step = state.step
            return
        if not np.isfinite(loss):
            state.stopped = f"the validation loss isn't finite after step {state.step}"
            return
        if state.best_loss is None or loss < state.best_loss - config.validation.min_improvement:
            state.best_loss, state.best_step, state.worse = loss, state.step, 0
            return
        state.worse += 1
        if config.validation.patience is not None and state.worse >= config.validation.patience:
            state.stopped = f"no better validation loss in {state.worse} validations"

    def _save(self) -> None:
        step = self._state.step
        if self._rank == 0:
            self._store.begin(step)
        dist.barrier()
        self._learner.save(self._folder / "checkpoints" / f"step-{step:06d}.partial" / "trainer")
        dist.barrier()
        if self._rank == 0:
            self._state.guard = self._learner.guard.state()
            self._store.publish(step, asdict(self._state))
        dist.barrier()

    def _restore(self, checkpoint: Path) -> None:
        self._state = RunState(**self._store.read_state(checkpoint))
        self._learner.load(checkpoint / "trainer", self._state.guard)

    def _open_log(self) -> RunLog | None:
        if self._rank != 0:
            return None
        settings = self._config.model_dump(mode="json")
        loggers = LoggingConfig(loggers=self._config.loggers)
        return RunLog(self._folder, loggers, resume_step=self._state.step, settings=settings)

    def _export(self) -> None:
        """The best checkpoint's model, in the format that everything reads."""
        state = self._state
        if state.best_step is None:
            raise RunError(
                f"no checkpoint is worth keeping: {state.stopped or 'no validation loss was finite'}; lower "
                "model.optimizer.lr"
            )
        if state.best_step != state.step:
            best = self._folder / "checkpoints" / f"step-{state.best_step:06d}"
            self._learner.load(best / "trainer", self._store.read_state(best)["guard"])
        partial = self._folder / f"{MODEL}.partial"
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        dist.barrier()
        self._learner.save_model(partial)
        if self._rank == 0:
            self._tokenizer.save_pretrained(partial)
            shutil.rmtree(self._folder / MODEL, ignore_errors=True)
            os.replace(partial, self._folder / MODEL)
            (self._folder / OUTCOME).write_text(json.dumps(asdict(state)), encoding="utf-8")
        dist.barrier()
