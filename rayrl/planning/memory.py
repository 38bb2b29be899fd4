"""Bytes that one rank of a trained role holds, by what they are for: weights, gradients, optimizer state, activations.

Counted as the code here keeps them, which differs from the usual rule of 2 + 2 + 12 bytes a parameter (ZeRO, arXiv
1910.02054, section 3.1): DeepSpeed holds a float32 copy under bf16 at every stage and, from stage 1 on, under float32
as well; gradients are summed in float32 from stage 1 on and in bf16 at stage 0; stage 1 keeps whole gradients. What is
saved for the backward pass was counted operation by operation in transformers' Llama (the method is that of Korthikanti
et al., arXiv 2205.05198, section 4; the norms here save a float32 copy of their input).

Gradients and activations are largest at different moments, so a rank's peak may be less than the sum of its parts.
Frozen scorers and engines are in serving.py. Checked against tensors and processes by scripts/check_memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayrl.planning.shapes import BYTES, ModelShape

BUCKET = 500_000_000
"""Numbers in DeepSpeed's reduction bucket (`reduce_bucket_size`, its default), allocated whole on a GPU."""
MAX_LIVE = 1_000_000_000
"""Gathered parameters that ZeRO-3 keeps at a time (`stage3_max_live_parameters`, its default)."""
SUB_GROUP = 1_000_000_000
"""Parameters that ZeRO-3 steps at a time (`sub_group_size`, its default)."""
HEAD_ROWS, HEAD_ROWS_TRAINED = 256, 1024
"""Rows of logits made at a time (rayrl/models/logprobs.py)."""
MALLOC_BLOCK = 32 * 2**20
"""Larger blocks are given back when they are freed (glibc's `M_MMAP_THRESHOLD_MAX`)."""
MALLOC_KEEPS = 0.7
"""Share of smaller blocks that a process on a CPU keeps in its heap when they are freed and uses for nothing else, as
measured on SmolLM2-135M at every stage (0.3 to 1.1)."""
SHORT_ATTENTION = 512
"""Up to this length, bf16 attention on a CPU keeps its scores (rayrl/models/attention.py)."""


