"""What is trained, what is frozen below, and that the parts together are the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learner_cases import CPU
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from rayrl.config.parts import TrainableConfig
from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model
from rayrl.models.loading import load_causal_lm, load_scorer, score_head
from rayrl.models.partition import (
    Partition,
    check_views,
    frozen_copy,
    merged_parameters,
    partition,
    run,
    trainable_names,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
ARCHITECTURES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-sliding": Qwen2Config(**SIZES, **WINDOW),  # its blocks differ: the first is full, the others see 4 tokens
    "qwen3": Qwen3Config(**SIZES),
    "qwen3-sliding": Qwen3Config(**SIZES, **WINDOW),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
}
IDS_BL = torch.arange(3, 27).view(2, 12)


def make_model(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def tiny(name: str = "tiny-random") -> PreTrainedModel:
    return load_causal_lm(resolve_model(name), "fp32")


def last_n(num_layers: int) -> TrainableConfig:
    return TrainableConfig(mode="last_n", num_layers=num_layers)


def lora(**keys: Any) -> TrainableConfig:
    return TrainableConfig(mode="lora", lora_rank=4, **keys)


def shake_adapter(parts: Partition) -> None:
    """PEFT starts with B = 0, where every merge is right."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, param in parts.model.named_parameters():
            if "lora_" in name:
                param.normal_(std=0.2)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trunk_and_top_together_are_the_model(name: str, num_layers: int) -> None:
    model = make_model(ARCHITECTURES[name])
    want = model.base_model(IDS_BL).last_hidden_state
    parts = partition(model, last_n(num_layers))
    check_views(parts, CPU)
    assert len(parts.top.layers) == num_layers and len(parts.trunk.layers) == 4 - num_layers
    torch.testing.assert_close(run(parts.top, parts.trunk_output(IDS_BL)), want, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(parts.model.base_model(IDS_BL).last_hidden_state, want, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["tiny-random", "tiny-random-untied"])
def test_last_n_trains_blocks_norm_and_only_an_untied_head(name: str) -> None:
    parts = partition(tiny(name), last_n(1))
    names = set(trainable_names(parts))
    expected = {
        n for n, _ in parts.model.named_parameters() if n.startswith("model.layers.1.") or n == "model.norm.weight"
    }
    assert names == expected | ({"lm_head.weight"} if name == "tiny-random-untied" else set())
    assert "model.norm.weight" in names and "model.layers.1.self_attn.q_proj.weight" in names


def test_full_trains_everything() -> None:
    parts = partition(tiny(), TrainableConfig())
    assert parts.trunk is None and parts.adapter is None
    assert trainable_names(parts) == [name for name, _ in parts.model.named_parameters()]
    assert parts.trunk_output(IDS_BL) is IDS_BL


def test_lora_trains_the_adapter_alone_and_sends_what_it_adapts() -> None:
    parts = partition(tiny("tiny-random-untied"), lora())
    assert all("lora_" in name for name, param in parts.model.named_parameters() if param.requires_grad)
    projections = ["q_proj", "k_proj", "v_proj", "o_proj"]
    blocks = [f"self_attn.{p}" for p in projections] + [f"mlp.{p}" for p in ("gate_proj", "up_proj", "down_proj")]
    assert set(trainable_names(parts)) == {f"model.layers.{i}.{block}.weight" for i in (0, 1) for block in blocks}
    some = partition(tiny(), lora(lora_targets=["q_proj", "v_proj"]))
    assert {name.split(".")[-2] for name in trainable_names(some)} == {"q_proj", "v_proj"}


def test_lora_sends_whole_fused_layers() -> None:
    """k_proj isn't adapted, nor is any bias, but an engine that fuses q, k and v needs all of them; the MLP stays."""
    parts = partition(make_model(ARCHITECTURES["qwen2-tied"]), lora(lora_targets=["q_proj", "v_proj"]))
    shake_adapter(parts)
    sent = dict(merged_parameters(parts, only_trained=True))
    whole = dict(merged_parameters(parts, only_trained=False))
    assert sent.keys() == {name for name in whole if ".self_attn." in name}
    assert {name.rpartition("self_attn.")[2] for name in sent} == {
        *(f"{p}_proj.weight" for p in "qkvo"),
        *(f"{p}_proj.bias" for p in "qkv"),
    }
    assert all(torch.equal(tensor, whole[name]) for name, tensor in sent.items())


@pytest.mark.parametrize("num_layers", [2, 3])
def test_as_many_blocks_as_the_model_has_are_refused(num_layers: int) -> None:
    with pytest.raises(UserError, match=f"num_layers is {num_layers}, but the model has 2 blocks"):
        partition(tiny(), last_n(num_layers))


def test_an_unknown_architecture_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32))
    with pytest.raises(UserError, match="GPT2LMHeadModel"):
        partition(model, last_n(1))


def test_a_block_that_the_views_cannot_explain_is_found() -> None:
    parts = partition(tiny(), last_n(1))
    parts.top.layers[0].register_forward_hook(lambda module, args, output: output + 1.0)
    check_views(parts, CPU)  # the same block on both sides
    parts.model.base_model.register_forward_hook(
        lambda module, args, output: output | {"last_hidden_state": 2 * output.last_hidden_state}
    )
    with pytest.raises(UserError, match="doesn't fit LlamaForCausalLM"):
        check_views(parts, CPU)


