"""Whether a run may go on in a folder that an earlier start left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rayrl.config.load import load
from rayrl.config.ppo import PPOConfig
from rayrl.data.lock import LOCK
from rayrl.data.stage_folder import changed_input
from rayrl.errors import UserError

BESIDE = "config.yaml.new"
"""What a start that was killed while it wrote config.yaml leaves."""
MAY_CHANGE = ("output_dir", "steps", "cluster", "logging", "checkpoint", "recovery")
"""Top-level keys that a resumed run may change."""
REWARD_MAY_CHANGE = ("on_failure", "timeout_s")
JUDGE_MAY_CHANGE = (
    "api_key_env",
    "backoff_s",
    "budget",
    "cache",
    "concurrency",
    "max_retries",
    "max_wait_s",
    "requests_per_minute",
    "timeout_s",
)
"""Of a reward and its judge: what says how long and at what cost a score is waited for, not what it is."""


def check_same_run(config: PPOConfig, folder: Path) -> None:
    """Raises UserError where the folder can't be used, or holds a run with other settings."""
    _check_writable(folder)
    before = folder / "config.yaml"
    if not before.exists():
        if folder.exists() and any(file.name not in (BESIDE, LOCK) for file in folder.iterdir()):
            raise UserError(f"output_dir {folder} holds files but no run (no config.yaml): name an empty or new folder")
        return
    old, new = _settings(load(PPOConfig, str(before), [])), _settings(config)
    changed = [path for path in _differences(old, new) if path.split(".")[0] not in MAY_CHANGE]
    if changed:
        raise UserError(
            f"output_dir {folder} holds a run with another {', '.join(changed[:5])}: "
            "resume with the same settings, or set another output_dir"
        )


def check_same_data(folder: Path) -> None:
    """Raises UserError where rows that the run in the folder reads are no longer those with which it began."""
    if (path := changed_input(folder)) is not None:
        raise UserError(f"{path} has changed since the run in {folder} read it: put it back, or set another output_dir")


def _settings(config: PPOConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    rewards = {}
    for entry in values["rewards"]:
        kept = {key: value for key, value in entry.items() if key not in REWARD_MAY_CHANGE}
        if kept["judge"] is not None:
            kept["judge"] = {key: value for key, value in kept["judge"].items() if key not in JUDGE_MAY_CHANGE}
        rewards[entry["name"]] = kept
    return {**values, "rewards": rewards}


def _check_writable(folder: Path) -> None:
    there = next(path for path in [folder, *folder.parents] if path.exists())
    if not there.is_dir():
        raise UserError(f"output_dir {folder} can't be made: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"output_dir {folder} can't be written: no permission in {there}; name another folder")


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            inner = f"{path}.{key}" if path else key
            found += _differences(old.get(key), new.get(key), inner)
        return found
    return [] if old == new else [path]