@dataclass(frozen=True)
class Training:
    """What the memory of a trained role's rank depends on, besides the model's shape."""

    role: Literal["policy", "critic"]
    dtype: Literal["bf16", "fp32"]
    gpu: bool
    mode: Literal["full", "lora", "last_n"] = "full"
    num_layers: int = 2
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = ("all-linear",)
    lora_dropout: float = 0.0
    optimizer: Literal["adamw", "lion"] = "adamw"
    ranks: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    gradient_checkpointing: bool = False
    micro_batch: int = 8
    """Sequences a forward pass."""
    accumulates: bool = False
    """Whether a minibatch is several micro-batches, so that gradients lie there while activations do."""
    sequences: int = 8
    """Of a rank in a step; the frozen trunk's output is kept for all of them."""
    prompt_tokens: int = 512
    answer_tokens: int = 256

    @property
    def size(self) -> int:
        """Bytes of a number in the model's format."""
        return BYTES[self.dtype]

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def tokens(self) -> int:
        """Of a micro-batch of longest sequences."""
        return self.micro_batch * self.length

    @property
    def offloads(self) -> bool:
        """Whether optimizer state lies in host memory (deepspeed_engine.py: from stage 1 on; on a CPU it is there)."""
        return self.offload_optimizer and self.zero_stage > 0 and self.gpu

    def shard(self, numbers: int) -> int:
        """A rank's share of optimizer state over `numbers` trained parameters."""
        return -(-numbers // self.ranks) if self.zero_stage > 0 else numbers

    def adapts(self, linear: str) -> bool:
        """Whether a LoRA adapter sits on a block's matrix of this name."""
        return self.mode == "lora" and ("all-linear" in self.lora_targets or linear in self.lora_targets)


@dataclass(frozen=True)
class Counts:
    """Parameters that a rank holds, by how DeepSpeed treats them."""

    trained: int
    frozen: int
    """Inside what DeepSpeed wraps: ZeRO-3 spreads them over the ranks."""
    whole: int
    """Outside of it: each rank holds all of them, at every stage."""

    @property
    def wrapped(self) -> int:
        """What ZeRO-3 spreads."""
        return self.trained + self.frozen


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. On a CPU, device and host are the same memory and `host` is 0."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    cache: int = 0
    other: int = 0
    """Buffers and the framework's own."""
    peak: int = 0
    """The most at one time on the device."""
    idle: int = 0
    """What stays while other roles work."""
    scoring: int = 0
    """The most while a trained role only scores: log-probabilities, values."""
    moments: int = 0
    """The part of `idle` that leaves the device while engines are awake, under `rollout.sleep_between_phases`."""
    host: int = 0
    """In host memory, beside a GPU."""
    start: int = 0
    """The most at one time while the role loads."""


def counts(shape: ModelShape, training: Training) -> Counts:
    """Trained and frozen parameters of a policy's or critic's rank, the policy's own reference included.

    `full`: all train. `lora`: two thin matrices beside each target; the output projection, a constant of the head,
    stays outside. `last_n`: the blocks below and the embedding are a trunk outside, and the policy keeps a frozen copy
    of the top as its reference (partition.py, heads.py, learners/policy.py).
    """
    critic = training.role == "critic"
    head = shape.hidden if critic else 0  # the critic's: one output
    projection = 0 if critic or shape.tied else shape.embedding
    if training.mode == "full":
        return Counts(shape.backbone + head + projection, 0, 0)
    if training.mode == "lora":
        # A tied projection is the embedding's own memory, which the head's constant keeps whole under ZeRO-3.
        constant = projection or (shape.embedding if not critic and training.zero_stage == 3 else 0)
        return Counts(adapter(shape, training) + head, shape.backbone, constant)
    top = training.num_layers * shape.block + shape.hidden + projection
    trunk = shape.backbone - training.num_layers * shape.block - shape.hidden
    return Counts(top + head, 0, trunk + (0 if critic else top))


def adapter(shape: ModelShape, training: Training) -> int:
    """Parameters of the LoRA matrices: rank x (in + out) for each matrix that they adapt."""
    adapted = [sum(sides) for name, sides in shape.linears.items() if training.adapts(name)]
    return shape.layers * training.lora_rank * sum(adapted)


def weight_bytes(shape: ModelShape, training: Training) -> int:
    """The model's weights, reference included."""
    held = counts(shape, training)
    wrapped = -(-held.wrapped // training.ranks) if training.zero_stage == 3 else held.wrapped
    return training.size * (wrapped + held.whole)


def gathered_bytes(shape: ModelShape, training: Training) -> int:
    """Whole parameters that ZeRO-3 holds at a time, beside its own share; 0 at other stages."""
    if training.zero_stage < 3:
        return 0
    wrapped = counts(shape, training).wrapped
    return training.size * min(wrapped, MAX_LIVE + max(shape.embedding, shape.hidden * shape.intermediate))


def moment_bytes(trained: int, training: Training) -> int:
    """Moments in float32: AdamW has two, Lion one."""
    return 4 * (2 if training.optimizer == "adamw" else 1) * training.shard(trained)


def optimizer_bytes(trained: int, training: Training) -> int:
    """Moments and, under bf16 or with ZeRO, the float32 copy of the weights that they move."""
    copied = training.dtype == "bf16" or training.zero_stage > 0
    return moment_bytes(trained, training) + (4 * training.shard(trained) if copied else 0)


@dataclass(frozen=True)
class Gradients:
    """Bytes of gradients at the three moments that matter."""

    always: int
    """Kept between steps."""
    backward: int
    """Beside the activations, when a backward pass begins (`always` included)."""
    step: int
    """When the optimizer steps (`always` included); activations are gone by then."""


def gradient_bytes(trained: int, training: Training) -> Gradients:
    """Gradients as DeepSpeed's optimizers keep them (deepspeed_engine.py says which `data_types` they get).

    Stage 0 under bf16 sums in bf16 and makes float32 copies of all for the step; its all-reduce flattens a bucket.
    Stage 1 keeps whole float32 sums; under bf16 neither they nor the bf16 ones are ever freed. Stages 2 and 3 keep a
    rank's share.
    """
    size, share = training.size, training.shard(trained)
    bucket = min(trained, BUCKET)
    if training.zero_stage == 0:
        held = size * trained if training.accumulates else 0
        flat = size * bucket if training.ranks > 1 else 0
        copies = 4 * trained if training.dtype == "bf16" else 0
        return Gradients(0, held, size * trained + max(copies, flat))
    if training.zero_stage == 1:
        whole = 4 * trained
        if training.dtype == "bf16" and not training.offloads:
            return Gradients(whole + size * trained, whole + size * trained, whole + size * trained)
        beside = size * trained if training.dtype == "bf16" else 2 * 4 * share
        return Gradients(0, whole if training.accumulates else 0, whole + beside)
    if training.zero_stage == 2:
        held = 4 * share if training.accumulates else 0
        # On a CPU gradients aren't copied into a bucket: they lie where they were made until it is full.
        unreduced = 0 if training.gpu else size * bucket
        again = 4 * share if training.dtype == "fp32" else 0
        return Gradients(0, held, 4 * share + unreduced + again)
    kept = 0 if training.offloads else 4 * share
    unreduced = 0 if training.gpu else size * bucket
    return Gradients(kept, kept, kept + max(0 if training.offloads else 4 * min(share, SUB_GROUP), unreduced))


def bucket_bytes(training: Training) -> int:
    """The buffer that ZeRO copies gradients into on a GPU, whatever they come to."""
    if not training.gpu or training.zero_stage == 0:
        return 0
    if training.zero_stage == 1:
        return 0 if training.dtype == "bf16" and not training.offloads else 4 * BUCKET
    return training.size * BUCKET


def block_bytes(shape: ModelShape, training: Training, trains: bool) -> int:
    """What one block saves of a token for its backward pass.

    `trains`: its own weights train; otherwise only what gradients need to pass through it, and through its adapters.
    """
    size, hidden, inner = training.size, shape.hidden, shape.intermediate
    adapted = {name for name in shape.linears if training.adapts(name)}

    def needed(*linears: str) -> bool:
        return trains or not adapted.isdisjoint(linears)

    norms = 2 * (4 * hidden + 4 + (size * hidden if trains else 0))
    inputs = size * hidden * (needed("q_proj", "k_proj", "v_proj") + needed("up_proj", "gate_proj"))
    inputs += size * inner * needed("down_proj")
    mlp = size * inner * (3 if shape.gated else 1)
    if not training.gpu and training.dtype == "bf16" and training.length <= SHORT_ATTENTION:
        scores = (4 + size) * shape.heads * training.length
        attention = size * (shape.query_width * (1 + needed("o_proj")) + 2 * shape.kv_width) + scores
    else:
        attention = size * (2 * shape.query_width + 2 * shape.kv_width) + 4 * shape.heads
    return norms + inputs + mlp + attention + _adapter_bytes(shape, training, adapted)


def _adapter_bytes(shape: ModelShape, training: Training, adapted: set[str]) -> int:
    """Of a token: each adapter's narrow product and, with dropout, its own input and mask."""
    mask = 1 if training.gpu else training.size
    dropped = (training.size + mask) if training.lora_dropout else 0
    return sum(training.size * training.lora_rank + dropped * shape.linears[name][0] for name in adapted)


def activation_bytes(shape: ModelShape, training: Training) -> int:
    """Saved for the backward pass of one micro-batch of longest sequences, up to the final norm.

    With gradient checkpointing a block saves its input alone, and one block at a time all of it.
    """
    trains = training.mode != "lora"
    blocks = training.num_layers if training.mode == "last_n" else shape.layers
    block = block_bytes(shape, training, trains)
    per_token = blocks * training.size * shape.hidden + block if training.gradient_checkpointing else blocks * block
    norm = 4 * shape.hidden + 4 + (training.size * shape.hidden if trains else 0)
    answers = training.micro_batch * training.answer_tokens
    # The head's input and, for a frozen projection, the gradient that its forward pass leaves ready.
    head = 2 * training.size * shape.hidden * answers if training.role == "policy" else 0
    return training.tokens * (per_token + norm) + head


def working_bytes(shape: ModelShape, training: Training, backward: bool = True) -> int:
    """Largest temporary tensors of a pass: a slice of logits with the projection's gradient, or an MLP's products."""
    size, inner = training.size, shape.intermediate
    mlp = training.tokens * (3 * size * inner + 8 * shape.hidden)
    if not backward and not training.gpu and training.dtype == "bf16" and training.length <= SHORT_ATTENTION:
        mlp = max(mlp, training.tokens * (4 + size) * shape.heads * training.length)
    return max(mlp, logit_bytes(shape, training, backward) if training.role == "policy" else 0)


def logit_bytes(shape: ModelShape, training: Training, backward: bool = True) -> int:
    """A slice of logits in the model's format and in float32 and, where the projection trains, its gradient twice."""
    answers = training.micro_batch * training.answer_tokens
    projection_trains = training.mode == "full" or (training.mode == "last_n" and not shape.tied)
    if not (backward and projection_trains):
        return min(HEAD_ROWS, answers) * shape.vocab * (2 * training.size + 4)
    rows = min(HEAD_ROWS_TRAINED, answers)
    return rows * shape.vocab * (training.size + 4) + shape.embedding * (4 + training.size)


def malloc_bytes(shape: ModelShape, training: Training) -> int:
    """What malloc keeps of freed activations and temporary tensors in a process on a CPU.

    CUDA's allocator gives their memory to gradients.
    """
    if training.gpu:
        return 0
    scores = 0
    if training.dtype == "bf16" and training.length <= SHORT_ATTENTION:
        block = training.tokens * shape.heads * training.length
        blocks = training.num_layers if training.mode == "last_n" else shape.layers
        blocks = 1 if training.gradient_checkpointing else blocks
        scores = blocks * sum(block * size for size in (4, training.size) if block * size > MALLOC_BLOCK)
    largest = training.tokens * shape.intermediate * training.size
    kept = activation_bytes(shape, training) - scores if largest <= MALLOC_BLOCK else 0
    return int(MALLOC_KEEPS * (kept + working_bytes(shape, training, backward=False)))


def trunk_bytes(shape: ModelShape, training: Training) -> int:
    """The frozen trunk's output, kept for all of a rank's sequences through all epochs."""
    if training.mode != "last_n":
        return 0
    return training.sequences * training.length * shape.hidden * training.size


def trainer_memory(shape: ModelShape, training: Training, framework: int) -> RankMemory:
    """All of one rank's memory. `framework`: what the process and its libraries take before any model."""
    held = counts(shape, training)
    weights = weight_bytes(shape, training)
    state = optimizer_bytes(held.trained, training)
    gradients = gradient_bytes(held.trained, training)
    trunk, working = trunk_bytes(shape, training), working_bytes(shape, training)
    activations = activation_bytes(shape, training)
    buffers = bucket_bytes(training) + gathered_bytes(shape, training)
    kept = malloc_bytes(shape, training)
    update = _lion_bytes(held.trained, training, shape)
    on_device = 0 if training.offloads else state
    fixed = weights + on_device + framework
    backward = gradients.backward + activations + working + gathered_bytes(shape, training) + bucket_bytes(training)
    step = gradients.step + update
    forward = working_bytes(shape, training, backward=False) + gathered_bytes(shape, training)
    host = 0
    if training.offloads:
        share = training.shard(held.trained)
        host = state + 4 * share + (2 * share if training.zero_stage < 3 else 4 * share)
    always = gradients.always + (bucket_bytes(training) if training.zero_stage == 3 else 0)
    return RankMemory(
        weights=weights,
        gradients=max(gradients.backward, gradients.step),
        optimizer=on_device,
        activations=activations + trunk + working,
        other=buffers + update + kept + framework,
        peak=fixed + trunk + kept + max(backward, step),
        idle=fixed + kept + always,
        scoring=fixed + kept + always + trunk + forward,
        moments=0 if training.offloads else moment_bytes(held.trained, training),
        host=host,
        start=framework + _start_bytes(shape, held, training),
    )


def _lion_bytes(trained: int, training: Training, shape: ModelShape) -> int:
    """Lion makes two copies of a tensor as it steps: of all of the rank's share where DeepSpeed keeps it flat."""
    if training.optimizer != "lion":
        return 0
    largest = max(shape.embedding, shape.hidden * shape.intermediate)
    return 2 * 4 * (training.shard(trained) if training.zero_stage > 0 else min(trained, largest))


def _start_bytes(shape: ModelShape, held: Counts, training: Training) -> int:
    """While loading: the whole model, and ZeRO's copy of what it takes.

    At stage 3 parameters come from host memory one by one, unless a frozen trunk stays whole (deepspeed_engine.py).
    """
    if training.zero_stage == 3:
        share = -(-held.wrapped // training.ranks)
        one = max(shape.embedding, shape.hidden * shape.intermediate)
        return training.size * (share + held.whole + (held.wrapped if training.mode == "last_n" else one))
    return training.size * (held.wrapped + held.whole + (held.trained if training.zero_stage else 0))
