"""A plan: every actor's place and memory, what each device and node comes to, and whether it all fits.

Nodes are chosen as Ray will be asked to (cluster/fit.py); which of a node's GPUs a rank gets is this module's guess at
Ray's: whole ones first, fractions together. Memory is added up over the actors of a device (of a node, for host memory)
in each phase of a step, since what works in one rests in another. Changes that would help are searched in changes.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.errors import DoesNotFit
from cluster.fit import Bundle, check_fits, groups
from cluster.specs import RoleSpec
from rayrl.config.ppo import PPOConfig
from rayrl.placement import role_specs
from rayrl.planning import demands
from rayrl.planning.demands import Shapes
from rayrl.planning.devices import GIB, Device
from rayrl.planning.machines import Machines, Node
from rayrl.planning.memory import RankMemory
from rayrl.planning.serving import EngineMemory

SPARE = 0.05
"""Share of a GPU, or of a node's memory, that is left free: fragmentation, the system, what isn't counted."""
PHASES = ("generate", "score", "update", "start")
"""In which memory is added up; of equal ones the first is named."""


@dataclass(frozen=True)
class Actor:
    """One rank, where it runs and what it holds."""

    role: str
    rank: int
    node: str
    gpus: tuple[int, ...]
    """The node's devices that it uses; empty on CPUs."""
    memory: RankMemory


@dataclass(frozen=True)
class Load:
    """What comes together on one GPU, or in one node's host memory."""

    node: str
    gpu: int | None
    phase: str
    """The one in which it is most."""
    needed: int
    room: int
    by_role: Mapping[str, int]

    @property
    def short(self) -> int:
        """Bytes that are missing; 0 where it fits."""
        return max(0, self.needed - self.room)

    def sentence(self) -> str:
        """What doesn't fit, in words."""
        where = f"{self.node}'s memory" if self.gpu is None else f"GPU {self.gpu} of {self.node}"
        large = {role: amount for role, amount in self.by_role.items() if amount >= 0.03 * self.needed}
        rest = self.needed - sum(large.values())
        named = [*large.items(), *([("others", rest)] if rest else [])]
        parts = ", ".join(f"{role} {amount / GIB:.1f}" for role, amount in named)
        return (
            f"{where} needs {self.needed / GIB:.1f} GiB of the {self.room / GIB:.1f} that can be used "
            f"(phase {self.phase}: {parts})"
        )


@dataclass(frozen=True)
class Plan:
    """Everything that is known before a run starts."""

    config: PPOConfig
    shapes: Shapes
    machines: Machines
    actors: tuple[Actor, ...] = ()
    loads: tuple[Load, ...] = ()
    problems: tuple[str, ...] = ()
    sequences: float = 0.0
    """Longest sequences that an engine's cache holds at a time."""
    waits: tuple[str, ...] = field(default=())
    """Ranks that have no room yet and come later."""

    @property
    def fits(self) -> bool:
        """Whether nothing is missing."""
        return not self.problems

    @property
    def short(self) -> float:
        """How far from fitting, in bytes; infinite where roles have no place at all."""
        if self.problems and not self.actors:
            return float("inf")
        return float(sum(load.short for load in self.loads))


def make_plan(config: PPOConfig, shapes: Shapes, machines: Machines) -> Plan:
    """Places every rank and adds up.

    Raises:
        ConfigError: reservations that no device can give (rayrl/placement.py).
    """
    specs = role_specs(config)
    if machines.described:
        machines = machines.with_resources({name for spec in specs for name in spec.resources})
    empty = Plan(config, shapes, machines)
    try:
        where = check_fits(specs, [node.resources for node in machines.nodes])
    except DoesNotFit as error:
        return replace(empty, problems=(str(error),))
    nodes = {node.name: node for node in machines.nodes}
    misfit = _too_many_blocks(config, shapes)
    if misfit:
        return replace(empty, problems=tuple(misfit))
    devices = _devices(specs, where, nodes)
    memory: dict[tuple[str, str], RankMemory] = {}
    actors = []
    for spec in specs:
        for rank, node in enumerate(where[spec.name]):
            device = _device(spec, nodes[node])
            if (spec.name, device.name) not in memory:
                memory[spec.name, device.name] = demands.rank_memory(config, shapes, spec.name, device)
            actors.append(Actor(spec.name, rank, node, devices[spec.name, rank], memory[spec.name, device.name]))
    engine_device = next(_device(spec, nodes[where[spec.name][0]]) for spec in specs if spec.name == "rollout")
    engine = demands.engine(config, shapes, engine_device)
    loads = [*_gpu_loads(config, actors, nodes), *_host_loads(config, actors, machines)]
    problems = [*_engine_problems(config, shapes, engine, engine_device), *_by_sentence(loads)]
    waits = [f"{s.name} {len(where[s.name])} to {s.ranks - 1}" for s in specs if len(where[s.name]) < s.ranks]
    return replace(
        empty,
        actors=tuple(actors),
        loads=tuple(loads),
        problems=tuple(problems),
        sequences=engine.sequences,
        waits=tuple(waits),
    )


