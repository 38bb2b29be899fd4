"""pipeline.json: which stages began and ended, under which configuration, and from which run of the stages they read.

    {"sft": {"config": HASH, "inputs": {}, "run": TOKEN, "seconds": 12.5}, "sample": {..., "inputs": {"sft": TOKEN}}}

`run` is drawn anew when a stage starts in an empty place or goes on after it had ended, and kept while it is resumed;
`seconds` is there once it has ended. A stage is done where it ended, its configuration is the same, and all that it
reads is done and of that run.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayrl.config.corpus import CorpusConfig
from rayrl.config.load import config_hash
from rayrl.config.pipeline import Stage
from rayrl.corpus.pieces import list_pieces
from rayrl.data.lock import LOCK
from rayrl.data.stage_folder import MANIFEST, changed_input
from rayrl.errors import UserError

RECORD = "pipeline.json"
SUMMARY = "summary.json"


def check_own(folder: Path) -> None:
    """Raises UserError where the folder is another command's, or a file."""
    if folder.is_dir() and not (folder / RECORD).is_file() and any(file.name != LOCK for file in folder.iterdir()):
        raise UserError(f"{folder} holds files but no pipeline ({RECORD}): set another output_dir")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; set another output_dir")


class Record:
    """What the pipeline's folder remembers of its stages."""

    def __init__(self, folder: Path, stages: Sequence[Stage]) -> None:
        self._path, self._folder = folder / RECORD, folder
        self._stages = {stage.name: stage for stage in stages}
        self._known: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            self._known = json.loads(self._path.read_text(encoding="utf-8"))
        else:
            self._write()

    def seconds(self, stage: Stage) -> float | None:
        """How long the stage took, where it is done; None where it has to run."""
        before = self._known.get(stage.name, {})
        done = (
            "seconds" in before
            and before.get("config") == config_hash(stage.config)
            and before.get("inputs") == self._inputs(stage)
            and any((self._folder / stage.name / name).is_file() for name in (MANIFEST, SUMMARY))
            and all(self.seconds(self._stages[name]) is not None for name in stage.needs)
        )
        return float(before["seconds"]) if done else None

    def refuse_stale(self) -> None:
        """Raises UserError where folders hold what was made from inputs that are no longer there, or have changed."""
        anew: set[str] = set()
        stale: list[str] = []
        for stage in self._stages.values():
            if not self._folders(stage.name):
                anew.add(stage.name)
            elif anew & set(stage.needs) or self._known.get(stage.name, {}).get("inputs") != self._inputs(stage):
                anew.add(stage.name)
                stale.append(stage.name)
            elif self.seconds(stage) is not None:
                self._check_files(stage.name)
            elif "seconds" in self._known[stage.name]:
                anew.add(stage.name)  # it ended, and goes on under another configuration
        if stale:
            folders = " ".join(str(path) for name in stale for path in self._folders(name))
            raise UserError(
                f"{', '.join(stale)}: made from an earlier run of what they read; to make them anew, remove {folders}"
            )

    def begin(self, stage: Stage) -> None:
        """The stage starts, or goes on."""
        before = self._known.get(stage.name)
        run = secrets.token_hex(8)
        if before is not None and "seconds" not in before and self._folders(stage.name):
            run = before["run"]
        self._known[stage.name] = {"config": config_hash(stage.config), "inputs": self._inputs(stage), "run": run}
        self._write()

    def end(self, stage: Stage, seconds: float) -> None:
        """The stage has ended."""
        self._known[stage.name]["seconds"] = round(seconds, 1)
        self._write()

    def _inputs(self, stage: Stage) -> dict[str, str | None]:
        return {name: self._known.get(name, {}).get("run") for name in stage.needs}

    def _folders(self, name: str) -> list[Path]:
        """Those that the stage has left: its own, or the one in which its work lies until it is whole."""
        return [path for folder in (name, f"{name}.partial") if (path := self._folder / folder).exists()]

    def _check_files(self, name: str) -> None:
        """Raises UserError where a file outside the pipeline that a finished stage read has changed since."""
        config = self._stages[name].config
        if isinstance(config, CorpusConfig):  # whose sources may be too large to be read again
            made = json.loads((self._folder / name / "read" / MANIFEST).read_text(encoding="utf-8"))
            if made["inputs"]["sources"] != list_pieces(config.sources).fingerprint():
                raise self._changed(name, ", ".join(source.path for source in config.sources))
            return

        def own(path: Path) -> bool:
            path = path.expanduser().absolute()
            return any(self._folder / stage in (path, *path.parents) for stage in self._stages)

        if (path := changed_input(self._folder / name, apart=own)) is not None:
            raise self._changed(name, path)

    def _changed(self, name: str, path: str) -> UserError:
        return UserError(f"{path} has changed since {name} read it; to read it again, remove {self._folder / name}")

    def _write(self) -> None:
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(self._known, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, self._path)
