"""One rank of fine-tuning, on the real tiny model: losses, shares, skipped steps, the guard, export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import write_examples
from learner_cases import PAD_ID
from transformers import AutoModelForCausalLM

from rayrl.config.sft import GuardConfig, SFTModelConfig
from rayrl.data.chat_masks import Encoded
from rayrl.data.examples import Examples, ExamplesWriter
from rayrl.errors import RunError
from rayrl.learners.gradient_guard import GradientGuard
from rayrl.learners.sft import SFTLearner
from rayrl.models.builtin import resolve_model

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def data(tmp_path: Path) -> Examples:
    """Two sources of six and three examples, 5 to 20 tokens each, the second half of each counted."""
    rng = np.random.default_rng(0)

    def row() -> Encoded:
        length = int(rng.integers(5, 21))
        return Encoded(rng.integers(3, 512, length).astype(np.int32), np.arange(length) >= length // 2)

    return write_examples(tmp_path / "data", [[row() for _ in range(6)], [row() for _ in range(3)]])


def learner(packed: bool = True, guard: dict[str, Any] | None = None, batch_size: int = 2, **config: Any) -> SFTLearner:
    settings = {"model": "tiny-random", "dtype": "fp32", "micro_batch_size": 1, "optimizer": {"lr": 1e-3}, **config}
    return SFTLearner(
        SFTModelConfig.model_validate(settings),
        GuardConfig.model_validate(guard or {}),
        resolve_model("tiny-random"),
        packed=packed,
        pad_id=PAD_ID,
        batch_size=batch_size,
        total_steps=50,
        num_sources=2,
        seed=0,
        rank=0,
        world=1,
    )


def counted(data: Examples, rows: list[list[int]]) -> int:
    return int(sum(data.counted[i] for row in rows for i in row))


def test_examples_come_back_from_disk(tmp_path: Path) -> None:
    made = [Encoded(np.arange(n, dtype=np.int32), np.arange(n) > 1) for n in (3, 5, 2)]
    loaded = write_examples(tmp_path, [made[:2], [], made[2:]])
    assert len(loaded) == 3 and loaded.sizes(3) == [2, 0, 1]
    assert loaded.lengths.tolist() == [3, 5, 2] and loaded.counted.tolist() == [1, 3, 0]
    for i, one in enumerate(made):
        ids, mask = loaded.example(i)
        assert ids.tolist() == one.ids.tolist() and mask.tolist() == one.mask.tolist()
    with ExamplesWriter(tmp_path) as writer, pytest.raises(ValueError, match="source 0 after one of 1"):
        writer.add(1, made[0])
        writer.add(0, made[0])
    assert len(write_examples(tmp_path, [])) == 0


def test_packed_padded_and_split_steps_train_alike(data: Examples) -> None:
    """The same nine examples: in two packed rows, in nine padded ones, and in other micro-batches."""
    packed_rows = [[0, 1, 2, 6], [3, 4, 5, 7, 8]]
    results = []
    for one, rows in (
        (learner(batch_size=2), packed_rows),
        (learner(batch_size=2, micro_batch_size=2), packed_rows),
        (learner(batch_size=2, gradient_checkpointing=True), packed_rows),
        (learner(packed=False, batch_size=9, micro_batch_size=4), [[i] for i in range(9)]),
    ):
        metrics = [one.step(step, rows, data, counted(data, rows)) for step in range(2)]
        results.append(metrics)
    for got in results[1:]:
        for ours, theirs in zip(got, results[0], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)
    first = results[0][0]
    assert first["share/0"] + first["share/1"] == pytest.approx(1)
    assert first["share/1"] == pytest.approx(data.counted[6:].sum() / data.counted.sum())
    assert results[0][1]["loss/train"] < first["loss/train"]


def test_sums_are_the_losses_by_group(data: Examples) -> None:
    one = learner(micro_batch_size=2)
    rows = [[0, 1, 2, 6], [3, 4, 5, 7, 8]]
    sequences = [[data.example(i) for i in row] for row in rows]
    sums, tokens = one.sums(sequences, rows, 9)
    assert tokens.tolist() == data.counted.tolist()
    loss = one.step(0, rows, data, counted(data, rows))["loss/train"]
    assert -sums.sum() / tokens.sum() == pytest.approx(loss, rel=1e-5)
    alone, _ = one.sums([[data.example(7)]], [[0]], 1)
    assert math.isfinite(alone[0])


def test_a_last_step_with_fewer_rows_than_micro_batches(data: Examples) -> None:
    few, exact = learner(batch_size=4), learner(batch_size=1)
    got = few.step(0, [[0, 6]], data, counted(data, [[0, 6]]))
    assert got == pytest.approx(exact.step(0, [[0, 6]], data, counted(data, [[0, 6]])), rel=1e-4)


@pytest.mark.parametrize("train", [{}, {"mode": "lora"}, {"mode": "last_n", "num_layers": 1}])
def test_the_exported_model_is_the_trained_one(tmp_path: Path, train: dict[str, Any], data: Examples) -> None:
    one = learner(train=train)
    rows = [[0, 1, 2], [6, 7]]
    for step in range(3):
        one.step(step, rows, data, counted(data, rows))
    one.save_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    start = AutoModelForCausalLM.from_pretrained(resolve_model("tiny-random"))
    ids, mask = data.example(0)
    sums, _ = one.sums([[(ids, mask)]], [[0]], 1)
    row = torch.from_numpy(np.asarray(ids)).long()[None]
    logprobs = [
        m(input_ids=row).logits.log_softmax(-1)[0, :-1].gather(1, row[0, 1:, None])[:, 0] for m in (model, start)
    ]
    trained, untrained = (lp[torch.from_numpy(np.asarray(mask)[1:])].sum().item() for lp in logprobs)
    assert trained == pytest.approx(sums[0], rel=1e-4)
    assert trained > untrained + 0.01


def test_weights_that_arent_finite_are_not_saved(tmp_path: Path) -> None:
    one = learner()
    with torch.no_grad():
        next(iter(one.parts.model.parameters()))[0, 0] = math.nan
    with pytest.raises(RunError, match="1 weights of the model aren't finite"):
        one.save_model(tmp_path)


def test_a_step_that_isnt_finite_changes_nothing_and_is_counted(data: Examples) -> None:
    one = learner(guard={"max_skipped": 2})
    rows = [[0, 1], [6]]
    one.step(0, rows, data, counted(data, rows))
    before = [param.detach().clone() for param in one.parts.model.parameters()]
    one.guard.loss_scale = math.inf
    metrics = one.step(1, rows, data, counted(data, rows))
    assert metrics["guard/skipped"] == 1.0 and "grad_norm" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(before, one.parts.model.parameters(), strict=True))
    with pytest.raises(RunError, match="the gradient of 2 steps in a row isn't finite"):
        one.step(2, rows, data, counted(data, rows))


def test_an_explosion_lowers_loss_scale_and_rate() -> None:
    """Median 1 of eight norms, factor 10: 10 passes, 11 explodes; norms are those of the unscaled loss."""
    guard = GradientGuard(GuardConfig(factor=10, window=16, loss_scale=0.5, rate_decay=0.9))
    for step in range(8):
        assert guard.observe(1.0, step)["guard/exploded"] == 0.0
    assert guard.observe(10.0, 8)["guard/exploded"] == 0.0
    logged = guard.observe(11.0, 9)
    assert logged == {"guard/exploded": 1.0, "guard/loss_scale": 0.5, "guard/rate_scale": 0.9}
    assert guard.observe(5.0, 10)["guard/exploded"] == 0.0  # 10 unscaled
    assert guard.observe(5.5, 11)["guard/exploded"] == 1.0
    assert guard.loss_scale == 0.25 and guard.rate_scale == pytest.approx(0.81)
    other = GradientGuard(guard.config)
    other.restore(guard.state())
    assert other == guard


def test_without_a_factor_nothing_explodes() -> None:
    guard = GradientGuard(GuardConfig(factor=None))
    assert [guard.observe(norm, 0)["guard/exploded"] for norm in [1.0] * 9 + [1e9]] == [0.0] * 10


def test_the_rate_follows_the_guard(data: Examples) -> None:
    one = learner()
    rows = [[0, 1], [6]]
    rates = []
    for step in range(3):
        rates.append(one.step(step, rows, data, counted(data, rows))["lr"])
        one.guard.rate_scale *= 0.5
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4])  # set from outside, it counts from the step after the next
