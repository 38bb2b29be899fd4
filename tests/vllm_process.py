"""A vLLM engine in a process of its own: `python vllm_process.py MODEL OUT [first]`. OUT gets what it measures (torch).

With `first` it only samples once: the second process of a comparison. Every gap is the largest difference between the
engine's log-probabilities of the tokens it sampled and those of a Hugging Face model that was given the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from learner_cases import PAD_ID
from naive_ppo import response_logprobs
from transformers import PreTrainedModel

from rayrl.config.parts import RolloutConfig, TrainableConfig
from rayrl.models import weight_transfer
from rayrl.models.builtin import resolve_model
from rayrl.models.engine import Engine, load_engine
from rayrl.models.loading import load_causal_lm
from rayrl.models.partition import merged_parameters, partition
from rayrl.models.weights import pack
from rayrl.types import Prompt, PromptRow, Rollout

TEMPERATURE = 0.7
PROMPTS = [np.array([5, 6, 7]), np.array([9]), np.array([30, 31, 32, 33, 34, 35, 36]), np.array([11, 12])]
CONFIG = RolloutConfig(
    backend="vllm",
    dtype="fp32",
    temperature=TEMPERATURE,
    max_prompt_tokens=16,
    max_new_tokens=10,
    max_num_seqs=16,
    kv_cache_gb=0.05,
    threads=1,
)


def sample(engine: Engine, seed: int = 1) -> list[list[Any]]:
    """Two answers to each prompt."""
    return engine.generate(PROMPTS, 2, seed)


@torch.no_grad()
def gap(engine: Engine, model: PreTrainedModel) -> float:
    """See the module's docstring."""
    worst = 0.0
    for prompt, answers in zip(PROMPTS, sample(engine), strict=True):
        for one in answers:
            row = Prompt(PromptRow("p", []), prompt)
            rollout = Rollout(row, 0, one.token_ids_T, one.logprobs_T, "", one.ended, one.weight_version)
            theirs = response_logprobs(model, rollout, TEMPERATURE).numpy()
            worst = max(worst, float(np.abs(theirs - one.logprobs_T).max()))
    return worst


@torch.no_grad()
def shaken(model: PreTrainedModel, seed: int, names: Iterable[str]) -> list[tuple[str, torch.Tensor]]:
    """Adds noise to the named parameters, in place; (name, tensor) of them, as a trainer sends them."""
    torch.manual_seed(seed)
    params = dict(model.named_parameters())
    for name in names:
        params[name].add_(0.05 * torch.randn_like(params[name]))
    return [(name, params[name]) for name in names]


def sync(engine: Engine, named: list[tuple[str, torch.Tensor]], version: int, bucket_bytes: int = 30_000) -> int:
    """One update in as many buckets as it takes; how many."""
    engine.begin_update()
    buckets = list(pack(named, bucket_bytes))
    for bucket in buckets:
        engine.load_bucket(bucket)
    engine.finish_update(version)
    return len(buckets)


def measure(name: str, engine: Engine) -> dict[str, Any]:
    """Everything that test_models_vllm.py looks at, in this order on one engine."""
    model = load_causal_lm(resolve_model(name), "fp32")
    every = [key for key, _ in model.named_parameters()]
    top = [key for key in every if key.startswith(("model.layers.1.", "model.norm.")) or key == "lm_head.weight"]
    out: dict[str, Any] = {"engine": engine.describe(), "first": sample(engine), "again": sample(engine)}
    out["other seed"] = sample(engine, 2)
    out["start"] = gap(engine, model)
    for version, (what, names) in enumerate((("full", every), ("top", top), ("full again", every)), start=1):
        named = shaken(model, version, names)
        out[f"{what}, before"] = gap(engine, model)
        out[f"{what}, buckets"] = sync(engine, named, version)
        out[f"{what}, after"] = gap(engine, model)
        out[f"{what}, versions"] = {one.weight_version for group in sample(engine) for one in group}
    engine.begin_update()  # broken off after a part, as when the sender dies
    engine.load_bucket(next(iter(pack(shaken(model, 8, every), 30_000))))
    out["broken off, buckets"] = sync(engine, shaken(model, 7, every), 7)
    out["broken off, after"] = gap(engine, model)
    repack = weight_transfer.dispatch_cpu_unquantized_gemm
    weight_transfer.dispatch_cpu_unquantized_gemm = lambda *args, **kwargs: None
    sync(engine, shaken(model, 9, every), 4)
    weight_transfer.dispatch_cpu_unquantized_gemm = repack
    out["not packed again"] = gap(engine, model)
    sync(engine, list(model.named_parameters()), 5, bucket_bytes=1 << 30)
    out["packed again"] = gap(engine, model)
    (bucket,) = pack([("model.norm.weight", torch.ones(64))], 1 << 30)
    try:
        engine.load_bucket(bucket)
    except Exception as error:  # the test looks at it
        out["without begin"] = f"{type(error).__name__}: {error}"
    out["after the bad transfer"] = gap(engine, model)
    return out | lora(engine, model)


def lora(engine: Engine, model: PreTrainedModel) -> dict[str, Any]:
    """A sync of an adapter on q and v alone, which vLLM holds fused with k; the engine has the model's weights."""
    parts = partition(model, TrainableConfig(mode="lora", lora_rank=4, lora_targets=["q_proj", "v_proj"]))
    assert parts.adapter is not None
    torch.manual_seed(10)
    for name, param in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(param, std=0.2)
    named = [(name, tensor.clone()) for name, tensor in merged_parameters(parts, only_trained=True)]
    merged = parts.adapter.merge_and_unload()  # type: ignore[operator]
    out: dict[str, Any] = {"lora, before": gap(engine, merged), "lora, buckets": sync(engine, named, 6)}
    versions = {one.weight_version for group in sample(engine) for one in group}
    return out | {"lora, after": gap(engine, merged), "lora, versions": versions}


def main() -> None:
    """See the module's docstring."""
    name, path = sys.argv[1], sys.argv[2]
    engine = load_engine(resolve_model(name), CONFIG, [2], PAD_ID)
    torch.save({"first": sample(engine)} if sys.argv[3:] == ["first"] else measure(name, engine), path)


if __name__ == "__main__":
    main()
