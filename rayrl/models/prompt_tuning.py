"""P-tuning: virtual tokens before every sequence, the model itself frozen (PEFT's PrefixTuning and PromptEncoder).

DoctorGLM compares it with LoRA. What is trained can't be merged into the model: it stays a PEFT adapter.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayrl.config.sft import SFTTrainableConfig
from rayrl.models.partition import Partition


class PromptTop(nn.Module):
    """The model behind its virtual tokens; gives the hidden states of the real ones."""

    def __init__(self, adapter: nn.Module, in_every_layer: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self._in_every_layer = in_every_layer

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        """ids [B, L] -> an object with `last_hidden_state` [B, L, D]. Padding is on the right."""
        base = self.adapter.get_base_model().base_model  # type: ignore[operator]
        prompt = self.adapter.get_prompt(len(input_ids))  # type: ignore[operator]
        if self._in_every_layer:
            return base(input_ids=input_ids, past_key_values=prompt, use_cache=use_cache)
        embedded_BLD = base.get_input_embeddings()(input_ids)
        whole_BLD = torch.cat([prompt.to(embedded_BLD.dtype), embedded_BLD], dim=1)
        out = base(inputs_embeds=whole_BLD, use_cache=use_cache)
        return SimpleNamespace(last_hidden_state=out.last_hidden_state[:, prompt.shape[1] :])


def prompt_partition(model: PreTrainedModel, config: SFTTrainableConfig) -> Partition:
    """Freezes the model and puts virtual tokens before it. Call it before DeepSpeed takes the model."""
    from peft import PrefixTuningConfig, PromptEncoderConfig, TaskType, get_peft_model

    shared = {"task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": config.prompt_tokens}
    settings: Any
    if config.prompt_kind == "prefix":
        settings = PrefixTuningConfig(
            **shared,
            prefix_projection=config.prompt_hidden is not None,
            **({"encoder_hidden_size": config.prompt_hidden} if config.prompt_hidden else {}),
        )
    else:
        width = config.prompt_hidden or model.get_input_embeddings().weight.shape[1]
        settings = PromptEncoderConfig(**shared, encoder_hidden_size=width)
    adapter = get_peft_model(model, settings)
    return Partition(model, None, PromptTop(adapter, config.prompt_kind == "prefix"), adapter)
