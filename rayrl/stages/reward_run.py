"""The run of `rayrl reward`, once it is known that there is something to do (reward.py)."""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from cluster.session import connect
from rayrl.config.load import dump
from rayrl.config.reward import RewardConfig
from rayrl.data.chat import load_tokenizer
from rayrl.data.lock import only_run
from rayrl.data.prompts import REJECTED_FILE, write_rejected
from rayrl.data.stage_folder import StageFolder
from rayrl.errors import UserError
from rayrl.evaluation.summary import write_summary
from rayrl.models.builtin import resolve_model
from rayrl.models.loading import check_blocks, model_config
from rayrl.stages.reward_data import RewardData, read_data
from rayrl.stages.reward_report import summarise, write_scores
from rayrl.stages.reward_worker import MODEL, SCORES, train_loop
from rayrl.stages.train_workers import check_fits_here, run_workers, watch
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.progress import duration

logger = logging.getLogger(__name__)


def run(config: RewardConfig, folder: StageFolder, console: Console) -> None:
    """Runs or resumes the stage. Raises UserError for bad input, RunError for a run that failed."""
    check_fits_here(config.model, config.ray, "reward")
    model_path = resolve_model(config.model.model)
    new_head = _check_model(config, model_path)
    tokenizer = load_tokenizer(model_path, config.model.chat_template, section="model", add_pad_token=True)
    data = read_data(config, tokenizer, model_path)
    folder.begin()
    with only_run(folder.path):
        (folder.path / "config.yaml").write_text(dump(config), encoding="utf-8")
        write_rejected(folder.path / REJECTED_FILE, data.rejected)
        _say_data(data, console)
        _train(config, folder.path, model_path, new_head, data, console)
        _finish(config, folder.path, tokenizer, data, console)
        folder.publish(data.counts, config.seed)


def _check_model(config: RewardConfig, path: str) -> bool:
    """Whether the model needs a new head. Raises UserError where it can't be trained so."""
    shape = model_config(path)
    new_head = not any("SequenceClassification" in name for name in shape.architectures or [])
    check_blocks(path, config.model.train, "model.train")
    longest = getattr(shape.get_text_config(), "max_position_embeddings", math.inf)
    window = config.data.max_prompt_tokens + config.data.max_answer_tokens
    if window > longest:
        raise UserError(
            f"data.max_prompt_tokens + data.max_answer_tokens is {window}, more than the "
            f"{longest} positions of {path}: lower one of them"
        )
    return new_head


def _say_data(data: RewardData, console: Console) -> None:
    for name in ("train", "heldout"):
        part = data.counts[name]
        console.print(f"{name}: {part['pairs']} pairs of {part['answers']} answers to {part['prompts']} prompts")
    for reason, number in data.counts["dropped"].items():
        console.print(f"left out: {number}, {reason}")


def _train(
    config: RewardConfig, folder: Path, model_path: str, new_head: bool, data: RewardData, console: Console
) -> None:
    import ray

    with connect(config.ray.address, object_store_mb=config.ray.object_store_mb):
        settings = {
            "config": config.model_dump(mode="json"),
            "folder": str(folder),
            "model": model_path,
            "new_head": new_head,
            "pad_id": data.pad_id,
            "data": [ray.put((data.train, data.heldout))],
        }
        with watch(folder / "metrics.jsonl", lambda row: _say_step(row, console)):
            run_workers(
                train_loop,
                settings,
                config.model,
                config.ray,
                collective_timeout_s=config.collective_timeout_s,
                max_failures=config.max_failures,
            )


def _say_step(row: dict[str, Any], console: Console) -> None:
    parts = [f"step {row['step'] + 1}", f"loss {row['loss/ranking']:.3f}"]
    if "heldout/accuracy" in row:
        parts.append(f"held-out accuracy {row['heldout/accuracy']:.3f}, loss {row['heldout/loss']:.3f}")
    console.print(Text(", ".join([*parts, duration(row["time/step"])])), soft_wrap=True)


def _finish(config: RewardConfig, folder: Path, tokenizer: Any, data: RewardData, console: Console) -> None:
    """The best checkpoint becomes model/; its held-out scores become the summary and the report."""
    from rayrl.evaluation.stage_report import write_page
    from rayrl.stages.reward_report import page

    store = CheckpointStore(folder, keep_last=1, keep_best=True)
    latest = store.latest()
    assert latest is not None
    state = store.read_state(latest[1])
    best = latest[1].with_name(f"step-{state['best_step']:06d}")
    _publish_model(best / MODEL, folder / "model", tokenizer, data.pad_id)
    scores = np.load(best / SCORES)
    write_scores(folder / "heldout_scores.jsonl", data, scores)
    summary = summarise(config, data, scores, np.load(latest[1] / SCORES), state)
    write_summary(folder / "summary.json", summary)
    write_page(folder, page(folder, summary))
    console.print(summary["headline"], soft_wrap=True)
    console.print(f"model: {folder / 'model'}; report: {folder / 'report.html'}", soft_wrap=True)
    if not math.isfinite(summary["scores"]["std"]) or summary["scores"]["std"] == 0:
        logger.warning("all held-out answers get the same score: this reward model says nothing")


def _publish_model(best: Path, target: Path, tokenizer: Any, pad_id: int) -> None:
    """A copy with the tokenizer, whole or not at all; the tokenizer pads as the model's config says."""
    draft = target.with_name(target.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(best, draft)
    tokenizer.pad_token_id = pad_id
    tokenizer.save_pretrained(draft)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
