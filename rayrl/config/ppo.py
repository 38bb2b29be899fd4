"""Typed configuration of a PPO run (`rayrl ppo run.yaml`).

Every section below is what one component takes; nothing takes the whole. Descriptions are the source of
docs/configuration.md. Reading YAML and command-line overrides is in load.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rayrl.config.feedback import RubricConfig
from rayrl.config.judge import JudgeConfig
from rayrl.config.kubernetes import KubernetesConfig
from rayrl.config.parts import RolloutConfig, TrainerConfig
from rayrl.config.strict import CommandConfig, Strict
from rayrl.config.versus import VersusConfig

Role = Literal["policy", "critic", "reference", "rollout", "reward"]
Phase = Literal["generate", "score", "update", "sync", "checkpoint"]


class PolicyConfig(TrainerConfig):
    """The policy: the model that PPO improves."""

    model: str = Field(
        description="Checkpoint folder, hub name, or a built-in: `smollm2-135m-instruct`, `tiny-random`."
    )
    chat_template: str | None = Field(None, description="Jinja chat template, for tokenizers without one of their own.")


class CriticConfig(TrainerConfig):
    """The value model (only with the `gae` estimator)."""

    model: str = Field(
        "policy", description="Start from `policy`, from `reward:NAME` (a model reward of this run), or a checkpoint."
    )


class ReferenceConfig(Strict):
    """The frozen start of the policy. With LoRA and last_n it lives inside the policy's ranks and needs no actor."""

    model: str | None = Field(
        None,
        description="Only to say where the policy's start lies besides policy.model; it must hold the same weights.",
    )
    workers: PositiveInt = Field(1, description="Scorer actors, where the reference is a model of its own.")
    cpus_per_worker: float = Field(0.25, ge=0, description="CPUs that Ray reserves for each.")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each.")
    threads: PositiveInt | None = Field(None, description="Torch threads a worker.")


class PromptsConfig(Strict):
    """Prompts: JSONL or Parquet rows `id, messages, reference, fields`."""

    prompts: str = Field(description="File or folder of training prompts, or a built-in: `consultations-en`, `-zh`.")
    heldout: str | None = Field(None, description="Held-out prompts for evaluation; by default split off by `id` hash.")
    heldout_fraction: float = Field(0.25, gt=0, lt=1, description="Share split off where `heldout` isn't given.")
    system_prompt: str | None = Field(None, description="Put before conversations that start without one.")
    shuffle: bool = Field(True, description="New order each pass over the data, by seed.")
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="More bad rows than this stop the run.")


class RewardEntry(Strict):
    """One source of the reward mixture."""

    name: str = Field(description="Name in metrics and reports.")
    kind: Literal["model", "function", "rule", "judge"] = Field(
        description="Reward model, dotted Python path, shipped rule, or LLM judge."
    )
    weight: float = Field(1.0, description="Weight in the mixture; negative weights punish.")
    model: str | None = Field(None, description="`model`: sequence-classification checkpoint.")
    path: str | None = Field(None, description="`function`: `package.module.function`.")
    rule: str | None = Field(
        None,
        description="`rule`: clarifying_question, reference_overlap, presentation, length_window, repetition or "
        "language_match.",
    )
    judge: JudgeConfig | None = Field(None, description="`judge`: endpoint, criteria, cache and budget; 0 to 10.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword options of the rule or function.")
    normalise: Literal["none", "running_std", "batch_whiten"] = Field(
        "none", description="Of this source, before mixing."
    )
    clip: PositiveFloat | None = Field(None, description="Bound of the normalised score's magnitude.")
    on_failure: Literal["stop", "omit"] = Field(
        "stop", description="`omit` leaves the term out for that sample and renormalises the other weights."
    )
    timeout_s: PositiveFloat = Field(300.0, description="Limit for scoring one batch.")
    workers: PositiveInt = Field(1, description="Scorer actors.")
    cpus_per_worker: float = Field(0.05, ge=0, description="CPUs that Ray reserves for each.")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each.")
    threads: PositiveInt | None = Field(None, description="Torch threads a worker.")
    batch_size: PositiveInt = Field(8, description="`model`: sequences a forward pass.")

    @model_validator(mode="after")
    def _what_it_scores_with(self) -> RewardEntry:
        needed = {"model": "model", "function": "path", "rule": "rule", "judge": "judge"}[self.kind]
        values = {"model": self.model, "path": self.path, "rule": self.rule, "judge": self.judge}
        for field, given in values.items():
            if (field == needed) != (given is not None):
                verb = "needs" if field == needed else "doesn't take"
                raise ValueError(f"reward {self.name!r} of kind {self.kind!r} {verb} {field!r}")
        return self

    @property
    def scores_with(self) -> str:
        """The model, function, rule or judge by its name."""
        judge = f"{self.judge.model} at {self.judge.endpoint}" if self.judge else ""
        return self.model or self.path or self.rule or judge


