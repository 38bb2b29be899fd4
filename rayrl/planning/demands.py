"""From a run's configuration and its models' shapes to what each role's rank does: memory and work, by device.

What a process takes before any model was measured on CPUs (processes of this project, resident memory) and is a usual
figure on GPUs (CUDA's context, cuBLAS workspaces, NCCL's buffers). Where ranks go is in plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayrl.config.parts import TrainerConfig
from rayrl.config.ppo import PPOConfig, RewardEntry
from rayrl.errors import UserError
from rayrl.placement import has_own_reference, reward_role
from rayrl.planning.devices import GIB, Device
from rayrl.planning.memory import RankMemory, Training, trainer_memory
from rayrl.planning.serving import EngineMemory, Serving, engine_memory, scorer_memory
from rayrl.planning.shapes import ModelShape, find_shape

TRAINER_PROCESS = int(0.55 * GIB)
ENGINE_PROCESS = int(0.75 * GIB)
"""With vLLM; as a trainer's with Hugging Face generation."""
SCORER_PROCESS = int(0.5 * GIB)
PLAIN_PROCESS = int(0.15 * GIB)
"""Of a reward that holds no model."""
GPU_CONTEXT = int(1.5 * GIB)
"""On a GPU, of each process that uses it: context, workspaces, NCCL."""
HOST_PROCESS = 3 * GIB
"""In host memory, of each process that uses a GPU."""
DRIVER = int(1.25 * GIB)
"""On the first node: the run's driver and Ray's own processes."""


@dataclass(frozen=True)
class Shapes:
    """A run's models."""

    policy: ModelShape
    critic: ModelShape
    rewards: Mapping[str, ModelShape]
    """By the reward's name; those of kind `model`."""


def find_shapes(config: PPOConfig, stated: Mapping[str, str]) -> Shapes:
    """The shapes of all models of a run.

    Args:
        stated: by role (`policy`, `critic`, `reward:NAME`), or "" for models whose shape isn't known otherwise.

    Raises:
        UserError: a role that the run doesn't have, or a model whose shape isn't known.
    """
    models = {reward_role(entry.name): entry.model for entry in config.rewards if entry.model is not None}
    roles = ["policy", "critic", *models]
    unknown = sorted(set(stated) - {"", *roles})
    if unknown:
        raise UserError(f"--shape {unknown[0]}=...: no model of this run is called so (there are: {', '.join(roles)})")

    def shape(role: str, model: str) -> ModelShape:
        if role in stated or "" not in stated:
            return find_shape(model, stated.get(role))
        otherwise = find_shape(model, stated[""])
        try:
            return find_shape(model)
        except UserError:
            return otherwise

    policy = shape("policy", config.policy.model)
    rewards = {role.partition(":")[2]: shape(role, model) for role, model in models.items()}
    source = config.critic.model
    if "critic" in stated:
        critic = find_shape(source, stated["critic"])
    elif source == "policy":
        critic = policy
    elif source.startswith("reward:"):
        critic = rewards[source.partition(":")[2]]
    else:
        critic = shape("critic", source)
    return Shapes(policy, critic, rewards)


