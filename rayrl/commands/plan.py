"""`rayrl plan`: where every actor of a PPO run goes, its memory, and how long a step takes; starts nothing."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from rayrl.errors import UserError

if TYPE_CHECKING:
    from rayrl.config.ppo import PPOConfig
    from rayrl.planning.machines import Machines

DOES_NOT_FIT = 3
"""Exit code of a plan that doesn't fit."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Registers the command."""
    plan = commands.add_parser(
        "plan",
        help="show where a PPO run's actors go, what memory they need and how long a step takes",
        description="Plans a PPO run and starts nothing. Ends with 0 where everything fits, with 3 where it doesn't.",
    )
    plan.add_argument("source", metavar="SOURCE", help="YAML file, or a preset of `rayrl ppo`")
    plan.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="e.g. policy.zero_stage=3")
    plan.add_argument(
        "--cluster",
        metavar="SPEC",
        help="plan for NODESxGPUSxDEVICE[:CPUS[:GB]], as in 4x8xH100 or 1x0xCPU:64, joined by +; by default for "
        "cluster.address, or for this machine",
    )
    plan.add_argument(
        "--shape",
        metavar="[ROLE=]SHAPE",
        action="append",
        default=[],
        help="shape of models that aren't here: 13b, llama-3.1-70b, a folder with config.json; of one role: critic=7b",
    )
    plan.add_argument(
        "--tokens", metavar="PROMPT:ANSWER", help="mean lengths, for the time of a step; by default the longest"
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(handler=_plan)


def _plan(args: argparse.Namespace) -> int:
    import json

    from rayrl.config.load import load
    from rayrl.config.ppo import PPOConfig
    from rayrl.planning.changes import smallest_change
    from rayrl.planning.demands import find_shapes
    from rayrl.planning.plan import make_plan
    from rayrl.planning.step import step_time
    from rayrl.planning.table import as_data, lines

    config = load(PPOConfig, args.source, args.overrides)
    longest = (config.rollout.max_prompt_tokens, config.rollout.max_new_tokens)
    lengths = None if args.tokens is None else _lengths(args.tokens, longest)
    shapes = find_shapes(config, _stated(args.shape))
    plan = make_plan(config, shapes, _machines(args.cluster, config))
    change = None if plan.fits else smallest_change(plan)
    time = step_time(plan, lengths) if plan.fits else None
    if args.json:
        print(json.dumps(as_data(plan, change, time), indent=2))
    else:
        print("\n".join(lines(plan, change, time)))
    return 0 if plan.fits else DOES_NOT_FIT


def _machines(spec: str | None, config: PPOConfig) -> Machines:
    from rayrl.planning import machines

    if spec is not None:
        return machines.described(spec)
    if config.cluster.address == "local":
        return machines.here(os.environ)
    return machines.joined(config.cluster.address)


def _stated(shapes: list[str]) -> dict[str, str]:
    """By role, "" for all others."""
    stated = {}
    for text in shapes:
        role, equals, shape = text.rpartition("=")
        if not shape or (equals and not role):
            raise UserError(f"--shape {text}: write a shape, as in --shape 13b, or ROLE=SHAPE, as in --shape critic=7b")
        stated[role] = shape
    return stated


def _lengths(text: str, longest: tuple[int, int]) -> tuple[int, int]:
    prompt, colon, answer = text.partition(":")
    if not (colon and prompt.isdecimal() and answer.isdecimal() and int(prompt) and int(answer)):
        raise UserError(f"--tokens {text}: write the mean lengths of a prompt and an answer, as in --tokens 300:150")
    lengths = int(prompt), int(answer)
    for key, mean, limit in zip(("max_prompt_tokens", "max_new_tokens"), lengths, longest, strict=True):
        if mean > limit:
            raise UserError(f"--tokens {text}: a mean of {mean} is more than the longest, rollout.{key} ({limit})")
    return lengths
