"""`rayrl sft`: supervised fine-tuning, or continued pre-training, on Ray Train and DeepSpeed.

    config.yaml, metrics.jsonl, rejected.jsonl, used.jsonl
    checkpoints/step-NNNNNN/   the best and the newest, to resume from
    model/                     the best checkpoint as a Hugging Face folder with its tokenizer, LoRA merged in
    summary.json, report.html, manifest.json

The same command again resumes; a finished run does nothing.
"""

from __future__ import annotations

from rich.console import Console

from rayrl.config.load import load
from rayrl.config.sft import SFTConfig
from rayrl.data.stage_folder import StageFolder


def main(config_path: str) -> None:
    """Runs or resumes the stage. Raises UserError for bad input, RunError for a run that failed."""
    config = load(SFTConfig, config_path)
    console = Console()
    sources = [source.path for source in (*config.data.sources, *config.data.validation)]
    sources += [config.validation.answers.prompts.path] if config.validation.answers is not None else []
    stage = StageFolder(config, config.output_dir, [config.model.model, *sources], in_place=True)
    if stage.done:
        console.print(f"{stage.path} is done: nothing to train", soft_wrap=True)
        return
    from rayrl.stages.sft_run import run  # models and their libraries: seconds

    run(config, stage, console)
