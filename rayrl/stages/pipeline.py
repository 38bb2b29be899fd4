"""`rayrl pipeline`: runs stages one after another in this process and on one Ray, each in a folder of its own.

What is done is skipped, what was cut is resumed by the stage itself: the pipeline only remembers which stage ended
under which configuration (pipeline.json). A stage whose configuration, or whose inputs' configuration, has changed runs
again, and says itself where its folder can't take that.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.session import connect
from rayrl.config.load import config_hash, dump, load
from rayrl.config.pipeline import PipelineConfig, Stage
from rayrl.data.lock import only_run
from rayrl.data.stage_folder import MANIFEST
from rayrl.stages.pipeline_tree import PipelineTree
from rayrl.stages.results import headline

RECORD = "pipeline.json"
SUMMARY = "summary.json"


def main(config_path: str) -> None:
    """Runs what isn't done yet of the pipeline in the resolved configuration."""
    from rayrl.config.commands import COMMANDS

    config = load(PipelineConfig, config_path)
    stages, folder = config.plan(), Path(config.output_dir).absolute()
    with only_run(folder):
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        record = Record(folder, stages)
        finished = {stage.name: record.seconds(stage) for stage in stages}
        tree = PipelineTree(folder, [stage.name for stage in stages])
        with tree:
            for stage in stages:
                if (seconds := finished[stage.name]) is not None:
                    tree.skip(stage.name, seconds, headline(folder / stage.name))
            todo = [stage for stage in stages if finished[stage.name] is None]
            if not todo:
                return
            with connect(config.ray.address, object_store_mb=config.ray.object_store_mb):
                for stage in todo:
                    path = folder / f"{stage.name}.yaml"
                    path.write_text(dump(stage.config), encoding="utf-8")
                    started = time.monotonic()
                    with tree.running(stage.name):
                        importlib.import_module(COMMANDS[stage.command].module).main(str(path))
                    record.write(stage, time.monotonic() - started)
                    tree.finish(stage.name, headline(folder / stage.name))


class Record:
    """pipeline.json: the stages that ended, each under an identity made of its configuration and those it reads."""

    def __init__(self, folder: Path, stages: Sequence[Stage]) -> None:
        self._path = folder / RECORD
        self._folder = folder
        self._stages: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            self._stages = json.loads(self._path.read_text(encoding="utf-8"))
        self._identities: dict[str, str] = {}
        for stage in stages:
            parts = [stage.command, config_hash(stage.config), *(self._identities[name] for name in stage.needs)]
            self._identities[stage.name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def seconds(self, stage: Stage) -> float | None:
        """How long the stage took, where it has ended; None where it has to run."""
        before = self._stages.get(stage.name)
        files = [self._folder / stage.name / name for name in (MANIFEST, SUMMARY)]
        if (
            before is None
            or before["identity"] != self._identities[stage.name]
            or not any(file.is_file() for file in files)
        ):
            return None
        return float(before["seconds"])

    def write(self, stage: Stage, seconds: float) -> None:
        """The stage has ended."""
        self._stages[stage.name] = {"identity": self._identities[stage.name], "seconds": round(seconds, 1)}
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(self._stages, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, self._path)
