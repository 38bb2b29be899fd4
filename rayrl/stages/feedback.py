"""`rayrl feedback`: verdicts of judge, rubric, annotators and existing files in one preference store.

    preferences.parquet   a row a verdict (data/preferences.py)
    set_aside.jsonl       rows without a verdict, with the reason and what the rater said
    third.jsonl           items that a third annotator has to rank (feedback/rankings.py)
    rejected.jsonl        input rows that couldn't be used, with file, line and reason
    summary.json, config.yaml, manifest.json

The judge is asked last, when everything that can be wrong with the input has been looked at. Its answers lie in its
cache, so a run that was cut pays for none of them twice; the rest is made again in seconds.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.session import connect
from rayrl.config.feedback import FeedbackConfig, FileConfig, HumanConfig, RaterConfig
from rayrl.config.judge import JudgeConfig
from rayrl.config.load import dump, load
from rayrl.data.candidates import read_candidates
from rayrl.data.lock import LOCK, only_run
from rayrl.data.preferences import STORE, write_preferences
from rayrl.data.prompts import REJECTED_FILE, Rejected, write_rejected
from rayrl.data.readers import read_comparisons
from rayrl.data.readers.rows import check_read, check_share
from rayrl.data.stage_folder import StageFolder
from rayrl.errors import RunError, UserError
from rayrl.feedback.adjudicate import comparisons, decide
from rayrl.feedback.agreement import annotator_agreement, rater_agreement
from rayrl.feedback.judge_rater import judge_pairs
from rayrl.feedback.pairs import Pair, choose_pairs
from rayrl.feedback.rankings import Item, read_items, write_unranked
from rayrl.feedback.rubric import Rubric
from rayrl.feedback.rubric_server import served
from rayrl.feedback.summary import headline, rater_table, reasons
from rayrl.judge.compare import BUDGET_REASON
from rayrl.judge.service import JudgeService
from rayrl.types import Comparison

logger = logging.getLogger(__name__)

SET_ASIDE = "set_aside.jsonl"
THIRD = "third.jsonl"
SUMMARY = "summary.json"
SAY_EVERY_S = 10.0


@dataclass
class _Inputs:
    """Everything read, before anything is judged."""

    num_candidates: int = 0
    pairs: list[Pair] = field(default_factory=list)
    same_text: int = 0
    """Pairs of answers that have the same text."""
    items: list[Item] = field(default_factory=list)
    unranked: int = 0
    comparisons: list[Comparison] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def main(config_path: str) -> None:
    """Runs or resumes the stage. Raises UserError for bad input, RunError where the judge's endpoint refuses."""
    config = load(FeedbackConfig, config_path)
    folder = StageFolder(config, config.output_dir, _input_paths(config))
    console = Console()
    if folder.done:
        console.print(f"{folder.path} is done: nothing to rate", soft_wrap=True)
        return
    rubrics = {index: Rubric(rater.rubric) for index, rater in enumerate(config.raters) if rater.rubric is not None}
    inputs = _read(config)
    work = folder.begin()
    with only_run(work):
        (work / "config.yaml").write_text(dump(config), encoding="utf-8")
        write_rejected(work / REJECTED_FILE, inputs.rejected)
        parts: dict[int, list[Comparison]] = {index: rubric.rate(inputs.pairs) for index, rubric in rubrics.items()}
        third: list[Item] = []
        for index, rater in enumerate(config.raters):
            if rater.human is not None:
                parts[index], third = _human(inputs.items, rater.human)
                write_unranked(work / THIRD, third, rater.human.third)
            elif rater.file is not None:
                parts[index] = inputs.comparisons
        parts |= _judge(config, inputs.pairs)
        rows = _unique(row for index in range(len(config.raters)) for row in parts[index])
        write_preferences(work / STORE, rows)
        _write_set_aside(work / SET_ASIDE, rows)
        _require_verdicts(config.raters, rows, work)
        summary = _summary(config, inputs, rows, len(third))
        _write_json(work / SUMMARY, summary)
        (work / LOCK).unlink()
        folder.publish(_counts(inputs, rows), config.seed)
    _say(console, config, folder.path, summary, rows)


def _input_paths(config: FeedbackConfig) -> list[str]:
    paths = [config.candidates] if config.candidates is not None else []
    for rater in config.raters:
        if rater.human is not None:
            paths += [path for source in rater.human.rankings for path in (source.path, source.items) if path]
        if rater.file is not None:
            paths += [source.path for source in rater.file.comparisons]
    return paths


