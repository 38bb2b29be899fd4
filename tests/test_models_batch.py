"""Padded batches, and log-probabilities and values that padding must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import make_rollout, make_rollouts

from rayrl.models.batch import from_arrays, micro_batches, pad_responses, to_arrays, token_batch, unpad
from rayrl.models.builtin import resolve_model
from rayrl.models.heads import CriticModule, PolicyModule
from rayrl.models.loading import load_causal_lm, load_scorer, score_head

sequences = st.lists(
    st.tuples(
        st.lists(st.integers(1, 99), min_size=1, max_size=6), st.lists(st.integers(1, 99), min_size=0, max_size=5)
    ),
    min_size=1,
    max_size=6,
).filter(lambda rows: any(response for _, response in rows))


def test_the_documented_example() -> None:
    batch = token_batch([make_rollout([5, 6], [7, 8]), make_rollout([5, 6, 7, 8], [9])], pad_id=0)
    assert batch.ids_BL.tolist() == [[5, 6, 7, 8, 0], [5, 6, 7, 8, 9]]
    assert batch.response_ids_BT.tolist() == [[7, 8], [9, 0]]
    assert batch.positions_BT.tolist() == [[1, 2], [3, 0]]
    assert batch.mask_BT.tolist() == [[True, True], [True, False]]


@given(sequences)
def test_every_valid_position_predicts_its_own_token(rows: list[tuple[list[int], list[int]]]) -> None:
    batch = token_batch([make_rollout(*row) for row in rows], pad_id=0)
    for i, (prompt, response) in enumerate(rows):
        assert batch.ids_BL[i, : len(prompt) + len(response)].tolist() == prompt + response
        assert not batch.ids_BL[i, len(prompt) + len(response) :].any()
        positions = batch.positions_BT[i][batch.mask_BT[i]]
        assert batch.ids_BL[i][positions + 1].tolist() == response == batch.response_ids_BT[i, : len(response)].tolist()
        assert positions.tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(response)))


@given(sequences)
def test_unpad_is_the_inverse_of_padding(rows: list[tuple[list[int], list[int]]]) -> None:
    batch = token_batch([make_rollout(*row) for row in rows], pad_id=0)
    values = [np.arange(len(response), dtype=np.float32) + i for i, (_, response) in enumerate(rows)]
    padded = pad_responses(values, batch.mask_BT.shape[1])
    assert not padded[~batch.mask_BT].any()
    back = unpad(padded, batch.mask_BT)
    assert [row.tolist() for row in back] == [row.tolist() for row in values]


@given(st.integers(0, 40), st.integers(1, 9))
def test_micro_batches_cover_each_row_once_in_order(rows: int, size: int) -> None:
    slices = list(micro_batches(rows, size))
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(rows))
    assert all(0 < part.stop - part.start <= size for part in slices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_back_from_arrays_bit_for_bit(dtype: torch.dtype) -> None:
    tensors = [torch.randn(2, 3).to(dtype), torch.zeros(0, 4, dtype=dtype)]
    back = from_arrays(to_arrays(tensors))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(back, tensors, strict=True))


@pytest.fixture(scope="module")
def policy() -> PolicyModule:
    model = load_causal_lm(resolve_model("tiny-random"), "fp32").requires_grad_(False)
    return PolicyModule(model.base_model, model.get_output_embeddings())


def test_logprobs_do_not_depend_on_what_else_is_in_the_batch(policy: PolicyModule) -> None:
    rollouts = make_rollouts(6)
    together = token_batch(rollouts, pad_id=0)
    logprobs, entropy = policy(together.ids_BL, together, 0.7, True)
    assert not logprobs[~together.mask_BT].any() and not entropy[~together.mask_BT].any()
    other_pad = token_batch([*rollouts, make_rollout([4] * 20, [5] * 20)], pad_id=77)
    padded, _ = policy(other_pad.ids_BL, other_pad, 0.7, True)
    for i, rollout in enumerate(rollouts):
        alone = token_batch([rollout], pad_id=0)
        want, want_entropy = policy(alone.ids_BL, alone, 0.7, True)
        length = len(rollout.response_ids_T)
        torch.testing.assert_close(logprobs[i, :length], want[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy[i, :length], want_entropy[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(padded[i, :length], want[0], atol=1e-5, rtol=1e-5)


def test_logprobs_are_those_of_the_models_own_logits(policy: PolicyModule) -> None:
    model = load_causal_lm(resolve_model("tiny-random"), "fp32").requires_grad_(False)
    rollouts = make_rollouts(3, seed=1)
    batch = token_batch(rollouts, pad_id=0)
    logprobs, _ = policy(batch.ids_BL, batch, 1.0)
    for row, rollout in zip(unpad(logprobs, batch.mask_BT), rollouts, strict=True):
        ids = torch.from_numpy(np.concatenate([rollout.prompt.token_ids_P, rollout.response_ids_T]))
        all_logprobs = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
        want = all_logprobs[len(rollout.prompt.token_ids_P) - 1 :]
        np.testing.assert_allclose(row, want.numpy(), atol=1e-5)


def test_values_are_read_where_each_token_is_chosen() -> None:
    model = load_scorer(resolve_model("tiny-random"), "fp32", new_head=True)
    head = score_head(model)
    torch.nn.init.normal_(head.weight)
    rollouts = make_rollouts(3, seed=2)
    batch = token_batch(rollouts, pad_id=0)
    values = unpad(CriticModule(model.base_model, head)(batch.ids_BL, batch), batch.mask_BT)
    for row, rollout in zip(values, rollouts, strict=True):
        ids = torch.from_numpy(np.concatenate([rollout.prompt.token_ids_P, rollout.response_ids_T]))
        hidden = model.base_model(ids[None]).last_hidden_state[0]
        first = len(rollout.prompt.token_ids_P) - 1
        want = head(hidden)[first : first + len(row), 0]
        np.testing.assert_allclose(row, want.detach().numpy(), atol=1e-5)
