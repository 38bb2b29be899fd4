"""The Hugging Face engine: its numbers are the trainer's, whatever it is batched with and after every sync."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from rayrl.config.parts import RolloutConfig
from rayrl.models.builtin import resolve_model
from rayrl.models.engine import Completion, HFEngine, load_engine
from rayrl.models.loading import load_causal_lm
from rayrl.models.weights import pack

END_ID, PAD_ID = 2, 0
PROMPTS = [np.array([5, 6, 7]), np.array([9]), np.array([30, 31, 32, 33, 34, 35, 36]), np.array([11, 12])]
MODELS = ["tiny-random", "tiny-random-untied"]


def make_engine(model: str, end_token_ids: list[int] | None = None, **keys: Any) -> HFEngine:
    config = RolloutConfig(backend="hf", dtype="fp32", **{"max_new_tokens": 10, **keys})
    engine = load_engine(model, config, [END_ID] if end_token_ids is None else end_token_ids, PAD_ID)
    assert isinstance(engine, HFEngine)
    return engine


@torch.no_grad()
def trainer_logprobs(model: PreTrainedModel, prompt: np.ndarray, one: Completion, temperature: float) -> np.ndarray:
    ids = torch.from_numpy(np.concatenate([prompt, one.token_ids_T]))
    logp = torch.log_softmax(model(ids[None]).logits[0, len(prompt) - 1 : -1] / temperature, -1)
    return logp.gather(1, torch.from_numpy(one.token_ids_T)[:, None])[:, 0].numpy()


def gap(model: PreTrainedModel, engine: HFEngine, temperature: float = 1.0) -> float:
    """Largest difference of log-probabilities of sampled tokens, over prompts of different lengths."""
    answers = engine.generate(PROMPTS, 2, seed=1)
    return max(
        float(np.abs(trainer_logprobs(model, prompt, one, temperature) - one.logprobs_T).max())
        for prompt, group in zip(PROMPTS, answers, strict=True)
        for one in group
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_the_trainers_for_left_padded_prompts(name: str, temperature: float) -> None:
    path = resolve_model(name)
    assert gap(load_causal_lm(path, "fp32"), make_engine(path, temperature=temperature), temperature) < 1e-4


def test_the_same_seed_gives_the_same_tokens() -> None:
    path = resolve_model("tiny-random")
    first, again = (make_engine(path).generate(PROMPTS, 2, seed=5) for _ in range(2))
    other = make_engine(path).generate(PROMPTS, 2, seed=6)
    flat = [[one.token_ids_T.tolist() for group in answers for one in group] for answers in (first, again, other)]
    assert flat[0] == flat[1] != flat[2]
    assert [len(group) for group in first] == [2] * 4
    assert first[0][0].token_ids_T.tolist() != first[0][1].token_ids_T.tolist()


def test_small_batches_sample_every_prompt() -> None:
    answers = make_engine(resolve_model("tiny-random"), max_num_seqs=3).generate(PROMPTS, 2, seed=5)
    assert [len(group) for group in answers] == [2] * 4


def test_an_answer_stops_at_the_first_end_token_and_keeps_it() -> None:
    """Half the vocabulary ends an answer, so that most answers end early and some at their first token."""
    ends = list(range(256, 512))
    answers = [
        one for group in make_engine(resolve_model("tiny-random"), ends).generate(PROMPTS, 16, 3) for one in group
    ]
    for one in answers:
        assert len(one.token_ids_T) == len(one.logprobs_T)
        assert one.ended == (one.token_ids_T[-1] >= 256)
        assert (one.token_ids_T[:-1] < 256).all()
        assert one.ended or len(one.token_ids_T) == 10
    assert {len(one.token_ids_T) for one in answers} >= {1, 2}


def test_an_answer_cut_at_the_limit_says_so() -> None:
    answers = make_engine(resolve_model("tiny-random"), [], max_new_tokens=3).generate(PROMPTS, 1, 3)
    assert all(len(one.token_ids_T) == 3 and not one.ended for group in answers for one in group)


def test_a_checkpoints_own_sampling_settings_are_not_used(tmp_path: Path) -> None:
    """Many chat models ship top_k and a repetition penalty; log-probabilities would mean something else with them."""
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("tiny-random"), folder)
    GenerationConfig(top_k=3, top_p=0.5, repetition_penalty=1.7, temperature=0.3, do_sample=True).save_pretrained(
        folder
    )
    assert gap(load_causal_lm(str(folder), "fp32"), make_engine(str(folder))) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_new_weights_change_what_it_samples_and_come_with_their_version(name: str) -> None:
    path = resolve_model(name)
    engine = make_engine(path)
    changed = load_causal_lm(path, "fp32")
    torch.manual_seed(0)
    with torch.no_grad():
        for param in changed.parameters():
            param.add_(0.05 * torch.randn_like(param))
    before = engine.generate(PROMPTS, 1, seed=1)
    assert gap(changed, engine) > 0.05
    engine.begin_update()
    for bucket in pack(changed.named_parameters(), bucket_bytes=20_000):
        engine.load_bucket(bucket)
    engine.finish_update(7)
    assert gap(changed, engine) < 1e-4
    after = engine.generate(PROMPTS, 1, seed=1)
    assert {one.weight_version for group in before for one in group} == {0}
    assert {one.weight_version for group in after for one in group} == {7}
    assert [g[0].token_ids_T.tolist() for g in before] != [g[0].token_ids_T.tolist() for g in after]


def test_a_bucket_outside_an_update_is_an_error() -> None:
    engine = make_engine(resolve_model("tiny-random"))
    (bucket,) = pack([("model.norm.weight", torch.ones(64))], bucket_bytes=1 << 20)
    with pytest.raises(RuntimeError, match="begin_update"):
        engine.load_bucket(bucket)
    engine.begin_update()
    engine.load_bucket(bucket)
    engine.finish_update(1)
    with pytest.raises(RuntimeError, match="begin_update"):
        engine.load_bucket(bucket)


def test_it_says_what_it_is() -> None:
    assert "generate" in make_engine(resolve_model("tiny-random")).describe()["engine"]


@torch.no_grad()
def test_at_temperature_0_every_token_is_the_likeliest_whatever_the_seed() -> None:
    path = resolve_model("tiny-random")
    engine = make_engine(path, end_token_ids=[], temperature=0.0, max_new_tokens=5)
    first, again = (engine.generate(PROMPTS, 1, seed=seed) for seed in (1, 2))
    model = load_causal_lm(path, "fp32")
    for prompt, (one,), (other,) in zip(PROMPTS, first, again, strict=True):
        ids = prompt.tolist()
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert one.token_ids_T.tolist() == other.token_ids_T.tolist() == ids[len(prompt) :]


def test_a_repetition_penalty_makes_tokens_that_were_there_rarer() -> None:
    path = resolve_model("tiny-random")
    repeated = []
    for penalty in (0.3, 1.0, 5.0):  # below 1 it rewards them
        engine = make_engine(path, [], temperature=0.0, max_new_tokens=10, repetition_penalty=penalty)
        answers = [one.token_ids_T.tolist() for (one,) in engine.generate(PROMPTS, 1, seed=0)]
        repeated.append(sum(len(ids) - len(set(ids)) for ids in answers))
    assert repeated[0] > repeated[2] and repeated[0] >= repeated[1] >= repeated[2]
