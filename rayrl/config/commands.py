"""Every command that takes a configuration: its model, the module that runs it, and a line of help.

Modules by name: naming one here imports nothing, so that `rayrl --help` stays quick and no layer looks upwards.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayrl.config.strict import CommandConfig


@dataclass(frozen=True)
class Option:
    """An option that sets a key of the configuration."""

    key: str
    help: str


@dataclass(frozen=True)
class Command:
    """One command. `config`: "module:Class"; `module`: has `main(path of the resolved YAML)`."""

    config: str
    module: str
    help: str
    options: Mapping[str, Option] = field(default_factory=dict)
    """Further options of the command line."""

    def model(self) -> type[CommandConfig]:
        """The configuration's class."""
        module, _, name = self.config.partition(":")
        found: type[CommandConfig] = getattr(importlib.import_module(module), name)
        return found


COMMANDS = {
    "corpus": Command(
        "rayrl.config.corpus:CorpusConfig",
        "rayrl.stages.corpus",
        "turn raw text into instructions: read, filter, deduplicate, unify",
        {
            "--only": Option("only", "do this stage alone"),
            "--from": Option("from_stage", "make this stage and the later ones anew"),
        },
    ),
    "sft": Command(
        "rayrl.config.sft:SFTConfig",
        "rayrl.stages.sft",
        "fine-tune a model on conversations, or go on pre-training it on plain text",
    ),
    "sample": Command(
        "rayrl.config.sample:SampleConfig",
        "rayrl.stages.sample",
        "answer prompts several times, for feedback to compare",
    ),
    "feedback": Command(
        "rayrl.config.feedback:FeedbackConfig",
        "rayrl.stages.feedback",
        "turn answers into comparisons, from judge, rubric and annotators",
    ),
    "reward": Command(
        "rayrl.config.reward:RewardConfig",
        "rayrl.stages.reward",
        "train a reward model on comparisons, and report what it goes by",
    ),
    "ppo": Command("rayrl.config.ppo:PPOConfig", "actors.ppo", "train a policy by PPO; the same command again resumes"),
    "eval": Command(
        "rayrl.config.eval:EvalConfig",
        "rayrl.stages.eval",
        "evaluate models: questions, exams, consultations, safety, side by side",
    ),
    "pipeline": Command(
        "rayrl.config.pipeline:PipelineConfig",
        "rayrl.stages.pipeline",
        "run stages that feed each other, as one YAML says",
    ),
}