class MixtureConfig(Strict):
    """What happens to the weighted sum of the sources."""

    normalise: Literal["none", "running_std", "batch_whiten"] = Field("none", description="Of the mixed score.")
    clip: PositiveFloat | None = Field(None, description="Bound of the mixed score's magnitude.")


class KLConfig(Strict):
    """KL(policy || reference)."""

    place: Literal["reward", "loss"] = Field("reward", description="Penalty in the reward (default) or in the loss.")
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator.")
    controller: Literal["fixed", "adaptive"] = Field("fixed", description="Fixed coefficient, or steered to `target`.")
    coef: float = Field(0.05, ge=0, description="Coefficient (start value with `adaptive`).")
    target: PositiveFloat = Field(6.0, description="`adaptive`: KL of a sequence, in nats.")
    horizon: PositiveFloat = Field(10000, description="`adaptive`: sequences over which the coefficient adapts.")

    @model_validator(mode="after")
    def _does_something(self) -> KLConfig:
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError("estimator: k1 in the loss has expected gradient 0 (arXiv 2506.09477); use k2, or k3")
        if self.controller == "adaptive" and self.coef == 0:
            raise ValueError("coef: the adaptive controller multiplies it, so it must start above 0")
        return self


class PTXConfig(Strict):
    """Optional supervised term on conversations (prompt rows with a `reference` answer)."""

    data: str = Field(description="Prompt rows whose `reference` is the answer to learn.")
    coef: PositiveFloat = Field(0.1, description="Weight of the supervised loss.")
    batch_size: PositiveInt = Field(8, description="Conversations a minibatch, over all ranks.")


class AlgorithmConfig(Strict):
    """PPO and its relatives."""

    estimator: Literal["gae", "grpo", "rloo", "reinforce_pp"] = Field("gae", description="Advantage estimator.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda.")
    whiten_advantages: bool = Field(True, description="Zero mean and unit variance over all ranks' valid tokens.")
    kl: KLConfig = Field(default_factory=KLConfig, description="KL penalty.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="Ratio is clipped below 1 - clip_low.")
    clip_high: float = Field(0.2, gt=0, description="Ratio is clipped above 1 + clip_high.")
    dual_clip: float | None = Field(None, gt=1, description="Bound of the loss where the advantage is negative.")
    value_clip: PositiveFloat | None = Field(0.2, description="Clip of the value's move away from the rollout's.")
    entropy_coef: float = Field(0.0, ge=0, description="Entropy bonus.")
    loss_aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = Field(
        "token_mean", description="How token losses become one number."
    )
    epochs: PositiveInt = Field(4, description="Passes over each rollout batch.")
    minibatches: PositiveInt = Field(1, description="Optimizer steps a pass.")
    stop_kl: PositiveFloat | None = Field(
        None, description="End the epochs when the mean KL to the old policy passes this."
    )
    importance_cap: PositiveFloat | None = Field(
        None, description="Truncated importance weight trainer / engine, at most this; none: no correction."
    )
    missing_eos_penalty: float = Field(0.0, ge=0, description="Taken off the score of a response without an end token.")
    ptx: PTXConfig | None = Field(None, description="Supervised term.")


class SyncConfig(Strict):
    """Trainer to engine."""

    backend: Literal["auto", "shared_memory", "nccl", "ipc"] = Field(
        "auto", description="`auto`: shared memory on CPUs, IPC where trainer and engine share a GPU, else NCCL."
    )
    bucket_mb: PositiveInt = Field(256, description="Size of one transfer.")
    check_every: PositiveInt = Field(
        10, description="Steps between checks of engine against trainer log-probabilities."
    )
    max_logprob_gap: PositiveFloat = Field(0.2, description="Mean absolute gap, in nats, that stops the run.")


class CheckpointConfig(Strict):
    """What is kept."""

    every: PositiveInt = Field(10, description="Steps between checkpoints; the last step always makes one.")
    keep_last: PositiveInt = Field(2, description="Newest checkpoints kept.")
    keep_best: bool = Field(True, description="Also keep the one with the best held-out score.")


class EvaluationConfig(Strict):
    """Held-out scoring, before, during and after."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0: only before and after.")
    num_prompts: PositiveInt = Field(100, description="Held-out prompts used, at most.")
    samples_per_prompt: PositiveInt = Field(4, description="Answers sampled to each.")
    wins: VersusConfig | None = Field(
        default_factory=lambda: VersusConfig(rubric=RubricConfig()),
        description="Who says how often a prompt's first answer beats the one before training; null asks nobody.",
    )


class LoggingConfig(Strict):
    """Where the run is seen. Text of prompts and answers leaves the run's folder only by `text_to`."""

    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="Besides metrics.jsonl."
    )
    samples_per_step: int = Field(4, ge=0, description="Sample texts a step in samples.jsonl.")
    project: str = Field("rayrl", description="Project or experiment name for W&B and MLflow.")
    text_to: list[Literal["console", "tensorboard", "wandb", "mlflow"]] = Field(
        [], description="Where texts may go besides the run's folder."
    )
    progress: bool = Field(True, description="Live display on the console.")

    @model_validator(mode="after")
    def _texts_go_to_loggers(self) -> LoggingConfig:
        unused = sorted(set(self.text_to) - {"console", *self.loggers})
        if unused:
            raise ValueError(f"text_to: {unused} isn't among logging.loggers {self.loggers}; add it")
        return self


