"""The command `rayrl`: reads a configuration, starts the stage, turns errors into one sentence.

Imports nothing heavy at the top: `rayrl --help` answers at once, without pydantic, Ray or torch. Stages are started by
module name, so that this layer imports no actor. Exit codes: 0 done, 1 the run failed, 2 bad input, 3 a plan
that doesn't fit, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import jobs
from cluster.errors import CannotConnect, ClusterError, DoesNotFit, JobRefused
from rayrl.commands import kuberay, plan, stage, submit
from rayrl.config.commands import COMMANDS
from rayrl.config.trust import allow
from rayrl.errors import RunError, UserError

if TYPE_CHECKING:
    from rayrl.config.ppo import PPOConfig
    from rayrl.config.strict import CommandConfig

DEBUG_VARIABLE = "RAYRL_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = _parse(argv)
    _log_to_stderr()
    try:
        return args.handler(args) or 0
    except (UserError, DoesNotFit, CannotConnect, JobRefused) as error:
        return _fail(str(error), 2)
    except (ClusterError, RunError) as error:
        return _fail(str(error), 1)
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing it would fail again
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted; the same command resumes the run", 130)
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raised_in = "".join(f", {note}" for note in getattr(error, "__notes__", []))
        return _fail(f"{type(error).__name__}: {first_line}{raised_in} (set {DEBUG_VARIABLE}=1 to see where)", 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rayrl",
        description="Adapts a language model to a profession by reinforcement learning from mixed feedback, on Ray.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, command in COMMANDS.items():
        parser_of_stage = commands.add_parser(name, help=command.help)
        stage.add_arguments(parser_of_stage, command)
        parser_of_stage.set_defaults(handler=_stage, command=name)

    presets = commands.add_parser("presets", help="list the presets in the package")
    presets.set_defaults(handler=_presets)

    report = commands.add_parser("report", help="write a PPO run's report.html again")
    report.add_argument("directory", metavar="DIR", type=Path, help="the run's output_dir")
    report.set_defaults(handler=_report)

    compare = commands.add_parser("compare", help="put fine-tuning runs' loss curves, or evaluations, on one page")
    compare.add_argument(
        "runs", metavar="NAME=DIR[+DIR]", nargs="+", help="a run, or its stages in their order; or an evaluation"
    )
    compare.add_argument("--to", metavar="FILE", type=Path, default=Path("runs/comparison.html"), help="the page")
    compare.set_defaults(handler=_compare)

    kuberay.add(commands)
    plan.add(commands)
    submit.add(commands)

    args, rest = parser.parse_known_args(argv)
    stray = [word for word in rest if not hasattr(args, "overrides") or word.startswith("-")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:  # overrides after an option: argparse gives them back
        args.overrides += rest
    return args


class _Version(argparse.Action):
    """Looks the version up only when asked: importlib.metadata costs a third of the start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"rayrl {version('rayrl')}")
        parser.exit()


def _stage(args: argparse.Namespace) -> None:
    from rayrl.config.load import dump, require_no_placeholders

    command = COMMANDS[args.command]
    config = stage.read_config(args.command, args)
    if args.dry_run:
        print(dump(config))
        print("\n".join(f"# {line}" for line in _plan(config)))
        return
    require_no_placeholders(config)
    allow(args.allow)
    with tempfile.TemporaryDirectory(prefix="rayrl-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump(config), encoding="utf-8")
        jobs.run(command.module, path)


def _plan(config: CommandConfig) -> list[str]:
    """What would start, in lines of text: where every role goes, for a command with roles; what is still to be set."""
    from rayrl.config.load import placeholders
    from rayrl.config.ppo import PPOConfig

    lines = _roles(config) if isinstance(config, PPOConfig) else []
    unset = placeholders(config)
    if unset:
        lines.append(f"still to be set: {', '.join(unset)}")
    return lines


def _roles(config: PPOConfig) -> list[str]:
    from cluster.fit import check_fits
    from cluster.machine import this_machine
    from rayrl.placement import plan_table, role_specs

    titles = ("role", "ranks", "cpus", "gpus", "strategy", "placed in", "model")
    rows = [titles] + [
        (row.role, str(row.ranks), f"{row.cpus:g}", f"{row.gpus:g}", row.strategy, row.shares_with, row.model)
        for row in plan_table(config)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if config.cluster.address == "local":
        here = this_machine(os.environ)
        try:
            check_fits(role_specs(config), [here])
            lines.append(f"fits this machine ({here.cpus:g} CPU, {here.gpus:g} GPU)")
        except DoesNotFit as error:
            lines.append(str(error))
    else:
        lines.append(
            f"whether the cluster at {config.cluster.address!r} can hold them is checked before anything starts"
        )
    return lines


def _presets(args: argparse.Namespace) -> None:
    from rayrl.config.load import presets

    rows = [(f"{command} {name}", line) for command in COMMANDS for name, line in presets(command).items()]
    width = max(len(name) for name, _ in rows)
    for name, line in rows:
        print(f"{name.ljust(width)}  {line}")


def _report(args: argparse.Namespace) -> None:
    if not args.directory.is_dir():
        raise UserError(f"no run folder {args.directory}; name the output_dir of a run")
    from rayrl.data.stage_folder import RUN_RECORD
    from rayrl.evaluation.report import write_report

    if not (args.directory / RUN_RECORD).is_file():
        raise UserError(f"{args.directory} isn't the folder of a `rayrl ppo` run; other stages write their own reports")

    write_report(args.directory)


def _compare(args: argparse.Namespace) -> None:
    from rayrl.evaluation.compare_evals import is_evaluation, read_evaluation, write_evaluations
    from rayrl.evaluation.compare_report import read_run, write_comparison

    if any(is_evaluation(Path(text.partition("=")[2]).expanduser()) for text in args.runs):
        write_evaluations([read_evaluation(text) for text in args.runs], args.to)
    else:
        write_comparison([read_run(text) for text in args.runs], args.to)
    print(f"report: {args.to}")


def _log_to_stderr() -> None:
    """The project's own messages; other libraries only when something is wrong."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    for package in ("rayrl", "actors", "cluster"):
        logging.getLogger(package).setLevel(logging.INFO)


def _fail(message: str, code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exc()
    print(f"rayrl: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
