"""Configuration of `rayrl sft`: supervised fine-tuning on conversations, or continued pre-training on plain text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rayrl.config.feedback import RubricConfig
from rayrl.config.parts import RayConfig, TrainableConfig, TrainerConfig
from rayrl.config.sources import SourceConfig
from rayrl.config.strict import CommandConfig, Strict
from rayrl.config.versus import VersusConfig


class SFTTrainableConfig(TrainableConfig):
    """Which parameters are trained."""

    mode: Literal["full", "lora", "last_n", "p_tuning"] = Field(  # type: ignore[assignment]
        "full",
        description="Everything, a PEFT LoRA adapter (merged at the end), the last `num_layers` blocks with the final "
        "norm, or virtual tokens before every row (P-tuning; stays an adapter).",
    )
    prompt_kind: Literal["prefix", "encoder"] = Field(
        "prefix",
        description="`p_tuning`: keys and values in every layer (P-tuning v2, PEFT's PrefixTuning), or embeddings "
        "before the first (P-tuning, PEFT's PromptEncoder).",
    )
    prompt_tokens: PositiveInt = Field(128, description="`p_tuning`: virtual tokens.")
    prompt_hidden: PositiveInt | None = Field(
        None, description="`p_tuning`: width of the network that makes them; by default the model's (`prefix`: none)."
    )


class SFTModelConfig(TrainerConfig):
    """The model, and how it is trained."""

    model: str = Field(description="Checkpoint folder, hub name, or a built-in model.")
    chat_template: str | None = Field(
        None,
        description="Replaces the tokenizer's own template, or gives a base model one. Built in: `chatml` (its tokens "
        "must be in the vocabulary) and `plain` (any model).",
    )
    train: SFTTrainableConfig = Field(default_factory=SFTTrainableConfig, description="Which parameters are trained.")


class SFTDataConfig(Strict):
    """What is learned, and how it is cut into rows."""

    sources: list[SourceConfig] = Field(
        min_length=1,
        description="Named sources. A source of weight 2 comes twice an epoch, one of weight 0.5 every other epoch "
        "(half of it in each).",
    )
    validation: list[SourceConfig] = Field(
        [], description="Sources to validate on; by default a share of the conversations in `sources`."
    )
    validation_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the conversations or documents held out, by a hash of what they say, where `validation` "
        "is empty; 0 for no validation.",
    )
    system_prompt: str | None = Field(None, description="Goes before conversations that have no system message.")
    max_tokens: PositiveInt = Field(
        1024, description="Longest conversation; a document is cut into parts of at most this. Also a packed row's."
    )
    long: Literal["cut", "reject"] = Field(
        "cut",
        description="A longer conversation loses its last turns, whole, or is rejected. One whose first answer "
        "doesn't fit is always rejected.",
    )
    packing: bool = Field(
        True, description="Several conversations a row, none of which sees another; else one a row, padded."
    )
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="More bad rows than this stop the run.")


class SFTAnswersConfig(Strict):
    """A few prompts that are answered before training and with every validation."""

    prompts: SourceConfig = Field(description="Prompts that aren't trained on.")
    num_prompts: PositiveInt = Field(16, description="How many of them, drawn by a hash of their ids.")
    max_new_tokens: PositiveInt = Field(64, description="Length at which an answer is cut; the likeliest tokens.")
    wins: VersusConfig = Field(
        default_factory=lambda: VersusConfig(rubric=RubricConfig()),
        description="Who says how often an answer beats the one before training.",
    )


class SFTValidationConfig(Strict):
    """Validation, early stop and checkpoints; every validation keeps the best checkpoint."""

    every: PositiveInt | None = Field(None, description="Optimizer steps between validations; by default an epoch's.")
    patience: PositiveInt | None = Field(
        None, description="Stop after so many validations in a row without a better loss."
    )
    min_improvement: float = Field(0.0, ge=0, description="What counts as better, in nats a token.")
    answers: SFTAnswersConfig | None = Field(
        None, description="Prompts to answer as well, against the start's answers (`chat`; not ZeRO-3, not p_tuning)."
    )


class ProbeConfig(Strict):
    """General-knowledge questions, asked before training and with every validation: a run that forgets is stopped."""

    questions: str | None = Field(
        "general",
        description="`general` is the built-in set (English and Chinese); or a JSONL file of `question`, `right`, "
        "`wrong` (a list); null for none.",
    )
    max_fall: float = Field(
        0.2, gt=0, le=1, description="How far the share of right answers may fall below the start's."
    )
    action: Literal["stop", "warn"] = Field(
        "stop", description="`stop` ends training and keeps the best checkpoint before the fall."
    )


class GuardConfig(Strict):
    """Against exploding gradients (Zhongjing): after one, the loss is scaled down and the learning rate decays."""

    factor: PositiveFloat | None = Field(
        10.0, description="A gradient norm above this times the running median has exploded; null for no guard."
    )
    window: PositiveInt = Field(64, description="Steps of the running median; the first eight only fill it.")
    loss_scale: float = Field(0.5, gt=0, le=1, description="The loss is multiplied by this after each explosion.")
    rate_decay: float = Field(0.9, gt=0, le=1, description="And the learning rate by this.")
    max_skipped: PositiveInt = Field(
        5, description="Steps whose gradient isn't finite are skipped; so many in a row stop the run."
    )


class SFTCheckpointConfig(Strict):
    """Checkpoints to resume from; the best and the newest are kept."""

    every: PositiveInt | None = Field(
        None, description="Optimizer steps between checkpoints, beside those of validations."
    )
    keep_last: PositiveInt = Field(1, description="Newest checkpoints kept beside the best.")


class SFTConfig(CommandConfig):
    """Everything `rayrl sft` takes."""

    command: ClassVar[str] = "sft"

    output_dir: str = Field("runs/sft", description="Folder of the run; the same command in it resumes.")
    objective: Literal["chat", "pretrain"] = Field(
        "chat",
        description="`chat`: conversations, loss on the assistant's turns alone. `pretrain`: plain text, loss on every "
        "token.",
    )
    mode: Literal["weighted", "one_stage"] = Field(
        "weighted",
        description="`weighted`: sources of weight w come w times an epoch, all mixed. `one_stage` (HuatuoGPT-II): "
        "each example is drawn `epochs` (of its source) times, without replacement, with a probability in proportion "
        "to its source's weight among those that are left, so that heavy sources come early.",
    )
    seed: int = Field(0, ge=0, description="Order of the data, LoRA's start, dropout.")
    epochs: PositiveFloat = Field(1.0, description="Passes over the weighted sources.")
    max_steps: PositiveInt | None = Field(None, description="Optimizer steps at most.")
    batch_size: PositiveInt = Field(16, description="Rows an optimizer step, over all ranks.")
    model: SFTModelConfig = Field(description="The model that is trained.")
    data: SFTDataConfig = Field(description="What it learns.")
    validation: SFTValidationConfig = Field(default_factory=SFTValidationConfig, description="Validation.")
    probe: ProbeConfig = Field(default_factory=ProbeConfig, description="General ability.")
    guard: GuardConfig = Field(default_factory=GuardConfig, description="Exploding gradients.")
    checkpoint: SFTCheckpointConfig = Field(default_factory=SFTCheckpointConfig, description="Checkpoints.")
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="Where metrics (never texts) are copied to, beside metrics.jsonl."
    )
    max_failures: int = Field(0, ge=0, description="How often ranks that died are started again, from the checkpoint.")
    collective_timeout_s: PositiveFloat = Field(1800.0, description="Limit for ranks to wait for one another.")
    ray: RayConfig = Field(default_factory=RayConfig, description="Ray.")

    @model_validator(mode="after")
    def _fits_together(self) -> SFTConfig:
        for key, sources in (("sources", self.data.sources), ("validation", self.data.validation)):
            names = [source.name for source in sources]
            if len(set(names)) < len(names):
                raise ValueError(f"data.{key}: names must differ, got {names}")
        if self.model.train.mode == "p_tuning" and self.data.packing:
            raise ValueError("data.packing: virtual tokens go before every row, so p_tuning needs data.packing=false")
        if self.model.train.mode == "p_tuning" and self.model.zero_stage == 3:
            raise ValueError("model.zero_stage: p_tuning trains few parameters and isn't built for stage 3; use 0 to 2")
        if self.validation.answers is not None and (
            self.objective != "chat" or self.model.zero_stage == 3 or self.model.train.mode == "p_tuning"
        ):
            raise ValueError("validation.answers: needs objective chat, zero_stage below 3, and no p_tuning")
        if self.mode == "one_stage" and self.epochs != 1.0:
            raise ValueError("epochs: with mode one_stage, set `epochs` of each source instead")
        named = [source.name for source in self.data.sources if source.epochs is not None]
        if self.mode != "one_stage" and named:
            raise ValueError(
                f"data.sources.{named[0]}.epochs: only for mode one_stage; set weight or epochs of the run"
            )
        if self.batch_size < self.model.ranks:
            raise ValueError(f"batch_size: {self.batch_size} rows leave some of {self.model.ranks} ranks without work")
        validates = bool(self.data.validation) or self.data.validation_fraction > 0
        if self.validation.patience is not None and not validates:
            raise ValueError("validation.patience: there is nothing to validate on (data.validation_fraction=0)")
        return self
