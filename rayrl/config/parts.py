"""Configuration sections that several commands share: what is trained and how, engines, Ray itself.

Every section is what one component takes. Descriptions are the source of docs/configuration.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rayrl.config.strict import Strict


class TrainableConfig(Strict):
    """Which parameters are trained."""

    mode: Literal["full", "lora", "last_n"] = Field(
        "full", description="Everything, a PEFT LoRA adapter, or the last `num_layers` blocks with the final norm."
    )
    num_layers: PositiveInt = Field(2, description="`last_n`: how many transformer blocks train.")
    lora_rank: PositiveInt = Field(16, description="`lora`: rank of the adapter.")
    lora_alpha: PositiveFloat = Field(32, description="`lora`: scale; the update is alpha / rank * BA.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="`lora`: dropout on the adapter's input.")
    lora_targets: list[str] = Field(["all-linear"], description="`lora`: module names, or `all-linear`.")


class OptimizerConfig(Strict):
    """The optimizer and its learning-rate schedule; one schedule step is one optimizer step."""

    kind: Literal["adamw", "lion"] = Field(
        "adamw", description="`lion` keeps one moment, not two; use a third to a tenth of AdamW's rate."
    )
    lr: PositiveFloat = Field(1e-6, description="Peak learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Moment decays (Lion's usual ones are 0.9, 0.99).")
    eps: PositiveFloat = Field(1e-8, description="AdamW's denominator floor.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Clip of the global gradient norm.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Decay after warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up.")
    warmup_ratio: float = Field(
        0.0, ge=0, le=1, description="Linear warm-up as a share of all steps, where `warmup_steps` is 0."
    )


class TrainerConfig(Strict):
    """A trained role: its model, its DeepSpeed set-up and what each rank holds."""

    dtype: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="`auto` is bf16 on GPUs and on CPUs with AMX or AVX512-BF16, else fp32."
    )
    train: TrainableConfig = Field(default_factory=TrainableConfig, description="Which parameters are trained.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="The optimizer and its schedule.")
    ranks: PositiveInt = Field(1, description="Data-parallel ranks, one Ray actor each.")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    offload_optimizer: bool = Field(False, description="Keep optimizer state in host memory (ZeRO 1 to 3, GPU).")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    micro_batch_size: PositiveInt = Field(8, description="Sequences a forward pass; accumulation fills a minibatch.")
    cpus_per_rank: float = Field(0.5, ge=0, description="CPUs that Ray reserves for a rank (may be fractional).")
    gpus_per_rank: float = Field(0.0, ge=0, description="GPUs that Ray reserves for a rank (may be fractional).")
    threads: PositiveInt | None = Field(
        None, description="Torch threads a rank; by default its whole CPUs, at least 1."
    )


class RolloutConfig(Strict):
    """Generation: engines, sampling and the window."""

    backend: Literal["vllm", "hf"] = Field("vllm", description="vLLM, or Hugging Face `generate` where it's missing.")
    engines: PositiveInt = Field(1, description="Engine actors.")
    tensor_parallel: PositiveInt = Field(1, description="Devices an engine is spread over (vLLM).")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="As for the trainers.")
    max_prompt_tokens: PositiveInt = Field(512, description="A longer prompt is rejected, never cut.")
    max_new_tokens: PositiveInt = Field(256, description="Response length at which generation stops.")
    min_new_tokens: int = Field(0, ge=0, description="No end token before this many (0: an answer may end at once).")
    temperature: float = Field(
        1.0,
        ge=0,
        description="Sampling temperature, at which log-probabilities are taken; 0 takes the likeliest token.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus; below 1 the engine's log-probabilities are renormalised."
    )
    repetition_penalty: PositiveFloat = Field(
        1.0, description="Above 1, tokens that were there before are less likely. Not in PPO."
    )
    kv_cache_gb: PositiveFloat = Field(1.0, description="Key-value cache an engine on a CPU (vLLM).")
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1, description="Share of a GPU that vLLM may take.")
    max_num_seqs: PositiveInt = Field(256, description="Sequences an engine decodes at one time.")
    enforce_eager: bool = Field(True, description="Skip compilation and graphs: starts sooner; on GPUs set false.")
    sleep_between_phases: bool = Field(False, description="Free the engine's GPU memory while the trainers work.")
    cpus_per_engine: float = Field(0.5, ge=0, description="CPUs that Ray reserves for an engine.")
    gpus_per_engine: float = Field(0.0, ge=0, description="GPUs that Ray reserves for an engine (a device of it).")
    threads: PositiveInt | None = Field(None, description="Torch threads an engine.")


class RayConfig(Strict):
    """Ray: where, and how long to wait (stages without roles of their own)."""

    address: str = Field("local", description="`local` starts Ray here; `auto` or an address joins a cluster.")
    object_store_mb: PositiveInt = Field(512, description="Object store of a local Ray.")
    start_timeout_s: PositiveFloat = Field(600.0, description="Limit for actors to start.")
