"""`rayrl sample`: K answers to each prompt that fine-tuning hasn't seen, in shards that are done once.

    candidates-00000.jsonl ...  a shard each (data/candidates.py), put in place whole
    metrics.jsonl               what each shard took and gave
    rejected.jsonl              prompts that weren't answered, with file, line and reason
    summary.json, config.yaml, manifest.json

Everything is written in OUTPUT_DIR.partial, which becomes OUTPUT_DIR when all shards are there. A run that was cut goes
on with the shards that are missing and ends with the same files, whatever the number of engines.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.session import connect
from rayrl.config.load import dump, load
from rayrl.config.sample import SampleConfig
from rayrl.data.candidates import write_candidates
from rayrl.data.chat import checkpoint_end_token_ids, load_tokenizer
from rayrl.data.lock import LOCK, only_run
from rayrl.data.readers import write_rejected
from rayrl.data.stage_folder import StageFolder
from rayrl.errors import RunError
from rayrl.models.builtin import resolve_model
from rayrl.models.engine import check_backend
from rayrl.models.loading import check_window
from rayrl.stages.sample_engines import Answered, EngineSettings, Shard, answer_shards, shard_seed
from rayrl.stages.sample_prompts import Chosen, choose_prompts
from rayrl.tracking.progress import duration
from rayrl.tracking.rows import append_rows, open_rows, read_rows, replace_rows
from rayrl.types import Candidates, Prompt

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
NO_ANSWER = "every answer is empty"
SAY_EVERY_S = 5.0


def main(config_path: str) -> None:
    """Runs or resumes the stage. Raises UserError for bad input, RunError where an engine fails."""
    config = load(SampleConfig, config_path)
    sources = [source.path for source in (*config.prompts, *config.exclude)]
    folder = StageFolder(config, config.output_dir, [config.model, *sources])
    if folder.done:
        logger.info("%s is done: nothing to sample", folder.path)
        return
    check_backend(config.rollout)
    model = resolve_model(config.model)
    check_window(model, config.rollout.max_prompt_tokens, config.rollout.max_new_tokens)
    tokenizer = load_tokenizer(model, config.chat_template)
    chosen = choose_prompts(config, tokenizer)
    settings = EngineSettings(
        model, config.rollout, checkpoint_end_token_ids(tokenizer, model), int(tokenizer.pad_token_id)
    )
    work = folder.begin()
    with only_run(work):
        (work / "config.yaml").write_text(dump(config), encoding="utf-8")
        write_rejected(work / "rejected.jsonl", chosen.rejected)
        rows = _sample(config, work, chosen, settings, tokenizer)
        counts, summary = _totals(config, chosen, rows)
        (work / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (work / LOCK).unlink()
        folder.publish(counts, config.seed)
    logger.info("%s: %s", folder.path, summary["headline"])


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard's candidates lie."""
    return folder / f"candidates-{number:05d}.jsonl"


def _sample(
    config: SampleConfig, work: Path, chosen: Chosen, settings: EngineSettings, tokenizer: Any
) -> list[dict[str, Any]]:
    """Answers the shards that are missing; the metrics of all shards, in their order."""
    size = config.shard_size
    shards = [chosen.prompts[start : start + size] for start in range(0, len(chosen.prompts), size)]
    # A shard's metrics are written before its candidates: what has no candidates yet, isn't done.
    rows = {row["shard"]: row for row in read_rows(work / METRICS) if shard_file(work, row["shard"]).is_file()}
    replace_rows(work / METRICS, rows.values())
    todo = [number for number in range(len(shards)) if number not in rows]
    logger.info(
        "%d prompts in %d shards%s, %d answers each, from %d %s %s",
        len(chosen.prompts),
        len(shards),
        f" ({len(rows)} done before)" if rows else "",
        config.samples_per_prompt,
        min(config.rollout.engines, max(1, len(todo))),
        config.rollout.backend,
        "engine" if config.rollout.engines == 1 else "engines",
    )
    if todo:
        asked = [
            Shard(number, shard_seed(config.seed, number), [prompt.token_ids_P for prompt in shards[number]])
            for number in todo
        ]
        with (
            connect(config.ray.address, object_store_mb=config.ray.object_store_mb),
            open_rows(work / METRICS, "a") as metrics,
        ):
            say = _Progress(len(shards), len(rows), min(config.rollout.engines, len(todo)))
            for answered in answer_shards(asked, settings, config.samples_per_prompt, config.ray.start_timeout_s):
                candidates, row = _decode(config, shards[answered.number], answered, tokenizer)
                append_rows(metrics, [row])
                write_candidates(shard_file(work, answered.number), candidates)
                rows[answered.number] = row
                say(row)
    if len(rows) < len(shards):
        raise RunError(f"{len(shards) - len(rows)} of {len(shards)} shards weren't answered; the same command goes on")
    in_order = [rows[number] for number in range(len(shards))]
    replace_rows(work / METRICS, in_order)
    return in_order