class ClusterConfig(Strict):
    """Ray: where, how placed, how long to wait."""

    address: str = Field("local", description="`local` starts Ray here; `auto` or an address joins a cluster.")
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Of a role's ranks."
    )
    colocate: list[list[Role]] = Field(
        [], description="Groups of roles that share devices (fractions of one bundle a rank)."
    )
    pin: dict[Role, str] = Field(
        {},
        description="Custom resource that a role's nodes must declare, as in `{rollout: spot}` with nodes started by "
        "`ray start --resources '{\"spot\": 1000}'`; a rank takes 1 of it.",
    )
    take_turns: bool = Field(
        False,
        description="First all reward models, then policy, critic and reference in turn: for roles that share cores.",
    )
    object_store_mb: PositiveInt = Field(512, description="Object store of a local Ray.")
    start_timeout_s: PositiveFloat = Field(600.0, description="Limit for actors to start.")
    step_timeout_s: PositiveFloat = Field(1800.0, description="Limit for any remote wait in a step.")
    collective_timeout_s: PositiveFloat = Field(600.0, description="Limit for any collective.")
    kubernetes: KubernetesConfig | None = Field(None, description="For `rayrl kuberay render`; a run ignores it.")


class RecoveryConfig(Strict):
    """What happens when an actor dies, hangs or loses its node, or the storage fails."""

    max_per_step: int = Field(
        3, ge=0, description="Recoveries within one step, after which the run stops; 0: the first death stops it."
    )
    min_engines: PositiveInt | None = Field(
        None,
        description="Engines with which the run may start where `rollout.engines` have no room yet; the others join "
        "when there is. By default the start waits for all. A running one goes on with any number.",
    )
    no_progress_s: PositiveFloat = Field(
        600.0, description="An actor that works and gets no further for so long is taken for dead."
    )
    no_progress_s_of: dict[Role, dict[Phase, PositiveFloat]] = Field(
        {}, description="The same by role and phase, as in `{policy: {update: 1200}}`."
    )
    storage_wait_s: float = Field(
        600.0, ge=0, description="How long storage that is full or gone is waited for before the run stops."
    )


