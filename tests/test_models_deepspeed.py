"""The optimizer that DeepSpeed gets: its schedule by hand, its norm and clip against plain torch."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from deepspeed.utils import groups
from torch import Tensor, nn

from rayrl.config.parts import OptimizerConfig, TrainerConfig
from rayrl.models.deepspeed_engine import TrainEngine, learning_rate_factor


def factors(total_steps: int, **keys: object) -> list[float]:
    config = OptimizerConfig.model_validate(keys)
    return [learning_rate_factor(config, total_steps, step) for step in range(total_steps + 1)]


def test_schedules_worked_by_hand() -> None:
    assert factors(4) == [1.0] * 5
    assert factors(6, warmup_steps=2) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors(6, warmup_steps=2, schedule="linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert factors(4, schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_warm_up_as_a_share_of_all_steps() -> None:
    """A quarter of 8 steps is 2, of 5 steps 2 (rounded up); steps given outright win."""
    assert factors(8, warmup_ratio=0.25)[:3] == [0.5, 1.0, 1.0]
    assert factors(5, warmup_ratio=0.25)[:3] == [0.5, 1.0, 1.0]
    assert factors(8, warmup_ratio=0.25, warmup_steps=4)[:3] == [0.25, 0.5, 0.75]


def test_after_the_last_step_the_rate_stays_at_0() -> None:
    config = OptimizerConfig(schedule="linear", warmup_steps=1)
    assert [learning_rate_factor(config, 3, step) for step in (3, 4, 50)] == [0.0, 0.0, 0.0]


def test_a_warm_up_as_long_as_the_run_is_all_warm_up() -> None:
    assert factors(3, warmup_steps=3, schedule="linear") == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


class Product(nn.Module):
    """A module small enough to check by eye: x @ w."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.still = nn.Parameter(torch.tensor([7.0]), requires_grad=not frozen)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum() + 0 * self.still.sum()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_norm_clip_and_rates_equal_plain_torch(stage: int) -> None:
    """Three optimizer steps of two micro-batches each: losses add up, the norm is taken before the clip of 0.1."""
    optimizer = OptimizerConfig(lr=0.01, max_grad_norm=0.1, schedule="linear", warmup_steps=1, weight_decay=0.1)
    plain, module = Product(frozen=True), Product(frozen=True)
    engine = TrainEngine(module, TrainerConfig(dtype="fp32", optimizer=optimizer, zero_stage=stage), 2, 4)
    adam = torch.optim.AdamW([plain.weight], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    torch.manual_seed(0)
    for step in range(3):
        adam.param_groups[0]["lr"] = 0.01 * learning_rate_factor(optimizer, 4, step)
        assert engine.learning_rate == pytest.approx(adam.param_groups[0]["lr"])
        inputs = torch.randn(2, 3)
        adam.zero_grad()
        for x in inputs:
            plain(x).square().backward()
            engine.backward(engine(x).square())
        norm = torch.nn.utils.clip_grad_norm_([plain.weight], 0.1)
        assert norm > 0.1
        adam.step()
        assert engine.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    with engine.gathered([module.weight, module.still]):
        torch.testing.assert_close(module.weight.detach(), plain.weight.detach(), atol=1e-6, rtol=1e-6)
        assert module.still.item() == 7.0


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_moments_leave_and_come_back_between_steps(dtype: str, stage: int) -> None:
    """Every stage keeps them in an optimizer of another kind. To a "meta" device and back they are really gone."""
    results = []
    for moves in ([], ["offload", "reload"]):
        module = Product().to(torch.bfloat16 if dtype == "bf16" else torch.float32)
        engine = TrainEngine(module, TrainerConfig(dtype=dtype, zero_stage=stage), 1, 4)
        for _ in range(3):
            x = torch.tensor([1.0, 2.0, 3.0], dtype=module.weight.dtype)
            engine.backward(engine(x).square())
            for move in moves:
                getattr(engine, move)()
        results.append(exported(engine, module))
    assert torch.equal(*results)
    engine._move_moments(torch.device("meta"))
    states = list(engine.engine.basic_optimizer.state.values())
    assert states and all(state["exp_avg"].is_meta and state["exp_avg_sq"].is_meta for state in states)


@pytest.mark.usefixtures("one_rank")
def test_lion_moves_every_weight_by_the_rate() -> None:
    """Its update is the sign of the interpolated gradient: d(w.x)^2/dw = 2 (w.x) x with w.x = -1.5 is negative, so up;
    the second time the moment 0.01 g1 counts nine tenths and g2 one tenth, and both have one sign."""
    config = OptimizerConfig(kind="lion", lr=0.01, betas=(0.9, 0.99))
    module = Product(frozen=True)
    engine = TrainEngine(module, TrainerConfig(dtype="fp32", optimizer=config), 1, 4)
    x = torch.tensor([1.0, 2.0, 3.0])
    for step in (1, 2):
        engine.backward(engine(x).square())
        want = torch.tensor([1.0, -2.0, 0.5]) + 0.01 * step
        torch.testing.assert_close(module.weight.detach(), want)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_isnt_finite_changes_nothing(dtype: str, stage: int) -> None:
    module = Product().to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    engine = TrainEngine(module, TrainerConfig(dtype=dtype, zero_stage=stage), 1, 4)
    x = torch.tensor([1.0, float("inf"), 3.0], dtype=module.weight.dtype)
    engine.backward(engine(x).square())
    assert not math.isfinite(engine.grad_norm)
    assert module.weight.tolist() == [1.0, -2.0, 0.5]
    engine.backward(engine(torch.ones_like(x)).square())
    assert math.isfinite(engine.grad_norm)
    assert torch.isfinite(module.weight).all()


@pytest.mark.usefixtures("one_rank")
def test_the_rate_can_be_scaled_on_top_of_the_schedule() -> None:
    config = OptimizerConfig(lr=0.01, schedule="linear")
    engine = TrainEngine(Product(), TrainerConfig(dtype="fp32", optimizer=config), 1, 4)
    rates = []
    for scale in (1.0, 0.5, 0.5):
        engine.scale_rate(scale)
        rates.append(engine.learning_rate)
        engine.backward(engine(torch.ones(3)).square())
    assert rates == pytest.approx([0.01, 0.5 * 0.0075, 0.5 * 0.005])


def exported(engine: TrainEngine, module: Product) -> Tensor:
    with engine.gathered([module.weight]):
        return module.weight.detach().clone()


@pytest.mark.usefixtures("one_rank")
def test_there_is_no_norm_before_the_first_step() -> None:
    engine = TrainEngine(Product(), TrainerConfig(dtype="fp32"), 1, 4)
    with pytest.raises(AssertionError, match="first optimizer step"):
        _ = engine.grad_norm


@pytest.mark.usefixtures("one_rank")
def test_loading_from_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    engine = TrainEngine(Product(), TrainerConfig(dtype="fp32"), 1, 4)
    with pytest.raises(FileNotFoundError, match="no trainer state"):
        engine.load(tmp_path)


def test_every_group_has_the_runs_own_timeout(one_rank: None) -> None:
    world = torch.distributed.group.WORLD
    for group in (world, groups._get_data_parallel_group()):
        options = group._get_backend(torch.device("cpu")).options
        assert options._timeout == timedelta(seconds=60)
