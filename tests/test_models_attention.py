"""Attention by matrix products for short rows in bf16, against torch's SDPA."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rayrl.models.attention import MAX_LENGTH, NAME, is_short, short_attention, use_short_attention

sdpa = nn.functional.scaled_dot_product_attention


def tensors(length: int, value_width: int = 24) -> list[Tensor]:
    """Query [2, 6, L, 24], key [2, 3, L, 24], value [2, 3, L, V]; bf16 numbers."""
    torch.manual_seed(length)
    shapes = ((2, 6, length, 24), (2, 3, length, 24), (2, 3, length, value_width))
    return [torch.randn(shape).bfloat16() for shape in shapes]


@pytest.mark.parametrize("value_width", [24, 16])
@pytest.mark.parametrize("scaling", [None, 0.5])
@pytest.mark.parametrize("length", [1, 17, 200])
def test_outputs_and_gradients_are_sdpas_but_for_rounding(length: int, scaling: float | None, value_width: int) -> None:
    outward = torch.randn(2, 6, length, value_width)

    def run(dtype: torch.dtype, short: bool) -> list[Tensor]:
        given = [tensor.to(dtype).requires_grad_() for tensor in tensors(length, value_width)]
        if short:
            out = short_attention(*given, scaling, 0.0)
        else:
            out = sdpa(*given, is_causal=True, scale=scaling, enable_gqa=True)
        out.backward(outward.to(dtype))
        return [out, *(tensor.grad for tensor in given)]

    def gaps(found: list[Tensor]) -> list[float]:
        return [(f.float() - e).abs().max().item() for f, e in zip(found, exact, strict=True)]

    exact = run(torch.float32, short=False)
    assert gaps(run(torch.float32, short=True)) == pytest.approx([0.0] * 4, abs=1e-5)
    for ours, values in zip(gaps(run(torch.bfloat16, short=True)), exact, strict=True):
        assert ours <= 2**-6 * max(1.0, values.abs().max().item()), "bf16 has 8 bits; scores and shares are rounded"


def test_dropout_keeps_the_mean() -> None:
    query, key, value = tensors(64)
    torch.manual_seed(0)
    means = torch.stack([short_attention(query, key, value, None, 0.3).float() for _ in range(200)]).mean(0)
    assert (means - short_attention(query, key, value, None, 0.0).float()).abs().mean() < 0.05


def test_only_short_rows_in_bf16_go_this_way() -> None:
    assert is_short(torch.zeros(1, 1, MAX_LENGTH, 8, dtype=torch.bfloat16))
    assert not is_short(torch.zeros(1, 1, MAX_LENGTH + 1, 8, dtype=torch.bfloat16))
    assert not is_short(torch.zeros(1, 1, MAX_LENGTH, 8))


def tiny(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(3)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    config = LlamaConfig(vocab_size=50, intermediate_size=64, max_position_embeddings=1024, **shape)
    return LlamaForCausalLM(config).to(dtype).eval()


def test_a_model_gives_the_logits_that_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "rayrl.models.attention.short_attention",
        lambda *given: calls.append(given[0].shape) or short_attention(*given),
    )
    model = tiny(torch.bfloat16)
    ids = torch.randint(0, 50, (2, 33), generator=torch.Generator().manual_seed(0))
    padded = torch.ones_like(ids)
    padded[1, :9] = 0
    with torch.no_grad():
        plain, masked = model(ids).logits, model(ids, attention_mask=padded).logits
        long = model(ids.repeat(1, 16)).logits
        assert use_short_attention(model).config._attn_implementation == NAME
        assert (model(ids).logits - plain).abs().max() < 0.02
        assert len(calls) == 2, "a call a layer"
        assert torch.equal(model(ids, attention_mask=padded).logits, masked), "rows with padding take SDPA's way"
        assert torch.equal(model(ids.repeat(1, 16)).logits, long), "and long ones"
    assert len(calls) == 2


def test_other_models_are_left_alone() -> None:
    assert use_short_attention(tiny(torch.float32)).config._attn_implementation == "sdpa"