def _device(spec: RoleSpec, node: Node) -> Device:
    """What a role's ranks work on in a node."""
    return node.gpu if spec.gpus and node.gpu is not None else node.cpu


def _devices(
    specs: Sequence[RoleSpec], where: Mapping[str, Sequence[str]], nodes: Mapping[str, Node]
) -> dict[tuple[str, int], tuple[int, ...]]:
    """The GPUs of each (role, rank): all ranks of a bundle share them, as bundles below one GPU do among themselves."""
    free = {name: [1.0] * node.gpus for name, node in nodes.items()}
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    for group in groups(specs):
        for index, bundle in enumerate(group.bundles):
            members = [spec for spec in group.roles if len(where[spec.name]) > index]
            if not members:
                continue
            taken = _take(bundle, free[where[members[0].name][index]])
            for spec in members:
                found[spec.name, index] = taken if spec.gpus else ()
    return found


def _take(bundle: Bundle, free: list[float]) -> tuple[int, ...]:
    share = bundle.resources().get("GPU", 0.0)
    if not share:
        return ()
    if share >= 1:
        chosen = [index for index, left in enumerate(free) if left == 1.0][: int(share)]
    else:
        # The fullest one that still has room, as Ray packs fractions.
        able = [index for index, left in enumerate(free) if left >= share - 1e-9]
        chosen = [min(able, key=lambda index: (free[index], index))] if able else []
    for index in chosen:
        free[index] -= min(share, 1.0)
    return tuple(chosen)


def in_phase(config: PPOConfig, role: str, memory: RankMemory, phase: str) -> int:
    """Bytes of a rank on its device in a phase.

    Where engines sleep between phases, they are awake while they generate and from the start to the first answers;
    the trainers' moments are in host memory then. Only stage 0 under bf16 makes its moments at the start.
    """
    sleeps = config.rollout.sleep_between_phases
    trainer = role in ("policy", "critic")
    if phase == "start":
        stage = (config.policy if role == "policy" else config.critic).zero_stage
        return max(memory.start, memory.idle - (memory.moments if trainer and stage > 0 else 0))
    if phase == "generate":
        if role == "rollout":
            return memory.peak
        return memory.idle - (memory.moments if sleeps and trainer else 0)
    if role == "rollout":
        return memory.idle
    if phase == "score":
        return memory.scoring if trainer else memory.peak
    return memory.peak if trainer else memory.idle


def _gpu_loads(config: PPOConfig, actors: Iterable[Actor], nodes: Mapping[str, Node]) -> list[Load]:
    on: dict[tuple[str, int], list[Actor]] = defaultdict(list)
    for actor in actors:
        # A trainer or scorer that claims several devices uses the first.
        for gpu in actor.gpus if actor.role == "rollout" else actor.gpus[:1]:
            on[actor.node, gpu].append(actor)
    loads = []
    for (name, gpu), there in sorted(on.items(), key=lambda item: (list(nodes).index(item[0][0]), item[0][1])):
        device = nodes[name].gpu
        assert device is not None
        # vLLM keeps to its share by itself; what is left free is of the rest.
        share = config.rollout.gpu_memory_utilization if config.rollout.backend == "vllm" else 0.0
        engines = [actor for actor in there if actor.role == "rollout"]
        kept = int(share * device.memory) if engines else 0
        room = kept + int((device.memory - kept) * (1 - SPARE))
        loads.append(_worst(config, name, gpu, there, room))
    return loads


