"""ZeRO-3 takes a model apart parameter by parameter, and makes whole again what is sent or saved, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import critic_learner, exported, make_rollouts, make_scores, policy_learner

from rayrl.config.parts import TrainerConfig
from rayrl.models.builtin import resolve_model
from rayrl.models.deepspeed_engine import starts_on_host
from rayrl.models.loading import load_causal_lm, load_scorer

LARGEST = 512 * 64
"""The tiny model's embedding."""


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch, one_rank: None) -> Iterator[list[int]]:
    """How many numbers each gathering made whole."""
    from deepspeed.runtime.zero import partition_parameters

    sizes: list[int] = []
    enter = partition_parameters.GatheredParameters.__enter__

    def counting(self: Any) -> Any:
        sizes.append(sum(param.ds_numel for param in self.params) if self.enabled else 0)
        return enter(self)

    monkeypatch.setattr(partition_parameters.GatheredParameters, "__enter__", counting)
    yield sizes


@pytest.mark.parametrize(("stage", "mode", "said"), [(3, "full", True), (3, "lora", True), (3, "last_n", False),
                                                      (2, "full", False)])  # fmt: skip
def test_a_model_that_zero_3_spreads_starts_in_host_memory(stage: Any, mode: Any, said: bool) -> None:
    assert starts_on_host(TrainerConfig.model_validate({"zero_stage": stage, "train": {"mode": mode}})) is said


@pytest.mark.parametrize("model", ["tiny-random", "tiny-random-untied"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_saved_policy_is_whole(model: str, dtype: str, tmp_path: Path, gathered: list[int]) -> None:
    learner = policy_learner(2, model, dtype=dtype, zero_stage=3)
    learner.save_model(tmp_path, sender=True)
    saved = dict(load_causal_lm(str(tmp_path), "fp32").named_parameters())
    start = dict(load_causal_lm(resolve_model(model), dtype).named_parameters())  # type: ignore[arg-type]
    assert saved.keys() == start.keys()
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in start.items())
    assert 0 < max(gathered) <= LARGEST
    other = tmp_path / "other"
    learner.save_model(other, sender=False)
    assert not other.exists()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_trains_is_sent_and_saved(dtype: str, tmp_path: Path, gathered: list[int]) -> None:
    learner = policy_learner(2, dtype=dtype, zero_stage=3, train={"mode": "lora", "lora_rank": 2})
    rollouts = make_rollouts(2)
    view = learner.prepare(rollouts)
    assert view.ref_logprobs is not None
    learner.update(0, make_scores(2), 0.1, view.ref_logprobs, view.logprobs)
    sent = exported(learner)
    start = dict(load_causal_lm(resolve_model("tiny-random"), dtype).named_parameters())  # type: ignore[arg-type]
    moved = {name for name, tensor in sent.items() if not torch.equal(tensor, start[name])}
    assert moved and all(name.endswith("_proj.weight") for name in moved)
    learner.save_model(tmp_path, sender=True)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 2 * 14 and all(tensor.numel() for tensor in saved.values())
    layer = "model.layers.0.mlp.down_proj"
    down, up = (saved[f"base_model.model.{layer}.lora_{side}.weight"].float() for side in "AB")
    merged = start[f"{layer}.weight"].float() + 32 / 2 * (up @ down)
    assert torch.allclose(merged, sent[f"{layer}.weight"].float(), atol=1e-6 if dtype == "fp32" else 1e-2)
    # A merged matrix gathers its adapter too; a saved one gathers the adapters alone.
    assert 0 < max(gathered) <= LARGEST


def test_a_saved_critic_is_whole(tmp_path: Path, gathered: list[int]) -> None:
    learner = critic_learner(2, zero_stage=3, train={"mode": "lora", "lora_rank": 2})
    learner.save_model(tmp_path, sender=True)
    saved = dict(load_scorer(str(tmp_path), "fp32").named_parameters())
    start = dict(load_causal_lm(resolve_model("tiny-random"), "fp32").named_parameters())
    assert all(torch.equal(saved[name], tensor) for name, tensor in start.items() if name in saved)
    assert saved["score.weight"].abs().max() == 0
    assert 0 < max(gathered) <= LARGEST
