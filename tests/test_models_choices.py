"""Choices by log-probability: the same numbers as one forward pass a continuation, however questions are run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, MistralConfig, PretrainedConfig

from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model
from rayrl.models.choice_trees import chains, tree
from rayrl.models.choices import PREFIX_TOKENS, ChoiceQuestion, ChoiceScorer, prefix_groups

VOCABULARY = 512


def scorer(model: str = "tiny-random", max_batch_tokens: int = 200) -> ChoiceScorer:
    return ChoiceScorer(resolve_model(model), "fp32", pad_id=0, threads=None, max_batch_tokens=max_batch_tokens)


def draw(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(3, VOCABULARY, length)


def one_token(seed: int = 0) -> list[ChoiceQuestion]:
    rng = np.random.default_rng(seed)
    return [ChoiceQuestion(draw(rng, length), [draw(rng, 1) for _ in range(5)]) for length in (40, 7, 90, 1, 23)]


def mixed(seed: int = 1) -> list[ChoiceQuestion]:
    """Continuations of many lengths; some begin alike, and one is the beginning of another."""
    rng = np.random.default_rng(seed)
    questions = []
    for length in (31, 5, 60, 12):
        start = draw(rng, 3)
        branches = [np.concatenate([start, draw(rng, count)]) for count in (1, 4, 2)]
        questions.append(ChoiceQuestion(draw(rng, length), [*branches, start, draw(rng, 1), draw(rng, 9), start[:2]]))
    return questions


def alike(seed: int = 2) -> list[ChoiceQuestion]:
    """Questions after the same long beginning, and two of others."""
    rng = np.random.default_rng(seed)
    start = draw(rng, PREFIX_TOKENS + 40)
    prompts = [np.concatenate([start, draw(rng, length)]) for length in range(3, 12)]
    return [ChoiceQuestion(prompt, [draw(rng, 2), draw(rng, 1), draw(rng, 4)]) for prompt in prompts] + mixed()[:2]


@torch.no_grad()
def one_by_one(model: str, questions: list[ChoiceQuestion]) -> list[np.ndarray]:
    """transformers' own forward pass on prompt and continuation, the whole logits, one continuation at a time."""
    network = AutoModelForCausalLM.from_pretrained(resolve_model(model), dtype=torch.float32).eval()
    sums = []
    for question in questions:
        found = []
        for continuation in question.continuations:
            ids = torch.from_numpy(np.concatenate([question.prompt_ids_P, continuation]))
            logprobs = network(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            found.append(logprobs.gather(1, ids[1:, None])[-len(continuation) :].sum().item())
        sums.append(np.array(found))
    return sums


def gap(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    assert [len(sums) for sums in left] == [len(sums) for sums in right]
    return float(np.abs(np.concatenate(left) - np.concatenate(right)).max())


@pytest.mark.parametrize("questions", [one_token(), mixed(), alike(), one_token() + mixed() + alike()])
@pytest.mark.parametrize("model", ["tiny-random", "tiny-random-untied"])
def test_sums_are_those_of_one_pass_a_continuation(model: str, questions: list[ChoiceQuestion]) -> None:
    ours = scorer(model)
    assert ours.layout == "trees"
    expected = one_by_one(model, questions)
    assert gap(ours.score(questions), expected) < 1e-4
    ours._model.set_attn_implementation("sdpa")
    assert gap(ours._score(questions, "rows"), expected) < 1e-4


def test_batches_and_order_move_nothing_but_rounding() -> None:
    questions = one_token() + mixed() + alike()
    expected = scorer(max_batch_tokens=10_000).score(questions)
    assert gap(scorer(max_batch_tokens=1).score(questions), expected) < 1e-4
    order = np.random.default_rng(3).permutation(len(questions))
    shuffled = scorer().score([questions[i] for i in order])
    assert gap(shuffled, [expected[i] for i in order]) < 1e-4
    ours = scorer()
    assert gap([ours.score([question])[0] for question in questions], expected) < 1e-4


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (MistralConfig(**GROUPED, sliding_window=20), "trees"),
        (BloomConfig(**SHAPE), "rows"),  # its attention is its own
        (Gemma2Config(**GROUPED, final_logit_softcapping=1.5), "trees"),  # it caps its logits
    ],
)
def test_models_that_do_more(config: PretrainedConfig, layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    questions = one_token() + mixed() + alike()
    ours = scorer(str(tmp_path))
    assert ours.layout == layout
    assert gap(ours.score(questions), one_by_one(str(tmp_path), questions)) < 1e-4


def test_a_tree_by_hand() -> None:
    prompt = np.array([5, 6, 7])
    continuations = [np.array([8]), np.array([9, 8]), np.array([9, 4, 3])]
    row = tree(prompt, continuations, first=10, shared=1)
    assert row.ids_L.tolist() == [6, 7, 9, 4]
    assert row.depth_L.tolist() == [1, 2, 3, 4]
    assert row.parent_L.tolist() == [-1, 0, 1, 2]
    assert row.predict_N.tolist() == [1, 1, 2, 1, 2, 3]
    assert row.target_N.tolist() == [8, 9, 8, 9, 4, 3]
    assert row.option_N.tolist() == [10, 11, 11, 12, 12, 12]
    assert row.mask(0) is None  # nothing branches among what is fed
    assert row.num_predicting == 3
    forked = tree(prompt, [np.array([8, 1]), np.array([9, 1])], first=0, shared=0)
    mask = forked.mask(1)
    assert mask is not None
    assert (mask == 0).int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]
    assert forked.depth_L.tolist() == [0, 1, 2, 3, 3]
    rows = chains(prompt, continuations, first=10)
    assert [row.ids_L.tolist() for row in rows] == [[5, 6, 7], [5, 6, 7, 9], [5, 6, 7, 9, 4]]
    assert [row.option_N.tolist() for row in rows] == [[10], [11, 11], [12, 12, 12]]


def test_which_prompts_share_a_beginning() -> None:
    questions = alike()
    prompts = [question.prompt_ids_P for question in questions]
    assert prefix_groups(prompts) == [(list(range(9)), PREFIX_TOKENS + 40), ([9, 10], 0)]
    assert prefix_groups(prompts[:3]) == [([0, 1, 2], 0)]  # too little to save
    same = [prompts[0]] * 10
    assert prefix_groups(same) == [(list(range(10)), len(prompts[0]) - 1)]


def test_counts_and_what_cannot_be_asked() -> None:
    question = ChoiceQuestion(np.arange(5), [np.array([7]), np.array([8, 9, 7])])
    assert question.counts.tolist() == [1, 3]
    assert question.longest == 7
    ours = scorer()
    assert ours.window == 2048
    assert ours.score([]) == []
    with pytest.raises(UserError, match="question 1 needs 2050 positions, the model has 2048"):
        ours.score([question, ChoiceQuestion(np.full(2048, 5), question.continuations)])
    for bad in (ChoiceQuestion(np.arange(0), question.continuations), ChoiceQuestion(np.arange(3), [np.arange(0)])):
        with pytest.raises(ValueError, match="question 0 has an empty"):
            ours.score([bad])