def _read(config: FeedbackConfig) -> _Inputs:
    """Raises UserError where a source can't be read, or holds too many bad rows."""
    inputs, limit = _Inputs(), config.max_rejected_fraction
    if config.candidates is not None:
        read = read_candidates(config.candidates)
        _check(config.candidates, "candidates", len(read.rows), read.rejected, limit)
        inputs.num_candidates = len(read.rows)
        inputs.rejected += read.rejected
        inputs.pairs, inputs.same_text = choose_pairs(read, config.pairs, config.seed)
    for rater in config.raters:
        if rater.human is not None:
            _read_human(rater.human, inputs, limit)
        elif rater.file is not None:
            _read_files(rater.file, inputs, limit)
    return inputs


def _read_human(config: HumanConfig, inputs: _Inputs, limit: float) -> None:
    found = read_items(config)
    num_rankings = sum(len(item.ranks) for item in found.items)
    names = ", ".join(source.path for source in config.rankings)
    if not num_rankings and not found.rejected and found.unranked:
        raise UserError(f"{names}: none of the {found.unranked} items has been ranked yet (ranks: null)")
    _check(names, "rankings", num_rankings, found.rejected, limit)
    inputs.items, inputs.unranked = found.items, found.unranked
    inputs.rejected += found.rejected


def _read_files(config: FileConfig, inputs: _Inputs, limit: float) -> None:
    for source in config.comparisons:
        read = read_comparisons(source)
        check_read(read, limit)
        inputs.comparisons += read.rows
        inputs.rejected += read.rejected


def _check(source: str, what: str, num_rows: int, rejected: Sequence[Rejected], limit: float) -> None:
    check_share(source, what, num_rows, rejected, limit, "max_rejected_fraction")


def _human(items: Sequence[Item], config: HumanConfig) -> tuple[list[Comparison], list[Item]]:
    """Their comparisons, and the items that the third has to rank."""
    decisions = [decide(item, config) for item in items]
    rows = [row for decision in decisions for row in comparisons(decision, config.admission)]
    return rows, [decision.item for decision in decisions if decision.for_third]


def _judge(config: FeedbackConfig, pairs: Sequence[Pair]) -> dict[int, list[Comparison]]:
    """The judges' rows by their place among the raters; Ray starts only where there is a judge."""
    judges = {index: rater.judge for index, rater in enumerate(config.raters) if rater.judge is not None}
    if not judges:
        return {}
    with connect(config.ray.address, object_store_mb=config.ray.object_store_mb):
        return {index: _judge_by(judge, pairs) for index, judge in judges.items()}


def _judge_by(config: JudgeConfig, pairs: Sequence[Pair]) -> list[Comparison]:
    """One judge's rows, in the order of the pairs."""
    rows: dict[str, Comparison] = {}
    last = time.monotonic()
    with served(config) as reachable:
        for row in judge_pairs(pairs, JudgeService(reachable)):
            rows[row.id] = row
            if time.monotonic() - last >= SAY_EVERY_S:
                last = time.monotonic()
                failed = sum(row.verdict == "set_aside" for row in rows.values())
                logger.info("%s: %d of %d pairs, %d set aside", row.rater, len(rows), len(pairs), failed)
    return [rows[f"{pair.id}/judge:{config.model}"] for pair in pairs]


def _unique(rows: Iterable[Comparison]) -> list[Comparison]:
    """Rows of different sources may share an id; the second one becomes ID#2, and so on."""
    seen: Counter[str] = Counter()
    unique = []
    for row in rows:
        seen[row.id] += 1
        unique.append(row if seen[row.id] == 1 else replace(row, id=f"{row.id}#{seen[row.id]}"))
    return unique


def _summary(config: FeedbackConfig, inputs: _Inputs, rows: Sequence[Comparison], num_third: int) -> dict[str, Any]:
    human = next((rater.human for rater in config.raters if rater.human is not None), None)
    summary: dict[str, Any] = {
        "headline": headline(rows),
        "prompts": inputs.num_candidates,
        "pairs": len(inputs.pairs),
        "pairs_of_one_text": inputs.same_text,
        "rejected": len(inputs.rejected),
        "raters": rater_table(rows),
        "set_aside": reasons(rows),
        "rater_agreement": rater_agreement(rows),
    }
    if human is not None:
        summary["human"] = {
            "items": len(inputs.items),
            "rankings": sum(len(item.ranks) for item in inputs.items),
            "for_third": num_third,
            "not_ranked_yet": inputs.unranked,
            "agreement": annotator_agreement(inputs.items, human.third),
        }
    return summary


