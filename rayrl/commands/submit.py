"""`rayrl submit -- COMMAND ...` and `rayrl job ...`: runs on a Ray cluster, sent through its dashboard.

The configuration is read and checked here, as the command itself would, and travels resolved, in one YAML. Following a
job costs it nothing: the terminal may be closed, and the same command line, given again when the job has ended,
resumes the run. Nothing of Ray is imported before it is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayrl.commands.stage import add_arguments
from rayrl.config.commands import COMMANDS
from rayrl.errors import UserError

if TYPE_CHECKING:
    from cluster.submission import Found, Jobs
    from rayrl.commands.job_config import JobConfig

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
_NOT_FOUND = 127
"""What a shell ends with where a command doesn't exist."""


def add(commands: Any) -> None:
    """Registers `submit` and `job` among the command line's subparsers."""
    submit = commands.add_parser(
        "submit",
        help="run a command on a Ray cluster, as a job",
        usage="rayrl submit [options] -- COMMAND SOURCE [KEY=VALUE ...]",
        description="Sends the working directory and the resolved configuration to a Ray cluster and runs them there.",
    )
    _add_address(submit)
    submit.add_argument("--name", help="of the job; by default the output folder's. Used again: NAME-2, NAME-3 ...")
    submit.add_argument("--working-dir", metavar="DIR", type=Path, default=Path(), help="what the job takes along")
    submit.add_argument(
        "--shared-dir", metavar="DIR", help="storage that every node sees: relative paths that the run writes go there"
    )
    submit.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="leave out, as a line of .gitignore would"
    )
    submit.add_argument("--pip", metavar="FILE", type=Path, help="requirements to install for the job, on every node")
    submit.add_argument(
        "--env", metavar="NAME", action="append", default=[], help="pass this variable of this shell, a secret"
    )
    submit.add_argument("--no-follow", action="store_true", help="end when the job is sent")
    submit.add_argument("words", metavar="COMMAND", nargs="+", help="what to run, such as `ppo run.yaml seed=1`")
    submit.set_defaults(handler=_submit)

    job = commands.add_parser("job", help="follow, stop or list jobs").add_subparsers(required=True, metavar="WHAT")
    for name, handler, what in (
        ("status", _status, "how a job is"),
        ("logs", _logs, "what it prints, until it ends"),
        ("stop", _stop, "end it, and wait until nothing of it is left"),
        ("list", _list, "all jobs of the cluster"),
    ):
        parser = job.add_parser(name, help=what)
        if handler is not _list:
            parser.add_argument("name", metavar="NAME", help="the job's name (its newest job), or an id")
        if handler is _logs:
            parser.add_argument("--no-follow", action="store_true", help="print what there is now, and end")
        _add_address(parser)
        parser.set_defaults(handler=handler)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, http://HOST:8265; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine",
    )


def _submit(args: argparse.Namespace) -> int:
    command, inner = _inner(args.words)
    secrets = _secrets(args.env)
    if not args.working_dir.is_dir():
        raise UserError(f"--working-dir: {args.working_dir} isn't a folder")
    if args.pip is not None and not args.pip.is_file():
        raise UserError(f"--pip: {args.pip} isn't a file")
    if args.shared_dir is not None and not Path(args.shared_dir).is_absolute():
        raise UserError(f"--shared-dir: {args.shared_dir} isn't an absolute path")
    pip = None if args.pip is None else str(args.pip.absolute())
    from rayrl.commands.job_config import prepare

    with contextlib.chdir(args.working_dir):
        config = prepare(command, inner, args.shared_dir)
        if inner.dry_run:
            print(config.text)
            return 0
        name = _name(args.name, config)
        _warn_of_keys(config, secrets)
        from cluster.submission import Job, Jobs, is_plain_and_remote
        from cluster.upload import Upload

        jobs = Jobs(args.address)
        if is_plain_and_remote(jobs.address):
            _say(f"{jobs.address} is plain HTTP: whoever is on the way reads the cluster's token and what is sent")
        upload = Upload.of(Path(), args.exclude, config.inputs)
        file = f".rayrl/{name}.yaml"
        with tempfile.TemporaryDirectory(prefix="rayrl-") as folder:
            archive = Path(folder) / "upload.zip"
            upload.pack(archive, {file: config.text})
            _say(f"{len(upload.files)} files, {archive.stat().st_size / 2**20:.1f} MiB packed, go to {jobs.address}")
            allow = {"RAYRL_ALLOW": ",".join(inner.allow)} if inner.allow else {}
            job = Job(
                name=name,
                # Not the script `rayrl`: with --pip the job's Python is another than the script's.
                entrypoint=shlex.join(["python", "-m", "rayrl.cli", command, file]),
                working_dir=str(archive),
                pip=pip,
                env=allow,
                secrets=secrets,
                metadata={"rayrl_command": command, "rayrl_output_dir": config.output_dir},
            )
            job_id = jobs.submit(job)
    _say(f"{job_id} is submitted; its results go to {config.output_dir}")
    if args.no_follow:
        _say(_how_to_go_on(job_id, args.address))
        return 0
    return _follow(jobs, job_id, args.address, _masking(secrets.values()))


