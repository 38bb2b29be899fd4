"""Loading: dtypes, hashes, score heads, and the frozen scorers that read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_cases import PAD_ID, make_rollouts
from transformers import AutoModelForSequenceClassification

from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model, tiny_checkpoint
from rayrl.models.loading import (
    check_same_shape,
    check_same_vocabulary,
    device,
    load_causal_lm,
    load_scorer,
    resolve_dtype,
    score_head,
    weights_hash,
)
from rayrl.models.scorer import ReferenceScorer, RewardModel

TINY = resolve_model("tiny-random")


@pytest.fixture(scope="module")
def reward_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence-classification checkpoint with a random head, as reward-model training saves one."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    model = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=1)
    torch.manual_seed(3)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("fp32") is torch.float32 and resolve_dtype("bf16") is torch.bfloat16
    for amx, gpu in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert resolve_dtype("auto") is (torch.bfloat16 if amx or gpu else torch.float32)


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_models_load_in_the_dtype_asked_for(dtype: str, expected: torch.dtype) -> None:
    model = load_causal_lm(TINY, dtype)
    assert {param.dtype for param in model.parameters()} == {expected}
    assert not model.training
    assert load_scorer(TINY, dtype, new_head=True).score.weight.dtype is expected


def test_the_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy)
    (copy / "config.json").write_text("{}", "utf-8")
    assert weights_hash(copy) == weights_hash(TINY) and len(weights_hash(TINY)) == 64
    assert weights_hash(resolve_model("tiny-random-untied")) != weights_hash(TINY)
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert weights_hash(copy) != weights_hash(TINY)


def test_a_new_head_gives_0_everywhere() -> None:
    model = load_scorer(TINY, "fp32", new_head=True)
    assert score_head(model).weight.shape == (1, 64)
    assert not model(torch.arange(3, 15)[None]).logits.any()


def test_a_checkpoint_without_a_trained_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"no trained score head \(score.weight is missing\)"):
        load_scorer(TINY, "fp32")


def test_a_model_without_a_linear_score_head_is_refused() -> None:
    with pytest.raises(UserError, match="LlamaForCausalLM has no linear head"):
        score_head(load_causal_lm(TINY, "fp32"))


def test_shapes_and_vocabularies_that_differ_are_refused(tmp_path: Path) -> None:
    check_same_shape(TINY, resolve_model("tiny-random-untied"), "reference")
    check_same_vocabulary(TINY, resolve_model("tiny-random-untied"), "reward r")
    deeper = str(tiny_checkpoint(tmp_path, layers=3))
    with pytest.raises(
        UserError, match=f"policy and reference differ in num_hidden_layers: 2 in {TINY}, 3 in {deeper}"
    ):
        check_same_shape(TINY, deeper, "reference")
    smaller = str(tiny_checkpoint(tmp_path, vocab_size=400))
    with pytest.raises(UserError, match=r"reward r and the policy .* \(400 and 512 tokens"):
        check_same_vocabulary(TINY, smaller, "reward r")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_equal_transformers_own_for_each_sequence_alone(reward_checkpoint: Path, batch_size: int) -> None:
    rollouts = make_rollouts(8)
    theirs = AutoModelForSequenceClassification.from_pretrained(reward_checkpoint).eval()
    want = []
    with torch.no_grad():
        for rollout in rollouts:
            ids = np.concatenate([rollout.prompt.token_ids_P, rollout.response_ids_T])
            want.append(theirs(torch.from_numpy(ids)[None]).logits.item())
    scores = RewardModel(str(reward_checkpoint), "fp32", PAD_ID, batch_size).score(rollouts)
    np.testing.assert_allclose(scores, want, atol=1e-4)
    assert np.std(scores) > 0.1
    assert RewardModel(str(reward_checkpoint), "fp32", 9, batch_size).score(rollouts) == pytest.approx(scores, abs=1e-4)


def test_bf16_scores_are_not_rounded_to_bf16(reward_checkpoint: Path) -> None:
    scores = torch.tensor(RewardModel(str(reward_checkpoint), "bf16", PAD_ID, 8).score(make_rollouts(8)))
    assert (scores != scores.bfloat16().float()).sum() >= 6


def test_a_reference_is_frozen_and_reads_at_the_sampling_temperature() -> None:
    from rayrl.models.batch import token_batch

    rollouts = make_rollouts(3)
    batch = token_batch(rollouts, PAD_ID)
    scorer = ReferenceScorer(TINY, "fp32", 0.7, PAD_ID)
    assert not any(param.requires_grad for param in scorer.module.parameters())
    logprobs, _ = scorer.module(batch.ids_BL, batch, scorer.temperature)
    assert not logprobs.requires_grad
    model = load_causal_lm(TINY, "fp32")
    ids = torch.from_numpy(np.concatenate([rollouts[0].prompt.token_ids_P, rollouts[0].response_ids_T]))
    all_logprobs = torch.log_softmax(model(ids[None]).logits[0] / 0.7, -1)
    length = len(rollouts[0].response_ids_T)
    want = all_logprobs[-length - 1 : -1].gather(1, ids[-length:, None])[:, 0]
    torch.testing.assert_close(logprobs[0, :length], want.detach(), atol=1e-5, rtol=1e-5)


def test_no_gpu_means_the_cpu() -> None:
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")
