"""`rayrl pipeline`: runs stages one after another in this process and on one Ray, each in a folder of its own.

What is done is skipped, what was cut is resumed by the stage itself: the pipeline only remembers (pipeline_record.py)
which stage ended under which configuration, and from which run of the stages that it reads. A stage whose
configuration has changed runs again and says itself where its folder can't take that; one whose inputs were made anew,
or whose data files have changed, is refused before anything starts.
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

from rich.console import Console

from cluster.session import connect
from rayrl.config.commands import COMMANDS
from rayrl.config.load import dump, load
from rayrl.config.pipeline import PipelineConfig, Stage
from rayrl.data.lock import only_run
from rayrl.evaluation.summary import summary_table
from rayrl.stages.pipeline_record import SUMMARY, Record, check_own
from rayrl.stages.pipeline_tree import PipelineTree
from rayrl.stages.results import headline


def main(config_path: str) -> None:
    """Runs what isn't done yet of the pipeline in the resolved configuration."""
    config = load(PipelineConfig, config_path)
    stages, folder = config.plan(), Path(config.output_dir).expanduser().absolute()
    check_own(folder)
    with only_run(folder):
        record = Record(folder, stages)
        record.refuse_stale()
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        tree = PipelineTree(folder, [stage.name for stage in stages])
        todo = []
        with tree:
            for stage in stages:
                seconds = record.seconds(stage)
                if seconds is None:
                    todo.append(stage)
                else:
                    tree.skip(stage.name, seconds, headline(folder / stage.name))
            if todo:
                with connect(config.ray.address, object_store_mb=config.ray.object_store_mb):
                    for stage in todo:
                        _run(stage, folder, record, tree)
        if not todo or tree.console.is_terminal:  # else the last stage has just said it
            _show_result(folder, stages[-1], tree.console)
        for stage in stages:
            if (report := folder / stage.name / "report.html").is_file():
                tree.console.print(f"report of {stage.name}: {report}", soft_wrap=True, markup=False, highlight=False)


def _run(stage: Stage, folder: Path, record: Record, tree: PipelineTree) -> None:
    path = folder / f"{stage.name}.yaml"
    path.write_text(dump(stage.config), encoding="utf-8")
    record.begin(stage)
    started = time.monotonic()
    with tree.running(stage.name):
        importlib.import_module(COMMANDS[stage.command].module).main(str(path))
    record.end(stage, time.monotonic() - started)
    tree.finish(stage.name, headline(folder / stage.name))


def _show_result(folder: Path, last: Stage, console: Console) -> None:
    """The table of what PPO changed, where it is the last stage."""
    path = folder / last.name / SUMMARY
    if last.command == "ppo" and path.is_file():
        console.print(summary_table(json.loads(path.read_text(encoding="utf-8"))))
