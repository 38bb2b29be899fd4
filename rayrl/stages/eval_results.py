"""Writes what an evaluation found: records, numbers, tables, the page."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table as ConsoleTable

from rayrl.config.eval import EvalConfig
from rayrl.evaluation.eval_numbers import Measured, all_numbers, findings_of
from rayrl.evaluation.eval_page import eval_page, headline
from rayrl.evaluation.eval_tables import tables_of
from rayrl.evaluation.experts import expert_agreement
from rayrl.evaluation.numbers import NUMBERS, write_numbers
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.records import Records
from rayrl.evaluation.safety.assess import flag_table, flagged_rows
from rayrl.evaluation.scored import Agreement, agreement
from rayrl.evaluation.stage_report import Table, write_page
from rayrl.evaluation.tables import write_tables
from rayrl.stages.eval_sets import Sets
from rayrl.tracking.rows import replace_rows

_WINS = {
    "consistent": "in both orders (ties counted half)",
    "points": "by points over both orders (ties counted half)",
    "sum": "by the sum of both orders' scores (ties counted half)",
    "priority": "by the first criterion won in both orders (ties counted half)",
}
_ON_CONSOLE = 6
"""Tables that the console shows, those by category not among them; the page has them all."""


def write_results(
    work: Path, config: EvalConfig, sets: Sets, records: Records
) -> tuple[dict[str, Any], list[ConsoleTable]]:
    """Everything into the folder; the summary, and what the console shows."""
    models = [model.name for model in config.models]
    choices = sets.experts
    agreements = _agreements(config, sets, records)
    measured = [Measured(one.name, one.level, one.language) for one in sets.questions if one.config.metrics]
    numbers = all_numbers(records, models, measured, choices, agreements, config.seed, config.resamples)
    write_numbers(work / NUMBERS, numbers)
    _write_records(work, records)
    tables = [*tables_of(numbers), *_expert_tables(choices), *_flag_tables(records)]
    write_tables(work / "tables", tables)
    write_page(work, eval_page(models, numbers, tables, records, sets.runs, _facts(config, sets)))
    text, detail, _ = headline(models, numbers)
    summary = {
        "headline": f"{text}. {detail}",
        "models": models,
        "sets": {exam.name: {"questions": len(exam.items), "split_hash": exam.split_hash} for exam in sets.exams},
    }
    return summary, [_console(table) for table in tables if " by " not in table.title][:_ON_CONSOLE]


def _facts(config: EvalConfig, sets: Sets) -> list[tuple[str, str]]:
    """How the numbers came about: without it they say little."""
    facts = []
    if config.pairwise is not None:
        asked = config.pairwise.asked
        criteria = "" if asked is None else f": {', '.join(criterion.name for criterion in asked.criteria)}"
        judge = "rules" if asked is None else f"{asked.model} at {asked.endpoint}"
        facts.append(("Pairs judged by", judge + criteria))
        if asked is not None:
            facts.append(("A win", _WINS[config.pairwise.ties]))
    if config.scored is not None:
        facts.append(("Scored by", f"{config.scored.judge.model} at {config.scored.judge.endpoint}"))
    if sets.cases and any(model.published is None for model in config.models):
        facts.append(("Patient", f"{config.patient.model} at {config.patient.endpoint}"))
    counted = {f"{one.level} of {one.language}" for one in sets.questions if one.config.metrics}
    if counted:
        facts.append(("Metrics count", ", ".join(sorted(counted))))
    by_way: dict[str, list[str]] = {}
    for model in config.models:
        if model.model is not None:
            rollout = config.rollout_of(model)
            way = f"temperature {rollout.temperature:g}, at most {rollout.max_new_tokens} tokens"
            by_way.setdefault(way, []).append(model.name)
    facts += [("Decoding" if len(by_way) == 1 else f"Decoding of {', '.join(names)}", w) for w, names in by_way.items()]
    return facts


def _flag_tables(records: Records) -> list[Table]:
    return [
        flag_table(findings_of(records.safety, name), f"Why answers are flagged: {name}")
        for name in dict.fromkeys(one.set for one in records.safety)
    ]


def _agreements(config: EvalConfig, sets: Sets, records: Records) -> list[Agreement]:
    if config.scored is None or not sets.people:
        return []
    return agreement(records.scores, sets.people, [criterion.name for criterion in config.scored.criteria])


def _expert_tables(choices: Sequence[Match]) -> list[Table]:
    """How far experts agree, two by two."""
    if not choices:
        return []
    rows = [
        (
            " and ".join(one["experts"]),
            str(one["questions"]),
            f"{one['same']:.0%}",
            "undefined" if one["kappa"] is None else f"{one['kappa']:.2f}",
        )
        for one in expert_agreement(choices)
    ]
    caption = "Questions that both saw, choices alike, Cohen's kappa."
    return [Table("Agreement of experts", caption, ("Experts", "Questions", "Alike", "Kappa"), rows)] if rows else []


def _write_records(work: Path, records: Records) -> None:
    replace_rows(
        work / "answers.jsonl",
        (
            {"set": one.set, "id": one.row.id, "category": one.category, "model": one.model, "text": one.answer.text,
             "reason": one.answer.reason, "tokens": one.answer.num_tokens, "ended": one.answer.ended}
            for one in records.answers
        ),
    )  # fmt: skip
    replace_rows(
        work / "exams.jsonl",
        (
            {"set": one.set, "id": one.item.id, "model": one.model, "chosen": one.chosen, "answer": one.item.answer,
             "answered": one.answered, "text": one.text}
            for one in records.exams
        ),
    )  # fmt: skip
    replace_rows(
        work / "talks.jsonl",
        (
            {"set": talk.set, "id": talk.case.id, "model": talk.model, "messages": talk.dialogue.messages,
             "ended": talk.dialogue.ended, "reason": talk.dialogue.reason}
            for talk in records.talks
        ),
    )  # fmt: skip
    replace_rows(
        work / "safety.jsonl",
        (
            {"set": one.set, "model": one.model, "id": found.row.prompt.id, "expect": found.row.expect,
             "text": found.answer, "as_expected": found.as_expected, "flags": list(found.flags)}
            for one in records.safety if (found := one.finding) is not None
        ),
    )  # fmt: skip
    replace_rows(work / "matches.jsonl", (asdict(match) for match in records.matches))
    replace_rows(work / "scores.jsonl", (asdict(one) for one in records.scores))
    flagged = [
        {"set": name, **row}
        for name in dict.fromkeys(one.set for one in records.safety)
        for row in flagged_rows(findings_of(records.safety, name))
    ]
    if flagged:
        _write_csv(work / "flagged.csv", flagged)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _console(table: Table) -> ConsoleTable:
    shown = ConsoleTable(*table.header, title=table.title)
    for row in table.rows:
        shown.add_row(*row)
    return shown
