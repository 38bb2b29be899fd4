"""Checkpoints of a run on disk: written beside the old one, published by rename, pruned.

    checkpoints/step-000010/   policy/ critic/   Hugging Face format
                               policy_state/ critic_state/   what the trainers need to go on
                               state.json   everything else the next step depends on
                               SHA256SUMS   of all of it

A folder with the final name was whole when it was written. A `.partial` one is what a killed run left; it is removed by
the next. Sums are compared before a checkpoint is used: a damaged one is called `.damaged` and that before it is taken.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayrl.errors import RunError
from rayrl.heartbeat import beat
from rayrl.tracking.checksums import LIST, checksums, damage, sha256, write_list

PARTIAL, DAMAGED = ".partial", ".damaged"

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints below one run's folder."""

    def __init__(self, folder: Path, keep_last: int, keep_best: bool) -> None:
        self._folder = folder / "checkpoints"
        self._keep_last, self._keep_best = keep_last, keep_best
        self.set_aside: list[str] = []
        """Checkpoints that `newest_whole` found damaged, and in which way."""

    def latest(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest checkpoint by name; whether it is still whole, `newest_whole` says."""
        steps = self._steps()
        return (max(steps), steps[max(steps)]) if steps else None

    def newest_whole(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest checkpoint whose files are what was written; None where none was ever made.

        Damaged ones after it are set aside. Raises RunError where all are, or were: no run begins anew by itself.
        """
        there = self._named()
        if there and not any((path / LIST).exists() for path in there.values()):
            raise RunError(
                f"no checkpoint in {self._folder} has a {LIST}: made by an older version? If you trust one, write it: "
                f"cd step-NNNNNN && find * -type f ! -name {LIST} -exec sha256sum {{}} + > {LIST}"
            )
        for step, path in sorted(there.items(), reverse=True):
            wrong = damage(path)
            if wrong is None:
                return step, path
            aside = path.with_name(path.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            self.set_aside.append(f"{path.name} ({wrong})")
            logger.warning("checkpoint %s is damaged (%s): taking the one before; it is kept as %s", path, wrong, aside)
        damaged = sorted(path.name for path in self._folder.glob(f"step-*{DAMAGED}"))
        if damaged:
            raise RunError(
                f"every checkpoint in {self._folder} is damaged ({', '.join(damaged)}): restore one from a copy "
                "(without the ending), or start again in another output_dir"
            )
        return None

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; leftovers of killed runs are removed.

        Raises OSError where there is less room than the last one took.
        """
        self._folder.mkdir(exist_ok=True)  # not its parents: where the run's folder is gone, so is the storage
        for leftover in self._folder.glob(f"*{PARTIAL}"):
            _remove(leftover)
        path = self.partial(step)
        path.mkdir()
        free, needed = shutil.disk_usage(path).free, self._newest_size()
        if free < needed:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed >> 20} MB needed, {free >> 20} MB free")
        return path

    def _newest_size(self) -> int:
        latest = self.latest()
        return sum(file.stat().st_size for file in latest[1].rglob("*") if file.is_file()) if latest else 0

    def partial(self, step: int) -> Path:
        """The folder that `begin` makes, for ranks that write into it after another has begun it."""
        return self._folder / f"step-{step:06d}{PARTIAL}"

    def publish(self, step: int, state: Mapping[str, Any], sums: Mapping[str, str] | None = None) -> Path:
        """Adds state.json and the list of sums, gives the folder its name, prunes older ones.

        `state["best_step"]`: the best, or None. `sums`: of what is there, where the ranks have computed them.
        """
        partial = self.partial(step)
        sums = checksums(partial) if sums is None else sums
        with (partial / "state.json").open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        write_list(partial, {**sums, "state.json": sha256(partial / "state.json")})
        final = self._folder / f"step-{step:06d}"
        if final.exists():
            _remove(final)
        os.rename(partial, final)
        self._prune(state["best_step"])
        return final

    def link(self, name: str, step: int) -> None:
        """Points `name` in the run's folder to the policy of the checkpoint after `step` steps."""
        link(self._folder.parent, name, self._folder / f"step-{step:06d}" / "policy")

    def read_state(self, path: Path) -> dict[str, Any]:
        """The state.json of a checkpoint."""
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return state

    def _steps(self) -> dict[int, Path]:
        return {step: path for step, path in self._named().items() if (path / "state.json").is_file()}

    def _named(self) -> dict[int, Path]:
        """All folders with a checkpoint's name, by step."""
        numbers = {path: path.name.removeprefix("step-") for path in self._folder.glob("step-*")}
        return {int(number): path for path, number in numbers.items() if number.isdecimal()}

    def _prune(self, best_step: int | None) -> None:
        steps = self._steps()
        kept = set(sorted(steps)[-self._keep_last :])
        if self._keep_best and best_step is not None:
            kept.add(best_step)
        for step, path in steps.items():
            if step not in kept:
                # Renamed first, so that a kill in the middle leaves no half of a checkpoint under its final name.
                doomed = path.with_name(path.name + PARTIAL)
                os.rename(path, doomed)
                _remove(doomed)


def _remove(folder: Path) -> None:
    """Slow storage takes seconds for a large file: each is progress (heartbeat.py). What a link names isn't ours."""
    if folder.is_symlink():
        folder.unlink()
        return
    for path in folder.rglob("*"):
        if path.is_file() or path.is_symlink():
            path.unlink()
            beat()
    shutil.rmtree(folder)


def link(folder: Path, name: str, target: Path) -> None:
    """Points `folder/name` to `target` by a relative symbolic link, replaced at once."""
    temporary = folder / f".{name}.new"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, folder))
    os.replace(temporary, folder / name)
