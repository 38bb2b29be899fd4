"""Bytes that an engine's device and a frozen scorer hold.

vLLM on a GPU takes `gpu_memory_utilization` of the device, whatever it needs: weights and workspace first, the
key-value cache gets the rest, so what matters is how many sequences fit into that. On a CPU the cache is set in bytes.
Frozen scorers (the reference of a fully trained policy, reward models) load a whole model on one device each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rayrl.planning.memory import HEAD_ROWS, RankMemory
from rayrl.planning.shapes import BYTES, ModelShape

GIB = 2**30
BATCHED_TOKENS = 8192
"""Tokens that vLLM reads in one pass (its default for offline use, which it tries out at start)."""
GRAPHS = GIB
"""CUDA graphs of an engine, unless `enforce_eager`."""


@dataclass(frozen=True)
class Serving:
    """What an engine's memory depends on, besides the model's shape."""

    backend: str
    dtype: str
    gpu: bool
    tensor_parallel: int
    max_prompt_tokens: int
    max_new_tokens: int
    max_num_seqs: int
    gpu_memory_utilization: float
    kv_cache_gb: float
    enforce_eager: bool
    sleeps: bool

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_prompt_tokens + self.max_new_tokens


@dataclass(frozen=True)
class EngineMemory:
    """One device's share of an engine."""

    memory: RankMemory
    sequences: float
    """Longest sequences that the cache holds at a time."""


def kv_bytes_per_token(shape: ModelShape, dtype: str, tensor_parallel: int = 1) -> int:
    """Keys and values of one token in all layers, on one of an engine's devices.

    With more devices than key-value heads each device holds a whole head.
    """
    heads = max(1, -(-shape.kv_heads // tensor_parallel))
    return 2 * shape.layers * heads * shape.head_dim * BYTES[dtype]


def engine_memory(shape: ModelShape, serving: Serving, device_bytes: int, framework: int) -> EngineMemory:
    """One device's share of an engine (on a CPU, all of it). `framework`: its process before any model."""
    if serving.backend == "hf":
        return _hf_memory(shape, serving, framework)
    size, parallel = BYTES[serving.dtype], serving.tensor_parallel
    per_token = kv_bytes_per_token(shape, serving.dtype, parallel)
    if not serving.gpu:
        weights, cache = size * shape.params, int(serving.kv_cache_gb * GIB)
        working = _engine_working(shape, serving)
        total = weights + parallel * (cache + working + framework)
        memory = _held(weights, working, cache * parallel, framework * parallel, total, total)
        return EngineMemory(memory, cache / (per_token * serving.length))
    weights = size * -(-shape.params // parallel)
    working = _engine_working(shape, serving) + (0 if serving.enforce_eager else GRAPHS)
    share = int(serving.gpu_memory_utilization * device_bytes)
    cache = share - weights - working - framework
    idle = framework if serving.sleeps else max(share, weights + working + framework)
    peak = max(share, weights + working + framework)
    host = weights if serving.sleeps else 0
    cache = max(0, cache)
    return EngineMemory(
        _held(weights, working, cache, framework, peak, idle, host), cache / (per_token * serving.length)
    )


def _held(weights: int, working: int, cache: int, framework: int, peak: int, idle: int, host: int = 0) -> RankMemory:
    """What doesn't train: no gradients and no optimizer state."""
    return RankMemory(
        weights=weights,
        activations=working,
        cache=cache,
        other=framework,
        peak=peak,
        idle=idle,
        scoring=peak,
        host=host,
        start=peak,
    )


def _engine_working(shape: ModelShape, serving: Serving) -> int:
    """vLLM's own trial pass: an MLP's products for a full batch of tokens, and three sets of float32 logits."""
    tokens = min(BATCHED_TOKENS, serving.max_num_seqs * serving.length)
    size, parallel = BYTES[serving.dtype], serving.tensor_parallel
    mlp = tokens * size * (3 * shape.intermediate // parallel + 4 * shape.hidden)
    return mlp + 3 * 4 * serving.max_num_seqs * shape.vocab


def _hf_memory(shape: ModelShape, serving: Serving, framework: int) -> EngineMemory:
    """Hugging Face `generate`: a cache for the whole batch, and every step's logits kept in float32 until the end."""
    size, rows = BYTES[serving.dtype], serving.max_num_seqs
    weights = size * shape.params
    cache = rows * serving.length * kv_bytes_per_token(shape, serving.dtype)
    logits = rows * serving.max_new_tokens * shape.vocab * 4
    prompts = rows * serving.max_prompt_tokens * size * 3 * shape.intermediate
    working = max(logits, prompts)
    fixed = weights + framework
    total = fixed + cache + working
    idle = framework if serving.gpu and serving.sleeps else fixed
    host = weights if serving.gpu and serving.sleeps else 0
    memory = replace(_held(weights, working, cache, framework, total, idle, host), start=fixed)
    return EngineMemory(memory, float(rows))


def scorer_memory(
    shape: ModelShape, dtype: str, gpu: bool, rows: int, length: int, framework: int, logits: bool
) -> RankMemory:
    """A frozen model that reads `rows` sequences of `length` tokens at a time.

    `logits`: a reference, which makes a slice of logits at a time; else a reward model, which has one output and no
    projection.
    """
    size, tokens = BYTES[dtype], rows * length
    weights = size * (shape.params if logits else shape.backbone + shape.hidden)
    # One block's: its input twice in float32 inside a norm, queries, keys, values and an MLP's products.
    block = tokens * (8 * shape.hidden + size * (2 * shape.hidden + 3 * shape.intermediate))
    scores = 0 if gpu or dtype == "fp32" or length > 512 else tokens * (4 + size) * shape.heads * length
    projected = min(HEAD_ROWS, tokens) * shape.vocab * (2 * size + 4) if logits else 0
    # malloc gives what one part has freed to no other (as memory.py says of training); CUDA's allocator does.
    working = max(block, scores, projected) if gpu else block + scores + projected
    fixed = weights + framework
    return replace(_held(weights, working, 0, framework, fixed + working, fixed), start=fixed)
