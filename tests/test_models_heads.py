"""Which models' log-probabilities are those of their output projection alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import PAD_ID, policy_learner
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from rayrl.errors import UserError
from rayrl.models.heads import check_projection
from rayrl.models.scorer import ReferenceScorer

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN = {
    "qwen2": Qwen2Config(**SIZES),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, initializer_range=0.3),
    "gemma2-uncapped": Gemma2Config(**SIZES, final_logit_softcapping=None),
    "cohere-1": CohereConfig(**SIZES, logit_scale=1.0),
}
MORE = {
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=5.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.0625),
    "granite": GraniteConfig(**SIZES, logits_scaling=8.0),
}


def made(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLAIN)
def test_a_projection_is_all_there_is(name: str, dtype: torch.dtype) -> None:
    check_projection(made(PLAIN[name], dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MORE)
def test_logits_that_are_scaled_or_capped_are_refused(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match="ForCausalLM does more to its logits than a projection"):
        check_projection(made(MORE[name], dtype))


@pytest.mark.usefixtures("one_rank")
def test_policies_and_references_are_checked(tmp_path: Path) -> None:
    made(MORE["cohere"], torch.float32).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="CohereForCausalLM does more"):
        policy_learner(4, str(tmp_path))
    with pytest.raises(UserError, match="CohereForCausalLM does more"):
        ReferenceScorer(str(tmp_path), "fp32", 1.0, PAD_ID)
