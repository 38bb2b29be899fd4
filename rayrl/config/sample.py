"""Configuration of `rayrl sample`: several answers to each prompt that fine-tuning hasn't seen."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from rayrl.config.parts import RayConfig, RolloutConfig
from rayrl.config.sources import SourceConfig
from rayrl.config.strict import CommandConfig


class SampleConfig(CommandConfig):
    """K answers to each of the chosen prompts."""

    command: ClassVar[str] = "sample"

    output_dir: str = Field("runs/sample", description="Where candidates-*.jsonl and the manifest go.")
    seed: int = Field(0, ge=0, description="Of the choice of prompts and of every answer.")
    model: str = Field(description="Checkpoint folder, hub name or built-in model that answers.")
    chat_template: str | None = Field(None, description="Jinja chat template, for tokenizers without one of their own.")
    system_prompt: str | None = Field(
        None, description="Put before conversations that start without one; it isn't written into the candidates."
    )
    prompts: list[SourceConfig] = Field(
        description="Where prompts come from; of a dialogue that ends with an answer, that one becomes the reference. "
        "With `num_prompts`, weights say how many each source gives (equal ones: as many each, while they last).",
    )
    exclude: list[SourceConfig] = Field(
        [],
        description="Data used in fine-tuning, whose prompts are left out: sources, or as `path` the folder of a "
        "finished `rayrl sft`.",
    )
    turns: Literal["last", "all"] = Field(
        "last", description="A conversation's last prompt, or one at each of the patient's turns that is answered."
    )
    near_duplicates: float | None = Field(
        0.7,
        gt=0,
        le=1,
        description="Similarity from which a prompt counts as one seen before; null compares exactly only.",
    )
    num_prompts: PositiveInt | None = Field(None, description="How many are drawn, by the seed; by default all.")
    samples_per_prompt: PositiveInt = Field(4, description="Answers a prompt (K).")
    shard_size: PositiveInt = Field(
        64, description="Prompts a shard: one batch, one seed, one file, and what an interruption loses."
    )
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="More bad rows in a source than this stop it.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Engines and sampling.")
    ray: RayConfig = Field(default_factory=RayConfig, description="Ray: where, and how long to wait.")

    @field_validator("prompts")
    @classmethod
    def _some(cls, prompts: list[SourceConfig]) -> list[SourceConfig]:
        if not prompts:
            raise ValueError("name at least one source")
        names = [source.name for source in prompts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}")
        return prompts
