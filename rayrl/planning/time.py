"""How long a step takes on stated devices: arithmetic at a share of the peak rate, or traffic at a share of bandwidth.

Products of a token with P parameters cost 2P operations forward and 4P backward (Kaplan et al., arXiv 2001.08361,
section 2.1), attention to L earlier tokens 4 x width x L in each block. Generation reads a batch's prompts at the
arithmetic's rate and then, a token a sequence at a time, all weights and every sequence's cache at the memory's. All
are estimates: padding, stragglers, launches and the driver aren't in them, so a step takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayrl.planning.devices import (
    CPU,
    DECODE_SHARE,
    HOST_LINK_BYTES_S,
    NETWORK_BYTES_S,
    NETWORK_CPU_BYTES_S,
    PREFILL_SHARE,
    Device,
)
from rayrl.planning.memory import Training, counts
from rayrl.planning.serving import kv_bytes_per_token
from rayrl.planning.shapes import BYTES, ModelShape


@dataclass(frozen=True)
class Work:
    """Sequences of these lengths. Example: Work(64, 512, 256)."""

    sequences: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.sequences * self.length


def block_flops(shape: ModelShape, work: Work, blocks: int) -> float:
    """Operations of a forward pass through `blocks` blocks; causal attention looks at half the length on average."""
    matrices = sum(rows * columns for rows, columns in shape.linears.values())
    attention = 4 * shape.query_width * work.length / 2
    return float(work.tokens) * blocks * (2 * matrices + attention)


def head_flops(shape: ModelShape, rows: int) -> float:
    """Operations of the output projection for `rows` tokens."""
    return 2.0 * rows * shape.embedding


def score_flops(shape: ModelShape, work: Work, logits: bool) -> float:
    """A forward pass over whole sequences; the projection sees answers alone (none in a reward model or critic)."""
    head = head_flops(shape, work.sequences * work.answer_tokens) if logits else 0.0
    return block_flops(shape, work, shape.layers) + head


def update_flops(shape: ModelShape, training: Training, work: Work) -> float:
    """One epoch's forward and backward passes.

    Weights that train cost 2 + 4, frozen ones that gradients pass through 2 + 2; under gradient checkpointing blocks
    run forward again. The head makes its logits twice where the projection trains (rayrl/models/logprobs.py), and with
    a frozen one takes two products in all.
    """
    blocks = training.num_layers if training.mode == "last_n" else shape.layers
    forward = block_flops(shape, work, blocks)
    passes = (2 if training.mode == "lora" else 3) + (1 if training.gradient_checkpointing else 0)
    if training.role == "critic":
        return passes * forward
    trains = training.mode == "full" or (training.mode == "last_n" and not shape.tied)
    head = head_flops(shape, work.sequences * work.answer_tokens) * (4 if trains else 2)
    return passes * forward + head


def compute_s(flops: float, device: Device, dtype: str, share: float, cores: float = 1.0) -> float:
    """Seconds of arithmetic; `cores`: how many of a CPU work on it."""
    return flops / (device.flops(dtype) * device.share(share) * cores)


def generate_s(
    shape: ModelShape, work: Work, device: Device, dtype: str, parallel: int, at_once: int, cores: float = 1.0
) -> float:
    """Seconds in which one engine answers `work`, at most `at_once` sequences at a time, over `parallel` devices."""
    prompts = Work(work.sequences, work.prompt_tokens, 0)
    read = compute_s(block_flops(shape, prompts, shape.layers), device, dtype, PREFILL_SHARE, cores * parallel)
    if work.sequences == 0:
        return 0.0
    waves = -(-work.sequences // max(1, at_once))
    rows = work.sequences / waves
    weights = BYTES[dtype] * shape.params / parallel
    cached = kv_bytes_per_token(shape, dtype, parallel) * (work.prompt_tokens + work.answer_tokens / 2)
    traffic_s = (weights + rows * cached) / (device.bandwidth * device.share(DECODE_SHARE) * cores)
    products = rows * 2 * (shape.params - (0 if shape.tied else shape.embedding))
    arithmetic_s = compute_s(products, device, dtype, PREFILL_SHARE, cores * parallel)
    # Two all-reduces a block of one row's hidden state, among the devices of an engine.
    exchange = 0.0
    if parallel > 1:
        exchange = 2 * shape.layers * (rows * shape.hidden * BYTES[dtype] * 2 / device.link + 20e-6)
    return read + waves * work.answer_tokens * (max(traffic_s, arithmetic_s) + exchange + device.step_s)


def exchange_s(
    shape: ModelShape, training: Training, device: Device, ranks_per_node: int, steps: int, passes: int
) -> float:
    """Seconds in which ranks exchange gradients (`steps` times) and, at stage 3, weights (`passes` micro-batches).

    Rings: a rank sends and receives (R - 1) / R of the bytes twice in an all-reduce, once in a gather or a scatter.
    None of it is counted as hidden behind arithmetic.
    """
    if training.ranks == 1:
        return 0.0
    rate = _between(device, training.ranks, ranks_per_node)
    part = (training.ranks - 1) / training.ranks
    held = counts(shape, training)
    gradients = held.trained * training.size * part * (2 if training.zero_stage < 2 else 1)
    updated = held.trained * training.size * part if training.zero_stage in (1, 2) else 0.0
    # Weights are gathered for the forward and again for the backward pass of every micro-batch.
    gathered = 2 * passes * held.wrapped * training.size * part if training.zero_stage == 3 else 0.0
    return (steps * (gradients + updated) + gathered) / rate


def offloaded_s(shape: ModelShape, training: Training, cores: float) -> float:
    """Seconds of an optimizer step in host memory: gradients down (4 bytes), weights up (2), seven float32 passes."""
    if not training.offloads:
        return 0.0
    share = training.shard(counts(shape, training).trained)
    return share * (6 / HOST_LINK_BYTES_S + 28 / (CPU.bandwidth * cores))


def sync_s(shape: ModelShape, training: Training, device: Device, ranks_per_node: int) -> float:
    """Seconds in which the trained weights reach the engines, which take them at one time, from rank 0."""
    sent = float(sent_params(shape, training) * training.size)
    gathered = sent if training.zero_stage == 3 and training.ranks > 1 else 0.0
    rate = NETWORK_BYTES_S if device.gpu else NETWORK_CPU_BYTES_S
    return sent / rate + gathered / _between(device, training.ranks, ranks_per_node)


def sent_params(shape: ModelShape, training: Training) -> int:
    """Parameters that go to an engine: with LoRA all of the attention, or of the MLP, that an adapter touches."""
    if training.mode != "lora":
        return counts(shape, training).trained
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    parts = ([name for name in shape.linears if (name in attention) is first] for first in (True, False))
    touched = [name for part in parts if any(training.adapts(name) for name in part) for name in part]
    return shape.layers * sum(rows * columns for rows, columns in (shape.linears[name] for name in touched))


def _between(device: Device, ranks: int, ranks_per_node: int) -> float:
    """Bytes a second that reach each rank of a group: within a node over its links, between nodes over all its ranks'
    network links together, since what has reached a node once is passed on inside it."""
    if not device.gpu:
        return NETWORK_CPU_BYTES_S
    return device.link if ranks <= ranks_per_node else min(device.link, NETWORK_BYTES_S * ranks_per_node)
