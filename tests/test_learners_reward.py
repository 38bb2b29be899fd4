"""A reward-model rank: its loss, what it trains, what it saves, and that PPO would read the same scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reward_cases import learner, pair_rows, read, reward_config, write_jsonl
from torch import nn
from transformers import AutoModelForSequenceClassification

from rayrl.algorithms.ranking_loss import ranking_loss
from rayrl.errors import RunError
from rayrl.learners.preferences import cut, pair_batch
from rayrl.models.scorer import RewardModel
from rayrl.stages.reward_data import RewardData
from rayrl.stages.reward_worker import heldout_metrics

CPU = torch.device("cpu")
TRAIN: dict[str, dict[str, Any]] = {
    "full": {},
    "last_n": {"mode": "last_n", "num_layers": 1},
    "lora": {"mode": "lora", "lora_rank": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RewardData:
    return read(reward_config(write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", pair_rows(60))))


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


@pytest.mark.parametrize("mode", TRAIN)
def test_learns_to_prefer_questions_and_saves_what_ppo_reads(
    one_rank: None, data: RewardData, mode: str, tmp_path: Path
) -> None:
    rank = learner(data, TRAIN[mode], optimizer={"lr": 3e-3})
    assert rank.heldout_scores().tolist() == [0.0] * len(data.heldout.answers)  # a new head starts at zero
    metrics = [rank.step(step) for step in range(12)]
    assert metrics[0]["loss/ranking"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics[-1]["loss/ranking"] < 0.4
    scores = rank.heldout_scores()
    assert heldout_metrics(data.heldout, scores)["accuracy"] > 0.9
    rank.save_model(tmp_path / "model")
    ppo = RewardModel(str(tmp_path / "model"), "fp32", data.pad_id, batch_size=3)
    assert ppo.score(data.heldout.answers) == pytest.approx(scores.tolist(), abs=1e-4)
    standard = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32)
    rows = [torch.from_numpy(np.concatenate([a.prompt.token_ids_P, a.response_ids_T])) for a in data.heldout.answers]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=data.pad_id)
    with torch.no_grad():
        logits = standard(input_ids=ids, attention_mask=(ids != data.pad_id).long()).logits[:, 0]
    assert logits.tolist() == pytest.approx(scores.tolist(), abs=1e-4)


def test_a_step_is_the_loss_of_its_prompts_whatever_the_micro_batches(one_rank: None, data: RewardData) -> None:
    """One micro-batch or four: same loss, same gradient norm, same weights after the step."""
    whole = learner(data, micro_batch_size=64, prompts_per_step=8)
    parts = learner(data, micro_batch_size=4, prompts_per_step=8)
    nn.init.normal_(whole.train.engine.module.head.weight, generator=torch.Generator().manual_seed(0))
    parts.train.engine.module.head.load_state_dict(whole.train.engine.module.head.state_dict())
    prompts = whole._order.batch(0)
    rows, batch = pair_batch(data.train, prompts, CPU)
    with torch.no_grad():
        expected = ranking_loss(whole._scores(rows), batch).item() / 8
    first, second = whole.step(0), parts.step(0)
    assert first["loss/ranking"] == pytest.approx(expected, rel=1e-5)
    assert second == pytest.approx(first, rel=1e-3)
    assert whole._accumulation == 1 and parts._accumulation == 8


def test_micro_batches_hold_whole_prompts(data: RewardData) -> None:
    parts = cut(data.train, [5, 3, 8, 1, 0], 2)
    assert sorted(i for part in parts for i in part) == [0, 1, 3, 5, 8] and [len(part) for part in parts] == [3, 2]
    rows, batch = pair_batch(data.train, parts[0], CPU)
    assert len(rows) == len(set(rows)) == 5 * 3
    for number, i in enumerate(parts[0]):
        wanted = [(pair.better, pair.worse) for pair in data.train.groups[i].pairs]
        mine = batch.prompt_N == number
        got = zip(batch.better_N[mine].tolist(), batch.worse_N[mine].tolist(), strict=True)
        assert [(rows[a], rows[b]) for a, b in got] == wanted


def test_last_n_keeps_the_trunk_and_leaves_it_alone(one_rank: None, data: RewardData) -> None:
    kept = learner(data, TRAIN["last_n"])
    none = learner(data, TRAIN["last_n"], cache_gb=0)
    start = parameters(kept.parts.model)
    assert kept._cache.keeps and not none._cache.keeps
    ran = [kept.step(step) for step in range(6)], [none.step(step) for step in range(6)]
    for ours, theirs in zip(*ran, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert len(none._cache) == 0 and len(kept._cache) > 0
    kept.heldout_scores()
    before = len(kept._cache)
    kept._cache._parts.trunk = _Never()
    for step in range(6):
        kept.step(step)
    kept.heldout_scores()
    assert len(kept._cache) == before
    changed = {name for name, value in parameters(kept.parts.model).items() if not torch.equal(value, start[name])}
    assert changed and all(name.startswith(("model.layers.1.", "model.norm", "score")) for name in changed)


class _Never(nn.Module):
    def forward(self, **_: Any) -> None:
        raise AssertionError("the trunk ran again")


def test_weights_that_arent_finite_arent_saved(one_rank: None, data: RewardData, tmp_path: Path) -> None:
    rank = learner(data)
    with torch.no_grad():
        rank.parts.model.get_parameter("model.norm.weight")[3] = float("nan")
    with pytest.raises(RunError, match=r"model\.norm\.weight.*isn't saved"):
        rank.save_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(RunError, match="aren't finite"):
        rank.heldout_scores()
    with pytest.raises(RunError, match="step 0: the ranking loss is nan"):
        rank.step(0)


@pytest.mark.parametrize("mode", ["full", "last_n", "lora"])
def test_four_steps_saved_and_four_more_are_eight(one_rank: None, data: RewardData, mode: str, tmp_path: Path) -> None:
    train = TRAIN[mode] | ({"lora_dropout": 0.1} if mode == "lora" else {})
    straight = learner(data, train)
    for step in range(8):
        straight.step(step)
    first = learner(data, train)
    for step in range(4):
        first.step(step)
    first.train.save(tmp_path / "state")
    second = learner(data, train)
    second.train.load(tmp_path / "state")
    for step in range(4, 8):
        second.step(step)
    assert second.heldout_scores().tolist() == straight.heldout_scores().tolist()
    assert second.train.learning_rate == straight.train.learning_rate


def test_starts_from_a_reward_model_with_its_head(one_rank: None, data: RewardData, tmp_path: Path) -> None:
    rank = learner(data)
    for step in range(4):
        rank.step(step)
    rank.save_model(tmp_path / "model")
    from rayrl.config.reward import RewardModelConfig
    from rayrl.learners.reward import RewardLearner

    config = RewardModelConfig(model=str(tmp_path / "model"), dtype="fp32")
    again = RewardLearner(config, config.model, False, data.train, data.heldout, 4, 4, data.pad_id, 0, 0, 1)
    assert again.heldout_scores().tolist() == pytest.approx(rank.heldout_scores().tolist(), abs=1e-5)