def _inner(words: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The command to run and its arguments, read as the command itself reads them."""
    words = list(words)
    for before in ("--", "rayrl"):  # some versions of argparse leave the first one there
        words = words[1:] if words[:1] == [before] else words
    name = words[0] if words else ""
    if name not in COMMANDS:
        raise UserError(
            f"`rayrl {name}` doesn't run as a job; these do: {', '.join(COMMANDS)} (for anything else: ray job submit)"
        )
    parser = argparse.ArgumentParser(prog=f"rayrl submit -- {name}")
    add_arguments(parser, COMMANDS[name])
    args, rest = parser.parse_known_args(words[1:])
    stray = [word for word in rest if word.startswith("-")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    args.overrides += rest  # those behind an option
    return name, args


def _secrets(names: Sequence[str]) -> dict[str, str]:
    for name in names:
        if "=" in name:
            plain = name.partition("=")[0]
            raise UserError(
                "--env takes a variable's name and reads its value from this shell, since a command line is for all to "
                f"see: export {plain} and pass --env {plain}"
            )
        if not os.environ.get(name):
            raise UserError(f"--env: the environment variable {name} isn't set in this shell")
    return {name: os.environ[name] for name in names}


def _name(given: str | None, config: JobConfig) -> str:
    name = config.name if given is None else given
    if not _NAME.match(name):
        raise UserError(f"--name: {name!r} can't name a job (letters, digits, `_`, `-` and `.`, at most 100)")
    return name


def _warn_of_keys(config: JobConfig, secrets: Mapping[str, str]) -> None:
    for variable in config.key_variables:
        if variable not in secrets:
            _say(f"{variable} is read where the job runs: it must be set there, or passed with --env {variable}")


def _masking(values: Sequence[str] | Any) -> Callable[[str], None]:
    """Prints a job's lines, without the secrets that this process knows."""
    secrets = sorted((value for value in values if len(value) >= 4), key=len, reverse=True)

    def write(text: str) -> None:
        for secret in secrets:
            text = text.replace(secret, "•••")
        print(text, end="", flush=True)

    return write


def _follow(jobs: Jobs, job_id: str, address: str | None, write: Callable[[str], None]) -> int:
    """Prints the job's lines until it ends; the exit code is the job's own. Interrupted, it leaves the job running."""
    try:
        job = jobs.follow(job_id, write)
    except KeyboardInterrupt:
        _say(f"\n{job_id} goes on. {_how_to_go_on(job_id, address)}")
        return 130
    return _outcome(job)


def _outcome(job: Found) -> int:
    if job.status == "SUCCEEDED":
        _say(f"{job.id} succeeded{_results(job)}")
        return 0
    if job.status == "STOPPED":
        _say(f"{job.id} was stopped; submitted again, the run goes on from its last checkpoint")
        return 1
    if job.exit_code is None:  # it never started, and its log doesn't say why
        _say(f"{job.id} couldn't start: {_last_line(job.message)}")
        return 1
    hint = " (is there a `python` with rayrl on the path where Ray was started?)" if job.exit_code == _NOT_FOUND else ""
    _say(f"{job.id} failed with exit code {job.exit_code}{hint}")
    return job.exit_code


def _status(args: argparse.Namespace) -> None:
    from cluster.submission import Jobs

    print(_line(Jobs(args.address).find(args.name)))


def _logs(args: argparse.Namespace) -> int:
    from cluster.submission import Jobs

    jobs = Jobs(args.address)
    job = jobs.find(args.name)
    if args.no_follow:
        print(jobs.logs(job.id), end="")
        return 0
    return _follow(jobs, job.id, args.address, _masking(()))


def _stop(args: argparse.Namespace) -> None:
    from cluster.submission import Jobs

    jobs = Jobs(args.address)
    job = jobs.find(args.name)
    if job.ended:
        print(_line(job))
        return
    began = time.monotonic()
    job = jobs.stop(job.id)
    print(f"{_line(job)}; it took {time.monotonic() - began:.0f} s, and nothing of it is left on the cluster")


def _list(args: argparse.Namespace) -> None:
    from cluster.submission import Jobs

    jobs = Jobs(args.address).list()
    print("\n".join(map(_line, jobs)) if jobs else "no jobs")


def _line(job: Found) -> str:
    """Example: "first-2: RUNNING for 4 min since 2026-01-31 12:03, rayrl ppo, results in /shared/runs/first"."""
    text = f"{job.id}: {job.status}"
    if job.started_s is not None:
        lasted = (job.ended_s or time.time()) - job.started_s
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started_s))
        text += f" for {lasted:.0f} s since {since}" if not job.ended else f" after {lasted:.0f} s, begun {since}"
    command = job.metadata.get("rayrl_command")
    return f"{text}, {f'rayrl {command}' if command else job.entrypoint}{_results(job)}"


def _results(job: Found) -> str:
    folder = job.metadata.get("rayrl_output_dir")
    return f", results in {folder}" if folder else ""


def _how_to_go_on(job_id: str, address: str | None) -> str:
    where = f" --address {address}" if address else ""
    return f"Follow it: rayrl job logs {job_id}{where}; stop it: rayrl job stop {job_id}{where}"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "Ray doesn't say why")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
