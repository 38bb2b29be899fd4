"""How long a step of a planned run takes: roles of a phase work at one time, those that share a device take turns.

A phase lasts as long as its slowest place: on a GPU the roles that share it one after the other, on a node's cores
whichever is longer, the slowest role or all roles' work over all cores. The arithmetic of each role is in time.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from rayrl.config.ppo import PPOConfig
from rayrl.placement import role_specs, shares_trunk
from rayrl.planning import demands
from rayrl.planning.devices import PREFILL_SHARE, TRAIN_SHARE, Device
from rayrl.planning.memory import Training
from rayrl.planning.plan import Actor, Plan
from rayrl.planning.shapes import ModelShape
from rayrl.planning.time import (
    Work,
    block_flops,
    compute_s,
    exchange_s,
    generate_s,
    head_flops,
    offloaded_s,
    score_flops,
    sync_s,
    update_flops,
)

PHASES = ("generate", "score", "update", "sync")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step without evaluation and checkpoints."""

    phases: dict[str, float]
    by_role: dict[str, float]
    """Of the roles that do more than wait, as `role, phase`: one rank's own work."""
    prompt_tokens: int
    answer_tokens: int
    answer_tokens_per_step: int

    @property
    def total(self) -> float:
        """All phases, which follow each other."""
        return sum(self.phases.values())