def _worst(config: PPOConfig, node: str, gpu: int | None, actors: Sequence[Actor], room: int, fixed: int = 0) -> Load:
    """The phase in which these actors need most together. `fixed`: what is there beside them."""
    found: list[Load] = []
    for phase in PHASES:
        by_role: dict[str, int] = defaultdict(int)
        for actor in actors:
            by_role[actor.role] += in_phase(config, actor.role, actor.memory, phase)
        if fixed:
            by_role["Ray and driver"] = fixed
        found.append(Load(node, gpu, phase, sum(by_role.values()), room, dict(by_role)))
    return max(found, key=lambda load: load.needed)


def _host_loads(config: PPOConfig, actors: Sequence[Actor], machines: Machines) -> list[Load]:
    """Host memory: whole ranks on CPUs, processes and offloaded state of those on GPUs, Ray's own."""
    loads = []
    for index, node in enumerate(machines.nodes):
        there = [actor for actor in actors if actor.node == node.name]
        fixed = demands.DRIVER if index == 0 else 0
        if machines.private_ray:
            fixed += config.cluster.object_store_mb * 2**20
        hosted = [replace(actor, memory=_hosted(actor, config)) if actor.gpus else actor for actor in there]
        loads.append(_worst(config, node.name, None, hosted, int(node.host_bytes * (1 - SPARE)), fixed))
    return loads


def _hosted(actor: Actor, config: PPOConfig) -> RankMemory:
    """The host's part of a rank on a GPU: its process (one a device, for an engine), and what is offloaded."""
    moments = actor.memory.moments if config.rollout.sleep_between_phases else 0
    amount = demands.HOST_PROCESS * max(1, len(actor.gpus)) + actor.memory.host * len(actor.gpus) + moments
    return RankMemory(other=amount, peak=amount, idle=amount, scoring=amount, start=amount)


def _too_many_blocks(config: PPOConfig, shapes: Shapes) -> list[str]:
    return [
        f"{role}.train.num_layers is {trainer.train.num_layers}, but {shape.name} has {shape.layers} blocks"
        for role, trainer, shape in (("policy", config.policy, shapes.policy), ("critic", config.critic, shapes.critic))
        if role in demands.trained_roles(config)
        and trainer.train.mode == "last_n"
        and trainer.train.num_layers >= shape.layers
    ]


def _engine_problems(config: PPOConfig, shapes: Shapes, found: EngineMemory, device: Device) -> list[str]:
    """What vLLM itself would refuse."""
    rollout, shape = config.rollout, shapes.policy
    if rollout.backend != "vllm":
        return []
    problems = []
    if shape.heads % rollout.tensor_parallel:
        problems.append(
            f"rollout.tensor_parallel {rollout.tensor_parallel} doesn't divide the {shape.heads} heads of {shape.name}"
        )
    if found.sequences < 1:
        length = rollout.max_prompt_tokens + rollout.max_new_tokens
        memory = found.memory
        limit = (
            f"rollout.gpu_memory_utilization {rollout.gpu_memory_utilization:g} of {device.memory / GIB:.1f} GiB"
            if device.gpu
            else f"rollout.kv_cache_gb {rollout.kv_cache_gb:g}"
        )
        problems.append(
            f"an engine has no room for one sequence of {length} tokens: weights {memory.weights / GIB:.1f} GiB, "
            f"workspace {(memory.activations + memory.other) / GIB:.1f}, in {limit}"
        )
    return problems


def _by_sentence(loads: Sequence[Load]) -> list[str]:
    """A sentence for the worst of each kind of overfull place: sixteen nodes alike say the same once."""
    worst: dict[tuple[bool, tuple[str, ...]], list[Load]] = defaultdict(list)
    for load in loads:
        if load.short:
            worst[load.gpu is None, tuple(load.by_role)].append(load)
    sentences = []
    for alike in worst.values():
        most = max(alike, key=lambda load: load.short)
        others = f", and {len(alike) - 1} more like it" if len(alike) > 1 else ""
        sentences.append(most.sentence() + others)
    return sentences
