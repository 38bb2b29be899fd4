"""A plan as plain text, and as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rayrl.planning import demands
from rayrl.planning.changes import Change
from rayrl.planning.devices import CPU_SHARE, DECODE_SHARE, GIB, PREFILL_SHARE, TRAIN_SHARE, Device
from rayrl.planning.plan import Actor, Load, Plan
from rayrl.planning.step import StepTime

TITLES = (
    "role", "ranks", "node", "GPUs", "weights", "grads", "optim", "activ", "KV", "other", "peak", "host", "runs",
)  # fmt: skip


def lines(plan: Plan, change: Change | None, time: StepTime | None) -> list[str]:
    """The whole plan: actors, the fullest places, what doesn't fit and what would, a step's time."""
    config = plan.config
    out = [f"plan for {plan.machines.what}; GiB, each rank's own", ""]
    if plan.actors:
        out += [*_columns([TITLES, *_rows(plan)]), "", *_fullest(plan), ""]
    if plan.shapes.policy and "rollout" in {actor.role for actor in plan.actors}:
        length = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
        out.append(
            f"an engine's cache holds {plan.sequences:.0f} sequences of {length} tokens "
            f"(rollout.max_num_seqs {config.rollout.max_num_seqs})"
        )
    out += [f"no room yet, and may come later: {ranks}" for ranks in plan.waits]
    if any(node.gpus for node in plan.machines.nodes) and not any(actor.gpus for actor in plan.actors):
        out.append("no role asks for a GPU: policy.gpus_per_rank, rollout.gpus_per_engine and their like are 0")
    if plan.fits:
        out.append("everything fits")
    else:
        out += [f"doesn't fit: {problem}" for problem in plan.problems]
        out.append(_advice(change))
    if time is not None:
        out += ["", *_time_lines(plan, time)]
    return out


def _advice(change: Change | None) -> str:
    if change is None:
        return "no one or two of the changes that were tried would make it fit"
    return f"smallest change that would: {change.text}"


def _rows(plan: Plan) -> Iterable[tuple[str, ...]]:
    """One row for the ranks of a role on one node."""
    for (role, node), group in groupby(plan.actors, key=lambda actor: (actor.role, actor.node)):
        ranks = list(group)
        memory = ranks[0].memory
        gpus = sorted({gpu for actor in ranks for gpu in actor.gpus})
        amounts = (
            memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.cache, memory.other,
            memory.peak, memory.host,
        )  # fmt: skip
        yield (
            role,
            ranges([actor.rank for actor in ranks]),
            node,
            ranges(gpus) or "-",
            *(_gib(amount) for amount in amounts),
            demands.model_of(plan.config, plan.shapes, role),
        )


def ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _gib(amount: int) -> str:
    if not amount:
        return "-"
    return f"{amount / GIB:.1f}" if amount >= 0.05 * GIB else f"{amount / GIB:.3f}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numeric = range(4, 12)
    return [
        "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _fullest(plan: Plan) -> list[str]:
    """The fullest GPU and the fullest node's memory."""
    out = []
    for name, loads in (
        ("fullest GPU", [load for load in plan.loads if load.gpu is not None]),
        ("fullest node memory", [load for load in plan.loads if load.gpu is None]),
    ):
        if loads:
            load = max(loads, key=lambda load: load.needed / load.room)
            out.append(f"{name}: {_place(load)} {load.needed / GIB:.1f} of {load.room / GIB:.1f} GiB ({load.phase})")
    return out


def _place(load: Load) -> str:
    return load.node if load.gpu is None else f"{load.node}, GPU {load.gpu},"


def _time_lines(plan: Plan, time: StepTime) -> list[str]:
    config = plan.config
    phases = ", ".join(f"{phase} {_seconds(amount)}" for phase, amount in time.phases.items())
    speed = time.answer_tokens_per_step / time.total
    kinds = sorted({_device(plan, actor) for actor in plan.actors}, key=lambda device: device.name)
    return [
        f"a step of {config.sequences_per_step} sequences of {time.prompt_tokens} + {time.answer_tokens} tokens takes "
        f"about {_seconds(time.total)}: {phases}",
        f"{speed:.0f} answer tokens a second; {config.steps} steps take about {_seconds(config.steps * time.total)}, "
        "without evaluations, checkpoints and the start",
        f"assumed: {'; '.join(_assumed(device) for device in kinds)} (docs/plan.md)",
    ]


def _device(plan: Plan, actor: Actor) -> Device:
    node = next(node for node in plan.machines.nodes if node.name == actor.node)
    return node.gpu if actor.gpus and node.gpu is not None else node.cpu


def _assumed(device: Device) -> str:
    if not device.gpu:
        return f"{CPU_SHARE:g} of what a {device.name} core was measured to do"
    peak = f"{device.bf16_flops / 1e12:g} TFLOP/s in bf16, {device.bandwidth / 1e9:g} GB/s"
    shares = f"{TRAIN_SHARE:g} of it in training, {PREFILL_SHARE:g} in scoring, {DECODE_SHARE:g} of the bandwidth"
    return f"{device.name} {peak}; {shares} in generation"


def _seconds(amount: float) -> str:
    if amount < 10:
        return f"{amount:.1f} s"
    if amount < 120:
        return f"{amount:.0f} s"
    if amount < 7200:
        return f"{amount / 60:.1f} min" if amount < 600 else f"{amount / 60:.0f} min"
    return f"{amount / 3600:.1f} h" if amount < 100 * 3600 else f"{amount / 3600:.0f} h"


def as_data(plan: Plan, change: Change | None, time: StepTime | None) -> dict[str, Any]:
    """The plan for other programs: bytes and seconds."""
    return {
        "cluster": plan.machines.what,
        "fits": plan.fits,
        "problems": list(plan.problems),
        "change": None if change is None else {"overrides": dict(change.overrides), "nodes": change.nodes},
        "actors": [{**asdict(actor), "gpus": list(actor.gpus)} for actor in plan.actors],
        "places": [asdict(load) | {"by_role": dict(load.by_role)} for load in plan.loads],
        "engine_sequences": plan.sequences,
        "step": None if time is None else {**asdict(time), "total": time.total},
        "models": {
            "policy": asdict(plan.shapes.policy),
            "critic": asdict(plan.shapes.critic),
            "rewards": {name: asdict(shape) for name, shape in plan.shapes.rewards.items()},
        },
    }