def test_hooks_stay_on_the_view_they_were_put_on() -> None:
    """ZeRO-3 hangs hooks on every module of the top; in the trunk they would look for parameters it doesn't manage."""
    parts = partition(tiny(), last_n(1))
    calls: list[str] = []
    for module in [parts.top, *(child for name, child in parts.top.named_children() if name not in ("layers", "norm"))]:
        module.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__))
    parts.trunk_output(IDS_BL)
    parts.model(IDS_BL)
    assert calls == []
    run(parts.top, torch.zeros(1, 3, 64))
    assert "LlamaModel" in calls and len(calls) >= 2


@pytest.mark.parametrize("config", [last_n(1), lora(), TrainableConfig()], ids=["last_n", "lora", "full"])
@pytest.mark.parametrize("name", ["tiny-random", "tiny-random-untied"])
def test_exported_names_are_exactly_the_checkpoints(name: str, config: TrainableConfig) -> None:
    checkpoint = dict(tiny(name).named_parameters())
    parts = partition(tiny(name), config)
    exported = dict(merged_parameters(parts, only_trained=False))
    assert exported.keys() == checkpoint.keys()
    for key, tensor in exported.items():  # nothing is trained yet, and a fresh adapter adds 0
        assert torch.equal(tensor, checkpoint[key]), key
    assert [key for key, _ in merged_parameters(parts, only_trained=True)] == trainable_names(parts)
    assert set(trainable_names(parts)) <= set(checkpoint)


@pytest.mark.parametrize("name", ["tiny-random", "tiny-random-untied"])
def test_merged_parameters_equal_pefts_own_merge(name: str) -> None:
    parts = partition(tiny(name), lora())
    shake_adapter(parts)
    ours = {key: tensor.clone() for key, tensor in merged_parameters(parts, only_trained=False)}
    with_adapter = parts.model(IDS_BL).logits
    assert parts.adapter is not None
    merged = parts.adapter.merge_and_unload()
    theirs = dict(merged.named_parameters())
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key].detach(), atol=1e-6, rtol=1e-6)
    plain = tiny(name)
    plain.load_state_dict(ours, strict=False)
    plain.tie_weights()
    torch.testing.assert_close(plain(IDS_BL).logits, with_adapter, atol=1e-4, rtol=1e-4)


def test_without_adapter_is_the_base_model() -> None:
    parts = partition(tiny(), lora())
    shake_adapter(parts)
    base = tiny().base_model(IDS_BL).last_hidden_state
    adapted = run(parts.top, IDS_BL)
    with parts.without_adapter():
        assert torch.equal(run(parts.top, IDS_BL), base)
    assert torch.equal(run(parts.top, IDS_BL), adapted)
    assert (adapted - base).abs().max() > 0.1
    with pytest.raises(RuntimeError, match="LoRA"), partition(tiny(), TrainableConfig()).without_adapter():
        pass


def test_the_reference_copy_stays_when_the_policy_moves() -> None:
    parts = partition(tiny("tiny-random-untied"), last_n(1))
    reference, head = frozen_copy(parts.top), frozen_copy(parts.model.get_output_embeddings())
    below = parts.trunk_output(IDS_BL)
    before = head(run(reference, below)).clone()
    assert torch.equal(before, parts.model.lm_head(run(parts.top, below)))
    with torch.no_grad():
        for param in parts.model.parameters():
            if param.requires_grad:
                param.add_(0.1)
    assert torch.equal(head(run(reference, below)), before)
    assert not any(param.requires_grad for module in (reference, head) for param in module.parameters())
    assert (parts.model.lm_head(run(parts.top, below)) - before).abs().max() > 0.1


def test_a_frozen_head_is_not_copied() -> None:
    parts = partition(tiny(), last_n(1))
    head = parts.model.get_output_embeddings()
    assert frozen_copy(head) is head


@pytest.mark.parametrize("config", [last_n(1), lora(), TrainableConfig()], ids=["last_n", "lora", "full"])
def test_gradients_reach_what_is_trained_and_nothing_else(config: TrainableConfig) -> None:
    parts = partition(tiny("tiny-random-untied"), config)
    head = parts.model.get_output_embeddings()
    head(run(parts.top, parts.trunk_output(IDS_BL))).logsumexp(-1).sum().backward()
    with_gradient = {name for name, param in parts.model.named_parameters() if param.grad is not None}
    assert with_gradient == {name for name, param in parts.model.named_parameters() if param.requires_grad}


@pytest.mark.parametrize("config", [last_n(1), lora(), TrainableConfig()], ids=["last_n", "lora", "full"])
def test_a_critics_parts_are_its_model_too(config: TrainableConfig) -> None:
    model = load_scorer(resolve_model("tiny-random"), "fp32", new_head=True)
    names = [name for name, _ in model.named_parameters()]
    want = model.base_model(IDS_BL).last_hidden_state
    parts = partition(model, config)
    score_head(model).requires_grad_(True)
    torch.testing.assert_close(run(parts.top, parts.trunk_output(IDS_BL)), want, atol=1e-6, rtol=1e-6)
    assert sorted(name for name, _ in merged_parameters(parts, only_trained=False)) == sorted(names)