class PPOConfig(CommandConfig):
    """A PPO run."""

    command: ClassVar[str] = "ppo"

    output_dir: str = Field("runs/ppo", description="Folder of the run; the same command in it resumes.")
    seed: int = Field(0, ge=0, description="All random choices derive from it.")
    steps: PositiveInt = Field(100, description="PPO iterations.")
    prompts_per_step: PositiveInt = Field(64, description="Prompts an iteration.")
    samples_per_prompt: PositiveInt = Field(1, description="Answers to each; estimators without a critic need several.")
    policy: PolicyConfig = Field(description="The model that is improved.")
    critic: CriticConfig = Field(default_factory=CriticConfig, description="The value model.")
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig, description="The frozen start.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Generation.")
    data: PromptsConfig = Field(description="Prompts.")
    rewards: list[RewardEntry] = Field(min_length=1, description="The mixture of rewards.")
    mixture: MixtureConfig = Field(default_factory=MixtureConfig, description="After mixing.")
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig, description="PPO and its relatives.")
    sync: SyncConfig = Field(default_factory=SyncConfig, description="Weight sync.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="Checkpoints.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Held-out scoring.")
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="Metrics, samples, report.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray.")
    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig, description="Deaths, hangs, lost nodes.")

    @model_validator(mode="after")
    def _fits_together(self) -> PPOConfig:
        names = [entry.name for entry in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards: names must differ, got {names}")
        if self.algorithm.estimator in ("grpo", "rloo") and self.samples_per_prompt < 2:
            raise ValueError(
                f"samples_per_prompt: {self.algorithm.estimator} compares answers of one prompt, so at least 2"
            )
        if self.uses_critic and self.critic.ranks != self.policy.ranks:
            raise ValueError(f"critic.ranks: must equal policy.ranks ({self.policy.ranks}), got {self.critic.ranks}")
        if self.prompts_per_step % self.policy.ranks:
            raise ValueError(
                f"prompts_per_step: {self.prompts_per_step} isn't a multiple of policy.ranks ({self.policy.ranks})"
            )
        per_rank = self.prompts_per_step * self.samples_per_prompt // self.policy.ranks
        if per_rank % self.algorithm.minibatches:
            raise ValueError(
                f"algorithm.minibatches: {self.algorithm.minibatches} doesn't divide a rank's {per_rank} sequences "
                "a step"
            )
        kl = self.algorithm.kl
        if kl.controller == "adaptive" and kl.horizon <= 0.2 * self.sequences_per_step:
            raise ValueError(
                f"algorithm.kl.horizon: {kl.horizon:g} is too short for {self.sequences_per_step} sequences a step; "
                f"set it above {0.2 * self.sequences_per_step:g}"
            )
        if self.rollout.min_new_tokens > self.rollout.max_new_tokens:
            raise ValueError(f"rollout.min_new_tokens: {self.rollout.min_new_tokens} is above rollout.max_new_tokens")
        if self.rollout.temperature == 0 or self.rollout.repetition_penalty != 1:
            raise ValueError(
                "rollout: PPO learns from its own samples' log-probabilities: temperature must be above 0 and "
                "repetition_penalty 1"
            )
        if self.rollout.backend == "hf" and self.rollout.tensor_parallel > 1:
            raise ValueError("rollout.tensor_parallel: the hf backend runs on one device an engine")
        least = self.recovery.min_engines
        if least is not None and least > self.rollout.engines:
            raise ValueError(f"recovery.min_engines: {least} is more than rollout.engines ({self.rollout.engines})")
        if self.transfer_backend == "ipc" and self.rollout.engines > self.policy.ranks:
            raise ValueError(
                f"rollout.engines: with weight transfer over ipc each engine shares a policy rank's GPU, so at most "
                f"policy.ranks ({self.policy.ranks}), got {self.rollout.engines}; lower it or set sync.backend=nccl"
            )
        if self.critic.model.startswith("reward:"):
            source = self.critic.model.removeprefix("reward:")
            models = [entry.name for entry in self.rewards if entry.kind == "model"]
            if source not in models:
                raise ValueError(f"critic.model: no reward of kind model is named {source!r} (there are: {models})")
        return self

    @property
    def transfer_backend(self) -> Literal["shared_memory", "nccl", "ipc"]:
        """What `sync.backend: auto` means for this run's devices."""
        if self.sync.backend != "auto":
            return self.sync.backend
        if self.rollout.gpus_per_engine == 0 or self.rollout.backend == "hf":
            return "shared_memory"
        together = any({"policy", "rollout"} <= set(group) for group in self.cluster.colocate)
        return "ipc" if together else "nccl"

    @property
    def uses_critic(self) -> bool:
        """Whether the estimator needs a value model."""
        return self.algorithm.estimator == "gae"

    @property
    def sequences_per_step(self) -> int:
        """Responses an iteration, over all ranks."""
        return self.prompts_per_step * self.samples_per_prompt