class _Clock:
    """A plan's roles and what each takes."""

    def __init__(self, plan: Plan, prompt_tokens: int, answer_tokens: int) -> None:
        self.plan, self.config, self.shapes = plan, plan.config, plan.shapes
        self.lengths = (prompt_tokens, answer_tokens)
        self.nodes = {node.name: node for node in plan.machines.nodes}
        self.threads = {spec.name: float(spec.env.get("OMP_NUM_THREADS", "1")) for spec in role_specs(plan.config)}

    def first(self, role: str) -> Actor:
        """A role's rank 0, like which the others are."""
        return next(actor for actor in self.plan.actors if actor.role == role)

    def place(self, role: str) -> tuple[Device, float]:
        """The device of a role's ranks, and how many of a CPU's cores a rank works on."""
        actor = self.first(role)
        node = self.nodes[actor.node]
        if actor.gpus and node.gpu is not None:
            return node.gpu, 1.0
        return node.cpu, min(self.threads[role], node.resources.cpus)

    def ranks_per_node(self, role: str) -> int:
        """How many of a role's ranks share a node, at most."""
        on: dict[str, int] = defaultdict(int)
        for actor in self.plan.actors:
            if actor.role == role:
                on[actor.node] += 1
        return max(on.values())

    def work(self, sequences: int) -> Work:
        """Sequences of the expected lengths."""
        return Work(sequences, *self.lengths)

    def trained(self, role: str) -> tuple[ModelShape, Training, Device, float]:
        """A trained role's shape, set-up, device and cores."""
        device, cores = self.place(role)
        shape = self.shapes.policy if role == "policy" else self.shapes.critic
        return shape, demands.training(self.config, role, device), device, cores

    def generate(self) -> float:
        """Seconds of the slowest engine."""
        config, (device, cores) = self.config, self.place("rollout")
        engines = sum(actor.role == "rollout" for actor in self.plan.actors)
        prompts = -(-config.prompts_per_step // engines)
        serving = demands.serving(config, device)
        held = max(1, int(self.plan.sequences * serving.length / sum(self.lengths)))
        at_once = min(config.rollout.max_num_seqs, held)
        work = self.work(prompts * config.samples_per_prompt)
        return generate_s(self.shapes.policy, work, device, serving.dtype, serving.tensor_parallel, at_once, cores)

    def score_trained(self, role: str) -> float:
        """Log-probabilities (with LoRA and last_n the reference's too) or values of a rank's sequences."""
        shape, training, device, cores = self.trained(role)
        work = self.work(training.sequences)
        flops = score_flops(shape, work, logits=role == "policy")
        if role == "critic" and shares_trunk(self.config):
            flops = block_flops(shape, work, training.num_layers)
        if role == "policy" and training.mode == "lora":
            flops *= 2
        if role == "policy" and training.mode == "last_n":
            head = head_flops(shape, work.sequences * work.answer_tokens)
            flops += block_flops(shape, work, training.num_layers) + head
        return compute_s(flops, device, training.dtype, PREFILL_SHARE, cores)

    def score_frozen(self, role: str) -> float:
        """A reference's or a reward model's share; nothing for rewards without a model."""
        config = self.config
        ranks = sum(actor.role == role for actor in self.plan.actors)
        work = self.work(-(-config.sequences_per_step // ranks))
        device, cores = self.place(role)
        if role == "reference":
            dtype = config.policy.dtype if config.policy.dtype != "auto" else device.auto
            return compute_s(score_flops(self.shapes.policy, work, True), device, dtype, PREFILL_SHARE, cores)
        entry = demands.reward_entry(config, role)
        if entry.kind != "model":
            return 0.0
        return compute_s(
            score_flops(self.shapes.rewards[entry.name], work, False), device, device.auto, PREFILL_SHARE, cores
        )

    def update(self, role: str) -> float:
        """All epochs, gradients exchanged at every optimizer step."""
        shape, training, device, cores = self.trained(role)
        algorithm = self.config.algorithm
        flops = algorithm.epochs * update_flops(shape, training, self.work(training.sequences))
        passes = algorithm.epochs * -(-training.sequences // training.micro_batch)
        steps = algorithm.epochs * algorithm.minibatches
        exchanged = exchange_s(shape, training, device, self.ranks_per_node(role), steps, passes)
        stepped = steps * offloaded_s(shape, training, self.threads[role])
        return compute_s(flops, device, training.dtype, TRAIN_SHARE, cores) + exchanged + stepped

    def sync(self) -> float:
        """Trained weights to the engines."""
        shape, training, device, _ = self.trained("policy")
        return sync_s(shape, training, device, self.ranks_per_node("policy"))

    def together(self, seconds: dict[str, float]) -> float:
        """How long a phase lasts in which each of these roles works so long."""
        if self.config.cluster.take_turns:
            return sum(seconds.values())
        on: dict[tuple[str, int | None], set[str]] = defaultdict(set)
        work: dict[str, float] = defaultdict(float)
        for actor in self.plan.actors:
            if actor.role not in seconds:
                continue
            if actor.gpus:
                on[actor.node, actor.gpus[0]].add(actor.role)
            else:
                work[actor.node] += seconds[actor.role] * self.place(actor.role)[1]
        longest = [sum(seconds[role] for role in roles) for roles in on.values()]
        longest += [amount / self.nodes[name].resources.cpus for name, amount in work.items()]
        return max([*longest, *seconds.values()])


def step_time(plan: Plan, lengths: tuple[int, int] | None = None) -> StepTime:
    """Seconds of a step of a plan whose roles have places.

    Args:
        lengths: mean tokens of a prompt and of an answer; by default the longest that the run permits.
    """
    config: PPOConfig = plan.config
    prompt, answer = lengths or (config.rollout.max_prompt_tokens, config.rollout.max_new_tokens)
    clock = _Clock(plan, prompt, answer)
    scoring = {role: clock.score_trained(role) for role in demands.trained_roles(config)}
    scoring |= {role: clock.score_frozen(role) for role in demands.frozen_roles(config)}
    updating = {role: clock.update(role) for role in demands.trained_roles(config)}
    phases = {
        "generate": clock.generate(),
        "score": clock.together(scoring),
        "update": clock.together(updating),
        "sync": clock.sync(),
    }
    by_role = _named(scoring.items(), "score") | _named(updating.items(), "update")
    return StepTime(phases, by_role, prompt, answer, config.sequences_per_step * answer)


def _named(seconds: Iterable[tuple[str, float]], phase: str) -> dict[str, float]:
    return {f"{role}, {phase}": amount for role, amount in seconds if amount}