def _counts(inputs: _Inputs, rows: Sequence[Comparison]) -> dict[str, Any]:
    num_rankings = sum(len(item.ranks) for item in inputs.items)
    num_in = inputs.num_candidates + num_rankings + len(inputs.comparisons) + len(inputs.rejected)
    dropped = Counter(row.reason for row in inputs.rejected)
    if inputs.same_text:
        dropped["pairs of answers with one text"] = inputs.same_text
    return {"in": num_in, "out": len(rows), "dropped": dict(dropped)}


def _write_set_aside(path: Path, rows: Iterable[Comparison]) -> None:
    draft = path.with_suffix(".draft")
    with draft.open("w", encoding="utf-8") as out:
        for row in rows:
            if row.verdict == "set_aside":
                value = {"id": row.id, "rater": row.rater, "reason": row.reason, "scores": dict(row.scores)}
                out.write(json.dumps(value, ensure_ascii=False) + "\n")
    os.replace(draft, path)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def _say(
    console: Console, config: FeedbackConfig, folder: Path, summary: dict[str, Any], rows: Sequence[Comparison]
) -> None:
    table = Table("rater", "rows", "a", "b", "tie", "inconsistent", "set aside", "first / second shown wins")
    for rater, row in summary["raters"].items():
        counts = [str(row[key]) for key in ("rows", "a", "b", "tie", "inconsistent", "set_aside")]
        bias = f"{row['first_shown_wins']:.0%} / {row['second_shown_wins']:.0%}" if "first_shown_wins" in row else ""
        table.add_row(rater, *counts, bias)
    console.print(table)
    for two in summary["rater_agreement"]:
        same, kappa = f"{two['same_verdicts']:.0%}", _number(two["kappa"])
        console.print(f"{' and '.join(two['raters'])}: {same} of {two['pairs']} pairs alike, kappa {kappa}")
    human = summary.get("human", {})
    if human.get("agreement"):
        told = Table("department", "items", "alpha (ranks)", "kappa (ranks)", "kappa (pairs)", "alike")
        for name, row in human["agreement"].items():
            values = [_number(row[key]) for key in ("alpha_ranks", "kappa_ranks", "kappa_verdicts", "same_verdicts")]
            told.add_row(name, str(row["items"]), *values)
        console.print(told)
    if human.get("for_third"):
        console.print(
            f"{human['for_third']} items need a third annotator: rank them in a copy of {folder / THIRD} and name it "
            "under rankings, with another output_dir",
            soft_wrap=True,
        )
    _say_budget(console, config.raters, rows)
    console.print(f"{folder}: {summary['headline']}", soft_wrap=True)


def _require_verdicts(raters: Sequence[RaterConfig], rows: Sequence[Comparison], work: Path) -> None:
    """RunError where a judge gave no verdict at all, for another reason than its budget."""
    for rater in raters:
        if rater.judge is None:
            continue
        name = f"judge:{rater.judge.model}"
        own = [row for row in rows if row.rater == name]
        left = [row for row in own if row.verdict == "set_aside" and not (row.reason or "").startswith(BUDGET_REASON)]
        if own and len(left) == len(own):
            raise RunError(
                f"{name}: none of {len(own)} pairs has a verdict ({own[0].reason}); {work / SET_ASIDE} has them all; "
                "mend it and run again"
            )


def _say_budget(console: Console, raters: Sequence[RaterConfig], rows: Sequence[Comparison]) -> None:
    for index, rater in enumerate(raters):
        if rater.judge is None:
            continue
        name = f"judge:{rater.judge.model}"
        left = sum(row.rater == name and (row.reason or "").startswith(BUDGET_REASON) for row in rows)
        if left:
            console.print(
                f"{left} pairs have no verdict of {name}: its budget is spent. To go on, raise "
                f"raters.{index}.judge.budget and set another output_dir; answers in {rater.judge.cache} "
                "aren't paid for again",
                soft_wrap=True,
            )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
