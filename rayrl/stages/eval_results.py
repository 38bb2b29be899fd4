"""Writes what an evaluation found: records, numbers, tables, the page."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table as ConsoleTable

from rayrl.config.eval import EvalConfig
from rayrl.evaluation.compare_report import read_run
from rayrl.evaluation.eval_numbers import Measured, all_numbers, findings_of
from rayrl.evaluation.eval_page import eval_page, headline
from rayrl.evaluation.eval_tables import tables_of
from rayrl.evaluation.experts import Choices, expert_agreement, read_choices
from rayrl.evaluation.numbers import ALL, NUMBERS, write_numbers
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.records import Records
from rayrl.evaluation.safety import flagged_rows
from rayrl.evaluation.scored import Agreement, agreement, read_people
from rayrl.evaluation.stage_report import Table, write_page
from rayrl.evaluation.tables import write_tables
from rayrl.stages.eval_sets import Sets
from rayrl.tracking.rows import replace_rows

_ON_CONSOLE = 6
"""Tables that the console shows, those by category not among them; the page has them all."""


def write_results(
    work: Path, config: EvalConfig, sets: Sets, records: Records
) -> tuple[dict[str, Any], list[ConsoleTable]]:
    """Everything into the folder; the summary, and what the console shows."""
    models = [model.name for model in config.models]
    experts = [read_choices(one.name, one.path) for one in config.experts]
    choices = [match for one in experts for match in one.matches]
    agreements = _agreements(config, records)
    measured = [Measured(one.name, one.level, one.language) for one in sets.questions if one.config.metrics]
    numbers = all_numbers(records, models, measured, choices, agreements, config.seed, config.resamples)
    write_numbers(work / NUMBERS, numbers)
    _write_records(work, records)
    tables = [*tables_of(numbers), *_expert_tables(choices, experts)]
    write_tables(work / "tables", tables)
    runs = [read_run(f"{model.name}={'+'.join(model.runs)}") for model in config.models if model.runs]
    write_page(work, eval_page(models, numbers, tables, records, runs))
    text, detail, _ = headline(models, numbers)
    summary = {
        "headline": f"{text}. {detail}",
        "models": models,
        "sets": {exam.name: {"questions": len(exam.items), "split_hash": exam.split_hash} for exam in sets.exams},
        "numbers": [asdict(number) for number in numbers if number.split == ALL],
    }
    return summary, [_console(table) for table in tables if " by " not in table.title][:_ON_CONSOLE]


def _agreements(config: EvalConfig, records: Records) -> list[Agreement]:
    if config.scored is None or config.scored.human is None:
        return []
    names = [criterion.name for criterion in config.scored.criteria]
    people, _ = read_people(config.scored.human, names)
    return agreement(records.scores, people, names)


def _expert_tables(choices: Sequence[Match], experts: Sequence[Choices]) -> list[Table]:
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
    unused = sum(len(one.rejected) for one in experts)
    caption = "Questions that both saw, choices alike, Cohen's kappa." + (
        f" {unused} rows weren't used." if unused else ""
    )
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
             "answered": one.answered}
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