def _decode(
    config: SampleConfig, prompts: Sequence[Prompt], answered: Answered, tokenizer: Any
) -> tuple[list[Candidates], dict[str, Any]]:
    """A shard's candidates, without empty answers and prompts that have no other, and its metrics."""
    candidates: list[Candidates] = []
    count: Counter[str] = Counter()
    for prompt, token_ids, ended in zip(prompts, answered.token_ids, answered.ended, strict=True):
        texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in token_ids]
        answers = [text for text in texts if text]
        count["empty_answers"] += len(texts) - len(answers)
        count["identical_answers"] += len(answers) - len(set(answers))
        count["tokens"] += sum(len(ids) for ids in token_ids)
        count["ended"] += sum(ended)
        if answers:
            candidates.append(Candidates(prompt.row, answers, config.model))
            count["answers"] += len(answers)
    keys = ("answers", "empty_answers", "identical_answers", "tokens", "ended")
    row = {"shard": answered.number, "prompts": len(prompts), "candidates": len(candidates)}
    return candidates, {**row, **{key: count[key] for key in keys}, "time/generate": round(answered.seconds, 3)}


def _totals(
    config: SampleConfig, chosen: Chosen, rows: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's counts, which an interruption doesn't change, and the summary, which measures time too."""
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "shard"}
    unanswered = {NO_ANSWER: total["prompts"] - total["candidates"]} if total["prompts"] > total["candidates"] else {}
    if not total["candidates"]:
        raise RunError(f"every answer of {config.model} is empty: look at its chat template and its end tokens")
    counts = {
        "in": chosen.num_in,
        "out": total["candidates"],
        "dropped": {**chosen.dropped, **unanswered},
        "answers": {key: total[key] for key in ("answers", "empty_answers", "identical_answers")},
    }
    sampled = total["answers"] + total["empty_answers"]
    seconds = max(total["time/generate"], 1e-3)
    summary = {
        "headline": f"{total['candidates']:,} prompts, {total['answers']:,} answers of "
        f"{total['tokens'] / sampled:.0f} tokens on average, {total['ended'] / sampled:.0%} ended",
        "prompts": total["candidates"],
        "answers": total["answers"],
        "tokens": total["tokens"],
        "mean_tokens": total["tokens"] / sampled,
        "share_ended": total["ended"] / sampled,
        "share_empty": total["empty_answers"] / sampled,
        "share_identical": total["identical_answers"] / sampled,
        "engine_seconds": seconds,
        "answers_per_engine_second": sampled / seconds,
        "tokens_per_engine_second": total["tokens"] / seconds,
    }
    return counts, summary


class _Progress:
    """A line every few seconds: shards, speed of all engines together, what is left."""

    def __init__(self, num_shards: int, done_before: int, engines: int) -> None:
        self._num_shards, self._done, self._engines = num_shards, done_before, engines
        self._total: Counter[str] = Counter()
        self._said = time.monotonic()

    def __call__(self, row: Mapping[str, Any]) -> None:
        self._done += 1
        self._total.update({key: value for key, value in row.items() if key != "shard"} | {"shards": 1})
        now, left = time.monotonic(), self._num_shards - self._done
        if left and now - self._said < SAY_EVERY_S:
            return
        self._said = now
        seconds = max(self._total["time/generate"], 1e-3) / self._engines
        logger.info(
            "shard %d of %d, %.1f answers/s, %.0f tokens/s%s",
            self._done,
            self._num_shards,
            (self._total["answers"] + self._total["empty_answers"]) / seconds,
            self._total["tokens"] / seconds,
            f", {duration(seconds / self._total['shards'] * left)} left" if left else "",
        )
