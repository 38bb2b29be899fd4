"""Packed rows give what their parts give: hidden states, losses, gradients; and batches by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import CPU
from torch import Tensor

from rayrl.config.sft import SFTTrainableConfig
from rayrl.errors import UserError
from rayrl.models import attention, segments
from rayrl.models.attention import short_attention
from rayrl.models.builtin import resolve_model
from rayrl.models.loading import load_causal_lm
from rayrl.models.partition import partition
from rayrl.models.prompt_tuning import prompt_partition
from rayrl.models.segments import positions, segment_attention, use_segments
from rayrl.models.supervised import SupervisedBatch, SupervisedModule, make_batch

LENGTHS = (9, 4, 17, 2)


def sequences(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    drawn = [(rng.integers(3, 512, n).astype(np.int32), rng.random(n) < 0.6) for n in LENGTHS]
    return [(ids, mask & (np.arange(len(ids)) > 0)) for ids, mask in drawn]


def batch_of(rows: list[Any], packed: bool) -> SupervisedBatch:
    return make_batch(rows, list(range(len(rows))), packed=packed, pad_id=0, device=CPU)


def test_a_batch_by_hand() -> None:
    rows = [
        (np.array([5, 6, 7]), np.array([False, True, True])),
        (np.array([8, 9]), np.array([True, True])),  # nothing comes before a first token, so it never counts
    ]
    flat = make_batch(rows, [3, 1], packed=True, pad_id=0, device=CPU)
    assert flat.ids_BL.tolist() == [[5, 6, 7, 8, 9]]
    assert flat.predict_N.tolist() == [0, 1, 3]
    assert flat.target_N.tolist() == [6, 7, 9]
    assert flat.group_N.tolist() == [3, 3, 1]
    assert flat.lengths == (3, 2)
    assert flat.layout()["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    padded = make_batch(rows, [3, 1], packed=False, pad_id=0, device=CPU)
    assert padded.ids_BL.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert padded.predict_N.tolist() == [0, 1, 3]
    assert padded.target_N.tolist() == [6, 7, 9]
    assert padded.layout() == {}


def losses_and_gradients(packed: bool, batches: list[list[Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss of the batches, and its gradients, by a fresh model."""
    model = load_causal_lm(resolve_model("tiny-random"), "fp32")
    if packed:
        use_segments(model)
    module = SupervisedModule(partition(model, SFTTrainableConfig()).top, model.get_output_embeddings())
    loss = 0.0
    for rows in batches:
        batch = batch_of(rows, packed)
        nll = -module(batch.ids_BL, batch).sum()
        nll.backward()
        loss += nll.item()
    return loss, {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def test_a_packed_row_gives_the_loss_and_gradients_of_its_parts() -> None:
    rows = sequences()
    packed, packed_grads = losses_and_gradients(True, [rows])
    alone, alone_grads = losses_and_gradients(False, [[row] for row in rows])
    padded, padded_grads = losses_and_gradients(False, [rows])
    assert packed == pytest.approx(alone, rel=1e-5)
    assert padded == pytest.approx(alone, rel=1e-5)
    for name, want in alone_grads.items():
        for got in (packed_grads[name], padded_grads[name]):
            assert (got - want).norm() <= 1e-4 * want.norm(), name


def test_the_loss_is_the_plain_cross_entropy() -> None:
    """Against the model's own logits, one sequence at a time, with nothing of ours."""
    model = load_causal_lm(resolve_model("tiny-random-untied"), "fp32")
    want = 0.0
    for ids, mask in sequences():
        row = torch.from_numpy(ids).long()[None]
        logprobs = model(input_ids=row).logits.log_softmax(-1)[0, :-1]
        chosen = logprobs.gather(1, row[0, 1:, None])[:, 0]
        want -= chosen[torch.from_numpy(mask[1:])].sum().item()
    use_segments(model)
    module = SupervisedModule(model.base_model, model.get_output_embeddings())
    batch = batch_of(sequences(), packed=True)
    assert -module(batch.ids_BL, batch).sum().item() == pytest.approx(want, rel=1e-5)


def test_segments_equal_a_block_diagonal_mask() -> None:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    query, key, value = torch.randn(1, 4, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for window in (None, 3):
        mask = (owner[:, None] == owner[None]).tril()
        if window:
            mask = mask.triu(1 - window)
        want = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        got, _ = segment_attention(
            torch.nn.Identity(), query, key, value, None, sliding_window=window, segment_lengths=LENGTHS
        )
        torch.testing.assert_close(got, want.transpose(1, 2))


def blind(*args: Any, segment_lengths: Any = None, **kwargs: Any) -> Any:
    """Looks past segments."""
    return segment_attention(*args, **kwargs)


def softer(*args: Any, scaling: float = 1.0, **kwargs: Any) -> Any:
    """Keeps segments apart, but isn't what the model's own attention does."""
    return segment_attention(*args, scaling=scaling / 2, **kwargs)


@pytest.mark.parametrize("wrong", [blind, softer])
@pytest.mark.parametrize(("model", "dtype"), [("tiny-random", "fp32"), ("smollm2-135m-instruct", "bf16")])
def test_models_that_packing_would_change_are_refused(
    wrong: Any, model: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_segments(load_causal_lm(resolve_model(model), dtype))
    monkeypatch.setattr(segments, "segment_attention", wrong)
    with pytest.raises(UserError, match=r"doesn't give sequences that share a row .* set data\.packing=false"):
        use_segments(load_causal_lm(resolve_model(model), dtype))


def test_packing_is_measured_by_another_attention_than_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
        return 9 * short_attention(query, key, value, scaling, dropout)

    for module in (attention, segments):
        monkeypatch.setattr(module, "short_attention", wrong)
    with pytest.raises(UserError, match="doesn't give sequences that share a row"):
        use_segments(load_causal_lm(resolve_model("tiny-random"), "bf16"))


def test_the_frozen_trunk_knows_segments_too() -> None:
    model = load_causal_lm(resolve_model("tiny-random"), "fp32")
    use_segments(model)
    parts = partition(model, SFTTrainableConfig(mode="last_n", num_layers=1))
    batch = batch_of(sequences(), packed=True)
    below = parts.trunk_output(batch.ids_BL, **batch.layout())
    split = parts.top(inputs_embeds=below, use_cache=False, **batch.layout()).last_hidden_state
    whole = model.base_model(input_ids=batch.ids_BL, use_cache=False, **batch.layout()).last_hidden_state
    torch.testing.assert_close(split, whole)
    assert positions((2, 3), CPU).tolist() == [[0, 1, 0, 1, 2]]


@pytest.mark.parametrize("kind", ["prefix", "encoder"])
def test_virtual_tokens_are_all_that_trains(kind: str) -> None:
    model = load_causal_lm(resolve_model("tiny-random"), "fp32")
    projection = model.get_output_embeddings()
    parts = prompt_partition(model, SFTTrainableConfig(mode="p_tuning", prompt_kind=kind, prompt_tokens=4))
    module = SupervisedModule(parts.top, projection)
    batch = batch_of(sequences(), packed=False)
    logprobs = module(batch.ids_BL, batch)
    (-logprobs.sum()).backward()
    trained = {name for name, param in module.named_parameters() if param.grad is not None and param.grad.any()}
    assert trained and all("prompt_encoder" in name for name in trained)
    parts.adapter.eval()
    ours = module(batch.ids_BL, batch).detach()
    for i, (ids, mask) in enumerate(sequences()):
        row = torch.from_numpy(ids).long()[None]
        theirs = parts.adapter(input_ids=row).logits[0, -len(ids) :].log_softmax(-1)[:-1]
        chosen = theirs.gather(1, row[0, 1:, None])[:, 0][torch.from_numpy(mask[1:])]
        torch.testing.assert_close(ours[batch.group_N == i], chosen, atol=1e-4, rtol=1e-4)
