"""Made-up comparisons and small configurations for the tests of reward-model training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayrl.config.reward import RewardConfig, RewardModelConfig
from rayrl.data.chat import load_tokenizer
from rayrl.learners.preferences import PreferenceSet
from rayrl.learners.reward import RewardLearner
from rayrl.models.builtin import resolve_model
from rayrl.stages.reward_data import RewardData, read_data

ASKED = ("My head hurts", "I cough at night", "My knee is swollen", "I feel dizzy", "My ear rings", "My back aches")
GOOD = ("How long have you had it?", "Since when, and do you have a fever?", "How long has it been so?")
BAD = ("Take two tablets.", "Go home and rest well, then it will pass.", "It is nothing.")


def pair_rows(count: int) -> list[dict[str, Any]]:
    """`count` pairs whose better answer asks a question; three pairs a prompt, sharing answers."""
    rows = []
    for i in range(count):
        prompt, k = divmod(i, 3)
        question = f"{ASKED[prompt % len(ASKED)]}, number {prompt}."
        rows.append(
            {
                "id": f"pair-{i}",
                "group": f"prompt-{prompt}",
                "messages": [{"role": "user", "content": question}],
                "chosen": GOOD[k % 2],
                "rejected": BAD[k],
                "margin": 1 + k,
                "fields": {"department": "surgery" if prompt % 5 else "neurology", "flaw": "no_question"},
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes the rows; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reward_config(path: Path, **keys: Any) -> RewardConfig:
    """A fp32 tiny model on the pairs in `path`; `keys` replace top-level ones."""
    return RewardConfig.model_validate(
        {
            "output_dir": str(path.parent / "out"),
            "model": {"model": "tiny-random", "dtype": "fp32"},
            "data": {"sources": [{"name": "made", "path": str(path)}], "heldout_fraction": 0.25},
            **keys,
        }
    )


def read(config: RewardConfig) -> RewardData:
    """What the stage reads for this configuration."""
    model = resolve_model(config.model.model)
    return read_data(config, load_tokenizer(model, add_pad_token=True), model)


def learner(
    data: RewardData, train: dict[str, Any] | None = None, prompts_per_step: int = 4, steps: int = 12, **keys: Any
) -> RewardLearner:
    """A single fp32 rank; `keys`: of RewardModelConfig."""
    settings: dict[str, Any] = {
        "model": "tiny-random",
        "dtype": "fp32",
        "micro_batch_size": 8,
        "train": train or {},
        "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 1},
    }
    config = RewardModelConfig.model_validate(settings | keys)
    path = resolve_model(config.model)
    return RewardLearner(config, path, True, data.train, data.heldout, prompts_per_step, steps, data.pad_id, 0, 0, 1)


def all_texts(data: PreferenceSet) -> list[str]:
    """Texts of the set's answers."""
    return [answer.text for answer in data.answers]
