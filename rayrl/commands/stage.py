"""The arguments of every command that takes a configuration: for the command itself, and for `rayrl submit -- COMMAND`.

Imports nothing heavy; `read_config` does when it is called.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rayrl.config.commands import COMMANDS, Command
from rayrl.config.trust import KINDS

if TYPE_CHECKING:
    from rayrl.config.strict import CommandConfig


def add_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    """Source, overrides and options."""
    parser.add_argument("source", metavar="SOURCE", help="YAML file, or a preset's name (see `rayrl presets`)")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="e.g. output_dir=runs/a seed=1")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config; start nothing")
    what_for = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    parser.add_argument(
        "--allow", metavar="WHAT", action="append", default=[], choices=list(KINDS), help=f"trust models ({what_for})"
    )
    for option, what in command.options.items():
        parser.add_argument(option, metavar="STAGE", help=what.help)


def read_config(name: str, args: argparse.Namespace, *further: str) -> CommandConfig:
    """The configuration of command `name` that the arguments describe, with `further` overrides. Raises ConfigError."""
    from rayrl.config.load import load

    command = COMMANDS[name]
    named = [(what.key, getattr(args, option.lstrip("-"))) for option, what in command.options.items()]
    overrides = [f"{key}={value}" for key, value in named if value is not None]
    return load(command.model(), args.source, [*args.overrides, *overrides, *further])