def micro_batch_rows(config: PPOConfig, trainer: TrainerConfig) -> tuple[int, bool]:
    """Sequences of a trainer's largest micro-batch (supervised ones included), and whether several fill a minibatch."""
    rows = config.sequences_per_step // config.policy.ranks // config.algorithm.minibatches
    count = -(-rows // trainer.micro_batch_size)
    return -(-rows // count), count > 1


def training(config: PPOConfig, role: str, device: Device) -> Training:
    """What a trained role's memory depends on. `role`: policy or critic."""
    policy = role == "policy"
    trainer: TrainerConfig = config.policy if policy else config.critic
    rows, accumulates = micro_batch_rows(config, trainer)
    if policy and config.algorithm.ptx is not None:
        rows += -(-config.algorithm.ptx.batch_size // config.policy.ranks)  # both graphs wait for one backward pass
    train, dtype = trainer.train, trainer.dtype if trainer.dtype != "auto" else device.auto
    return Training(
        role="policy" if policy else "critic",
        dtype=dtype,
        gpu=device.gpu,
        mode=train.mode,
        num_layers=train.num_layers,
        lora_rank=train.lora_rank,
        lora_targets=tuple(train.lora_targets),
        lora_dropout=train.lora_dropout,
        optimizer=trainer.optimizer.kind,
        ranks=trainer.ranks,
        zero_stage=trainer.zero_stage,
        offload_optimizer=trainer.offload_optimizer,
        gradient_checkpointing=trainer.gradient_checkpointing,
        micro_batch=rows,
        accumulates=accumulates,
        sequences=config.sequences_per_step // config.policy.ranks,
        prompt_tokens=config.rollout.max_prompt_tokens,
        answer_tokens=config.rollout.max_new_tokens,
    )


def serving(config: PPOConfig, device: Device) -> Serving:
    """What an engine's memory depends on."""
    rollout = config.rollout
    return Serving(
        backend=rollout.backend,
        dtype=rollout.dtype if rollout.dtype != "auto" else device.auto,
        gpu=device.gpu,
        tensor_parallel=rollout.tensor_parallel,
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_new_tokens=rollout.max_new_tokens,
        max_num_seqs=rollout.max_num_seqs,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        kv_cache_gb=rollout.kv_cache_gb,
        enforce_eager=rollout.enforce_eager,
        sleeps=rollout.sleep_between_phases,
    )


def engine(config: PPOConfig, shapes: Shapes, device: Device) -> EngineMemory:
    """One device's share of a rollout engine."""
    process = TRAINER_PROCESS if config.rollout.backend == "hf" else ENGINE_PROCESS
    framework = GPU_CONTEXT if device.gpu else process
    return engine_memory(shapes.policy, serving(config, device), device.memory, framework)


def rank_memory(config: PPOConfig, shapes: Shapes, role: str, device: Device) -> RankMemory:
    """One rank's memory on this kind of device; of an engine, one device's share."""
    if role in ("policy", "critic"):
        shape = shapes.policy if role == "policy" else shapes.critic
        return trainer_memory(shape, training(config, role, device), GPU_CONTEXT if device.gpu else TRAINER_PROCESS)
    if role == "rollout":
        return engine(config, shapes, device).memory
    framework = GPU_CONTEXT if device.gpu else SCORER_PROCESS
    length = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    if role == "reference":
        dtype = config.policy.dtype if config.policy.dtype != "auto" else device.auto
        rows, _ = micro_batch_rows(config, config.policy)
        return scorer_memory(shapes.policy, dtype, device.gpu, rows, length, framework, logits=True)
    entry = reward_entry(config, role)
    if entry.kind != "model":
        return RankMemory(other=PLAIN_PROCESS, peak=PLAIN_PROCESS, idle=PLAIN_PROCESS, start=PLAIN_PROCESS)
    shape = shapes.rewards[entry.name]
    return scorer_memory(shape, device.auto, device.gpu, entry.batch_size, length, framework, logits=False)


def reward_entry(config: PPOConfig, role: str) -> RewardEntry:
    """The reward source of a role named reward:NAME."""
    return next(entry for entry in config.rewards if reward_role(entry.name) == role)


def model_of(config: PPOConfig, shapes: Shapes, role: str) -> str:
    """What a role runs, for the table."""
    if role.startswith("reward:"):
        entry = reward_entry(config, role)
        return f"model {shapes.rewards[entry.name].name}" if entry.kind == "model" else f"{entry.kind}"
    shape = shapes.critic if role == "critic" else shapes.policy
    if role == "rollout":
        return f"{config.rollout.backend} {shape.name}"
    if role == "reference":
        return shape.name
    trainer: TrainerConfig = config.critic if role == "critic" else config.policy
    train = trainer.train
    parts = {"full": "all", "lora": f"LoRA {train.lora_rank}", "last_n": f"last {train.num_layers}"}[train.mode]
    return f"{shape.name}, {parts}, ZeRO {trainer.zero_stage}"


def trained_roles(config: PPOConfig) -> list[str]:
    """policy, and critic where the estimator needs one."""
    return ["policy", "critic"] if config.uses_critic else ["policy"]


def frozen_roles(config: PPOConfig) -> list[str]:
    """reference, where it is a model of its own, and the rewards."""
    own = ["reference"] if has_own_reference(config) else []
    return own + [reward_role(entry.name) for entry in config.rewards]
