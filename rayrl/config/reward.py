"""Configuration of `rayrl reward`: a reward model from comparisons."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rayrl.config.parts import RayConfig, TrainerConfig
from rayrl.config.sources import SourceConfig
from rayrl.config.strict import CommandConfig, Strict


class RewardModelConfig(TrainerConfig):
    """The model, and how it is trained."""

    model: str = Field(
        description="What it starts from: a causal language model (the pre-trained base, or the SFT model), which gets "
        "a new linear head with one output; or a reward model, whose head is kept."
    )
    chat_template: str | None = Field(None, description="Replaces the tokenizer's own template.")
    cache_gb: float = Field(
        4.0, ge=0, description="`last_n`: memory a rank for the frozen blocks' activations, kept over all epochs."
    )


class ComparisonsConfig(Strict):
    """Comparisons to train and to evaluate on."""

    sources: list[SourceConfig] = Field(min_length=1, description="Preference stores, files of pairs, built-in sets.")
    heldout: list[SourceConfig] = Field(
        [], description="Comparisons to evaluate on; by default a share of the prompts in `sources`."
    )
    heldout_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the prompts held out, by a hash of their ids, where `heldout` is empty."
    )
    system_prompt: str | None = Field(None, description="Goes before conversations that have no system message.")
    max_prompt_tokens: PositiveInt = Field(1024, description="A longer prompt is left out, never cut.")
    max_answer_tokens: PositiveInt = Field(512, description="A longer answer is left out, never cut.")
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="More bad rows than this stop the run.")


class RankingLossConfig(Strict):
    """The pairwise ranking loss."""

    ties: bool = Field(True, description="Train on ties, as half a win for each side; else they are left out.")
    margin_scale: float = Field(0.0, ge=0, description="Distance asked of a pair: this times the rater's margin.")
    max_margin: PositiveFloat = Field(3.0, description="Upper limit of that distance.")


class RewardEvaluationConfig(Strict):
    """Evaluation on the held-out comparisons; each saves a checkpoint, and the best is kept."""

    per_epoch: PositiveInt = Field(1, description="Evaluations an epoch, at even distances.")
    calibration_bins: int = Field(10, ge=2, description="Bins of the reliability curve, from 50% to 100%.")
    length_ratio: float = Field(
        1.25, ge=1, description="Answers are of matched length where the longer has at most so many times the tokens."
    )


class RewardConfig(CommandConfig):
    """Everything `rayrl reward` takes."""

    command: ClassVar[str] = "reward"

    output_dir: str = Field(description="Folder of the run.")
    seed: int = Field(0, ge=0, description="Order of the prompts, LoRA's start, dropout.")
    epochs: PositiveInt = Field(1, description="Passes over the prompts.")
    prompts_per_step: PositiveInt = Field(
        32, description="Prompts an optimizer step, over all ranks; all pairs of a prompt come together."
    )
    model: RewardModelConfig
    data: ComparisonsConfig
    loss: RankingLossConfig = Field(default_factory=RankingLossConfig)
    evaluation: RewardEvaluationConfig = Field(default_factory=RewardEvaluationConfig)
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="Where metrics (never texts) are copied to, beside metrics.jsonl."
    )
    max_failures: int = Field(0, ge=0, description="How often ranks that died are started again, from the checkpoint.")
    collective_timeout_s: PositiveFloat = Field(1800.0, description="Limit for ranks to wait for one another.")
    ray: RayConfig = Field(default_factory=RayConfig)

    @model_validator(mode="after")
    def _check(self) -> RewardConfig:
        if self.prompts_per_step % self.model.ranks:
            raise ValueError(
                f"prompts_per_step: {self.prompts_per_step} can't be shared evenly by model.ranks={self.model.ranks}"
            )
        names = [source.name for source in self.data.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"data.sources: names must differ, got {names}")
        return self
