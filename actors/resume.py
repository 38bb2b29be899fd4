"""Whether a run may go on in a folder that an earlier start left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayrl.config.load import load
from rayrl.config.ppo import PPOConfig
from rayrl.errors import UserError

MAY_CHANGE = ("output_dir", "steps", "cluster", "logging", "checkpoint")
"""Top-level keys that a resumed run may change."""


def check_same_run(config: PPOConfig, folder: Path) -> None:
    """Raises UserError where the folder can't be used, or holds a run with other settings."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file; name a folder")
    before = folder / "config.yaml"
    if not before.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"output_dir {folder} holds files but no run (no config.yaml): name an empty or new folder")
        return
    old, new = load(str(before), []).model_dump(mode="json"), config.model_dump(mode="json")
    changed = [path for path in _differences(old, new) if path.split(".")[0] not in MAY_CHANGE]
    if changed:
        raise UserError(
            f"{folder} holds a run with another {', '.join(changed[:5])}: resume with the same settings, or set another output_dir"
        )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        found = []
        for key in keys:
            inner = f"{path}.{key}" if path else key
            found += _differences(old[key] if key in old else None, new[key] if key in new else None, inner)
        return found
    return [] if old == new else [path]
