"""The planner's seconds: hand-worked operations and bytes over round rates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayrl.errors import UserError
from rayrl.planning import time
from rayrl.planning.devices import ALIASES, CPU, CPU_SHARE, GPUS, Device, find_gpu, gpu_of_model
from rayrl.planning.memory import Training
from rayrl.planning.shapes import KNOWN, ModelShape
from rayrl.planning.time import Work

# Width 4, one block, MLP of 8, two heads of 2 with one key-value head, ten tokens (as in test_planning_memory.py):
# matrices 48 + 96 = 144 parameters a block, projection 40.
SMALL = ModelShape("small", hidden=4, layers=1, intermediate=8, heads=2, kv_heads=1, head_dim=2, vocab=10, tied=True)
TRAINING = Training("policy", "bf16", gpu=True, micro_batch=2, prompt_tokens=3, answer_tokens=2, sequences=4)
WORK = Work(4, 3, 2)
ROUND = Device("round", 10**9, bf16_flops=1000.0, fp32_flops=100.0, bandwidth=1000.0, link=100.0, step_s=0.5)


def test_operations_of_a_forward_pass() -> None:
    assert (WORK.length, WORK.tokens) == (5, 20)
    # A token: 2 * 144 for the matrices, and 4 * 4 for each of 2.5 earlier tokens on average.
    assert time.block_flops(SMALL, WORK, 1) == 20 * (288 + 40)
    # Eight answers' logits: 2 * 40 each.
    assert time.head_flops(SMALL, 8) == 640
    assert time.score_flops(SMALL, WORK, logits=True) == 20 * 328 + 640
    assert time.score_flops(SMALL, WORK, logits=False) == 20 * 328


def test_operations_of_an_epoch() -> None:
    forward = 20 * 328
    # Everything trains: forward once, backward twice; the projection 2, again 2, and 2 * 2 for its gradients.
    assert time.update_flops(SMALL, TRAINING, WORK) == 3 * forward + 4 * 640
    assert time.update_flops(SMALL, replace(TRAINING, gradient_checkpointing=True), WORK) == 4 * forward + 4 * 640
    # Frozen weights need no gradients of their own; a frozen projection takes two products.
    assert time.update_flops(SMALL, replace(TRAINING, mode="lora"), WORK) == 2 * forward + 2 * 640
    # One of two blocks trains, over a tied projection, which doesn't.
    deep, last = replace(SMALL, layers=2), replace(TRAINING, mode="last_n", num_layers=1)
    assert time.update_flops(deep, last, WORK) == 3 * forward + 2 * 640
    assert time.update_flops(replace(deep, tied=False), last, WORK) == 3 * forward + 4 * 640
    assert time.update_flops(SMALL, replace(TRAINING, role="critic"), WORK) == 3 * forward


def test_a_70b_tokens_training_is_six_operations_a_parameter() -> None:
    shape = KNOWN["llama-3.1-70b"]
    flops = time.update_flops(shape, TRAINING, Work(1, 0, 1))
    assert flops / (6 * shape.params) == pytest.approx(1.0, abs=0.02)


def test_seconds_at_a_share_of_the_peak() -> None:
    assert time.compute_s(1000.0, ROUND, "bf16", 0.5) == 2.0
    assert time.compute_s(1000.0, ROUND, "fp32", 0.5) == 20.0
    core = replace(ROUND, gpu=False)
    assert time.compute_s(1000.0, core, "bf16", 0.5, cores=2) == pytest.approx(1 / (2 * CPU_SHARE))


def test_generation_reads_prompts_and_then_weights_for_every_token() -> None:
    # Four prompts of 3 tokens: 12 * (288 + 16 * 1.5) = 3744 operations at half of 1000 a second.
    # A token's step: weights 196 * 2 bytes and four caches of 4 tokens on average at 8 bytes, 520 bytes at 0.6 of
    # 1000; its products, 4 * 2 * 196 at half of 1000, take longer; and 0.5 s besides. Two tokens.
    assert time.generate_s(SMALL, WORK, ROUND, "bf16", 1, at_once=8) == pytest.approx(
        3744 / 500 + 2 * (1568 / 500 + 0.5)
    )
    # Half at a time: two waves, of two sequences each: 784 operations, 456 bytes.
    halves = time.generate_s(SMALL, WORK, ROUND, "bf16", 1, at_once=2)
    assert halves == pytest.approx(3744 / 500 + 2 * 2 * (784 / 500 + 0.5))
    slow = replace(ROUND, bandwidth=10.0)
    assert time.generate_s(SMALL, WORK, slow, "bf16", 1, at_once=8) == pytest.approx(3744 / 500 + 2 * (520 / 6 + 0.5))
    assert time.generate_s(SMALL, Work(0, 3, 2), ROUND, "bf16", 1, 8) == 0.0


def test_an_engine_over_two_devices_halves_the_work_and_exchanges_rows() -> None:
    # Prompts 3744 / 1000; a step's products 1568 / 1000; two exchanges of 4 rows * 4 numbers * 2 bytes, twice, at 100
    # bytes a second, and 20 microseconds each.
    whole = time.generate_s(SMALL, WORK, ROUND, "bf16", 2, at_once=8)
    assert whole == pytest.approx(3.744 + 2 * (1.568 + 0.5 + 2 * (64 / 100 + 20e-6)))


def test_exchanges_between_ranks() -> None:
    four = replace(TRAINING, ranks=4)
    # Stage 0: an all-reduce of 196 * 2 bytes moves 2 * 3/4 of them; at 100 bytes a second within a node.
    assert time.exchange_s(SMALL, four, ROUND, 4, steps=2, passes=8) == pytest.approx(2 * 392 * 1.5 / 100)
    # Stage 2: a scatter of gradients and a gather of weights; stage 3: a scatter, and two gathers a pass.
    two = replace(four, zero_stage=2)
    assert time.exchange_s(SMALL, two, ROUND, 4, 1, 8) == pytest.approx(2 * 392 * 0.75 / 100)
    three = replace(four, zero_stage=3)
    assert time.exchange_s(SMALL, three, ROUND, 4, 1, 8) == pytest.approx((1 + 2 * 8) * 392 * 0.75 / 100)
    assert time.exchange_s(SMALL, TRAINING, ROUND, 1, 1, 8) == 0.0
    # Between nodes all of a node's ranks' links count, up to the devices' own.
    fast = GPUS["H100"]
    assert time.exchange_s(SMALL, four, fast, 2, 1, 1) == pytest.approx(392 * 1.5 / 50e9)
    assert time.exchange_s(SMALL, replace(four, ranks=64), fast, 32, 1, 1) == pytest.approx(2 * 392 * 63 / 64 / 450e9)


def test_an_offloaded_step() -> None:
    setup = replace(TRAINING, ranks=4, zero_stage=2, offload_optimizer=True)
    # 49 parameters a rank: 6 bytes over PCIe, 28 over two cores' memory.
    assert time.offloaded_s(SMALL, setup, 2.0) == pytest.approx(49 * (6 / 25e9 + 28 / 16e9))
    assert time.offloaded_s(SMALL, replace(setup, zero_stage=0), 2.0) == 0.0


def test_what_goes_to_the_engines() -> None:
    assert time.sent_params(SMALL, TRAINING) == 196
    deep, last = replace(SMALL, layers=2), replace(TRAINING, mode="last_n", num_layers=1)
    assert time.sent_params(deep, last) == 156
    # An adapter on q alone sends q, k, v and o, which vLLM keeps in one layer; on all, every matrix.
    lora = replace(TRAINING, mode="lora", lora_targets=("q_proj",))
    assert time.sent_params(SMALL, lora) == 48
    assert time.sent_params(SMALL, replace(lora, lora_targets=("all-linear",))) == 144
    assert time.sync_s(SMALL, TRAINING, GPUS["H100"], 1) == pytest.approx(392 / 25e9)
    spread = replace(TRAINING, ranks=4, zero_stage=3)
    assert time.sync_s(SMALL, spread, GPUS["H100"], 4) == pytest.approx(392 / 25e9 + 392 / 450e9)
    assert time.sync_s(SMALL, replace(TRAINING, gpu=False), CPU, 1) == pytest.approx(392 / 1e9)


@pytest.mark.parametrize(
    ("name", "device"),
    [("H100", "H100"), ("h100-80gb", "H100"), ("A100", "A100-80"), ("a100-40GB", "A100-40"), ("rtx-4090", "RTX4090")],
)
def test_devices_by_name(name: str, device: str) -> None:
    assert find_gpu(name).name == device


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^no device is called 'H10'; did you mean 'H100'\?$"):
        find_gpu("H10")
    with pytest.raises(UserError, match=r"^no device is called 'TPU'; known: H200, H100, "):
        find_gpu("TPU")
    assert set(ALIASES.values()) <= set(GPUS)


@pytest.mark.parametrize(
    ("model", "device"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("Tesla V100-SXM2-16GB", "V100-16"),
        ("A100", "A100-40"),  # Ray's name, which leaves the size out: the smaller one is safe
        ("Tesla T4", None),
    ],
)
def test_devices_as_drivers_call_them(model: str, device: str | None) -> None:
    found = gpu_of_model(model)
    assert (None if found is None else found.name) == device
