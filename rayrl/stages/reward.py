"""`rayrl reward`: a reward model from comparisons, and a report of how good it is and what it goes by.

    output_dir/   config.yaml, metrics.jsonl, checkpoints/, model/ (the best checkpoint), heldout_scores.jsonl,
                  summary.json, report.html, rejected.jsonl, manifest.json

Run again, it goes on from the last checkpoint, or does nothing where it is done.
"""

from __future__ import annotations

from rich.console import Console

from rayrl.config.load import load
from rayrl.config.reward import RewardConfig
from rayrl.data.stage_folder import StageFolder


def main(config_path: str) -> None:
    """Runs or resumes the stage. Raises UserError for bad input, RunError for a run that failed."""
    config = load(RewardConfig, config_path, [])
    console = Console()
    sources = [source.path for source in (*config.data.sources, *config.data.heldout)]
    stage = StageFolder(config, config.output_dir, [config.model.model, *sources], in_place=True)
    if stage.done:
        console.print(f"{stage.path} is done: nothing to train", soft_wrap=True)
        return
    from rayrl.stages.reward_run import run  # models and their libraries: seconds

    run(config, stage, console)
