"""A configuration made ready to run as a Ray job: resolved here, with no path in it that the job couldn't keep.

A job runs in a folder that Ray unpacks for it and deletes afterwards. What the run reads from the working directory is
taken along, whatever ignore files say; what it writes must lie on storage that every node sees, or a run that is
submitted again wouldn't find it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rayrl.commands.stage import read_config
from rayrl.config.load import dump, leaves, load, require_no_placeholders
from rayrl.config.strict import CommandConfig
from rayrl.errors import UserError

WRITTEN = {"output_dir", "cache", "answers"}
"""Keys of folders and files that runs write."""
READ = {
    "model", "prompts", "heldout", "heldout_of", "path", "items", "labels", "human", "candidates", "questions",
    "shots_path", "data", "runs", "stop_words", "outputs",
}  # fmt: skip
"""Keys that may name a file or folder that a run reads, or hold a list of such; the others are hub names, built-ins."""
_LONGEST_PATH = 4096
_FILES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".md", ".yaml", ".zst", ".gz")
"""Endings of what can only be a file."""


@dataclass(frozen=True)
class JobConfig:
    """What `rayrl submit` sends."""

    text: str
    """The resolved YAML."""
    output_dir: str
    inputs: tuple[str, ...]
    """Files and folders of the working directory that the run reads, as paths from there."""
    key_variables: tuple[str, ...]
    """Environment variables that the run reads keys from."""

    @property
    def name(self) -> str:
        """What the job is called unless its user says: as the last part of the output folder."""
        last = self.output_dir.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.")


def prepare(command: str, args: argparse.Namespace, shared_dir: str | None) -> JobConfig:
    """Reads the configuration that `args` describe; this process stands in the working directory.

    `shared_dir`: where relative paths that the run writes belong. Raises ConfigError for what the command itself would
    refuse, and UserError for paths that wouldn't outlive the job, or that lie outside of the working directory.
    """
    config = read_config(command, args)
    output_dir = dict(leaves(config.model_dump()))["output_dir"]
    if shared_dir is not None and _is_relative(output_dir):  # by itself first: other paths may follow from it
        config = read_config(command, args, f"output_dir={Path(shared_dir) / output_dir}")
    require_no_placeholders(config)
    config = _keep(config, shared_dir)
    found = [(key, value) for key, value in leaves(config.asked_for()) if isinstance(value, str) and value]
    functions = {
        key.removesuffix("kind") + "path" for key, value in found if key.endswith(".kind") and value == "function"
    }
    return JobConfig(
        text=dump(config),
        output_dir=dict(found)["output_dir"],
        inputs=tuple(value for key, value in found if key not in functions and _is_input(key, value)),
        key_variables=tuple(dict.fromkeys(value for key, value in found if key.split(".")[-1] == "api_key_env")),
    )


def _keep(config: CommandConfig, shared_dir: str | None) -> CommandConfig:
    """The configuration with all that is written under `shared_dir`, or under absolute paths."""
    relative = [
        (key, value)
        for key, value in leaves(config.model_dump())
        if key.split(".")[-1] in WRITTEN and isinstance(value, str) and _is_relative(value)
    ]
    if not relative:
        return config
    if shared_dir is None:
        raise UserError(
            f"{', '.join(f'{key} ({value})' for key, value in relative)}: a job runs in a folder that is deleted with "
            "it, and so would this be; give a path on storage that every node sees, or --shared-dir DIR for all"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as resolved:
        resolved.write(dump(config))
        resolved.flush()
        return load(type(config), resolved.name, [f"{key}={Path(shared_dir) / value}" for key, value in relative])


def _is_relative(path: str) -> bool:
    """Whether a path depends on where the process stands; neither an object store nor a home folder does."""
    return "://" not in path and not path.startswith("~") and not Path(path).is_absolute()


def _is_input(key: str, value: str) -> bool:
    """Whether the value names something in the working directory.

    Raises UserError where it lies elsewhere, or is a file's name and there is no such file.
    """
    if not READ & set(key.split(".")[-2:]) or len(value) > _LONGEST_PATH or not _is_relative(value):
        return False
    try:
        there = Path(value).exists()
    except (OSError, ValueError):  # a text that can't be a path
        return False
    if (there or value.endswith(_FILES)) and not Path(value).resolve().is_relative_to(Path.cwd().resolve()):
        raise UserError(
            f"{key}: {value} lies outside of the working directory {Path.cwd()}, which is what a job takes along: name "
            "a path that the cluster sees, or another --working-dir"
        )
    if not there and value.endswith(_FILES):
        raise UserError(f"{key}: there is no {value} in the working directory {Path.cwd()}, so the job won't have it")
    return there
