"""What `rayrl eval` asks, read and checked before anything answers: questions, exams, cases, safety requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from rayrl.config.eval import EvalConfig, ExamConfig, QuestionSetConfig
from rayrl.data.readers import check_read, read_prompt_rows
from rayrl.data.readers.exams import read_exam, split_hash
from rayrl.data.readers.rows import Rejected, check_share
from rayrl.data.split import conversation_key
from rayrl.errors import UserError
from rayrl.evaluation.compare_report import Run, read_run
from rayrl.evaluation.consultations.cases import Case, read_cases
from rayrl.evaluation.experts import read_choices
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.safety.assess import SafetyRow, read_safety
from rayrl.evaluation.scored import read_people
from rayrl.rewards.text import is_chinese
from rayrl.tracking.rows import evaluation_path, read_samples
from rayrl.types import ExamItem, Message, PromptRow

CATEGORIES = ("intent", "department", "label", "cate1", "topic")
"""Fields that name a question's category, in the order in which they are looked for."""
_PUBLISHED = ("model_outputs", "model_output")

T = TypeVar("T")


@dataclass(frozen=True)
class QuestionSet:
    """Questions with what the answers are compared with."""

    name: str
    config: QuestionSetConfig
    rows: list[PromptRow]
    categories: Mapping[str, str]
    """By question's id; "" where it has none."""
    language: Literal["en", "zh"]
    level: Literal["characters", "words"]
    published: Mapping[str, Mapping[str, str]]
    """Model -> question's id -> the answer that the set's rows hold."""


@dataclass(frozen=True)
class ExamSet:
    """An exam's questions, and solved ones to put before them."""

    name: str
    config: ExamConfig
    items: list[ExamItem]
    solved: list[ExamItem]
    split_hash: str
    """Of the questions that are asked: tells whether two people asked the same."""


@dataclass(frozen=True)
class CaseSet:
    """Cases to consult about. `published`: model -> case's id -> its talk."""

    name: str
    cases: list[Case]
    rounds: int
    published: Mapping[str, Mapping[str, list[Message]]]


@dataclass(frozen=True)
class SafetySet:
    """Requests of a safety set."""

    name: str
    rows: list[SafetyRow]


@dataclass(frozen=True)
class Sets:
    """Everything that is asked."""

    questions: list[QuestionSet]
    exams: list[ExamSet]
    cases: list[CaseSet]
    safety: list[SafetySet]
    experts: list[Match] = field(default_factory=list)
    """Physicians' choices."""
    people: Mapping[tuple[str, str], Mapping[str, float]] = field(default_factory=dict)
    """People's scores, to check a judge against."""
    runs: list[Run] = field(default_factory=list)
    """Training runs whose losses are drawn."""
    rejected: list[Rejected] = field(default_factory=list)


def read_sets(config: EvalConfig) -> Sets:
    """All sets. Raises UserError where one can't be read, holds too many bad rows, or lacks published answers."""
    rejected: list[Rejected] = []
    sets = Sets(
        [_questions(one, config, rejected) for one in config.questions],
        [_exam(one, config, rejected) for one in config.exams],
        [],
        [],
        runs=[read_run(f"{model.name}={'+'.join(model.runs)}") for model in config.models if model.runs],
        rejected=rejected,
    )
    for one in config.consultations:
        read = read_cases(one.path)
        _check(one.name, "cases", read.cases, read.rejected, config, rejected)
        cases = draw(read.cases, one.num, config.seed)
        published = {**read.published, **{name: _talks_in(path, cases) for name, path in one.outputs.items()}}
        sets.cases.append(CaseSet(one.name, cases, one.rounds, published))
    for safety in config.safety:
        requests = read_safety(safety.path)
        _check(safety.name, "requests", requests.rows, requests.rejected, config, rejected)
        sets.safety.append(SafetySet(safety.name, requests.rows))
    for experts in config.experts:
        choices = read_choices(experts.name, experts.path)
        _check(experts.name, "choices", choices.matches, choices.rejected, config, rejected)
        sets.experts.extend(choices.matches)
    _require_published(config, sets)
    return replace(sets, people=_people(config, rejected))


def _people(config: EvalConfig, rejected: list[Rejected]) -> dict[tuple[str, str], dict[str, float]]:
    if config.scored is None or config.scored.human is None:
        return {}
    people, bad = read_people(config.scored.human, [criterion.name for criterion in config.scored.criteria])
    _check("scored.human", "scores", list(people), bad, config, rejected)
    return people


def draw(items: Sequence[T], num: int | None, seed: int) -> list[T]:
    """`num` items by a hash of seed and id, in their own order: a longer draw holds a shorter one."""
    if num is None or num >= len(items):
        return list(items)

    def number(item: Any) -> str:
        return hashlib.sha256(f"{seed}:{item.id}".encode()).hexdigest()

    chosen = {id(item) for item in sorted(items, key=number)[:num]}
    return [item for item in items if id(item) in chosen]


def _questions(one: QuestionSetConfig, config: EvalConfig, rejected: list[Rejected]) -> QuestionSet:
    read = read_prompt_rows(one)
    check_read(read, config.max_rejected_fraction)
    rejected += read.rejected
    rows = draw(_heldout(one, read.rows), one.num, config.seed)
    key = one.category or next((name for name in CATEGORIES if any(name in row.fields for row in rows)), None)
    if one.category is not None and not any(one.category in row.fields for row in rows):
        raise UserError(f"questions {one.name!r}: no row has a field {one.category!r} to take categories from")
    chinese = 2 * sum(is_chinese(row.messages[-1]["content"]) for row in rows) > len(rows)
    language: Literal["en", "zh"] = one.language if one.language != "auto" else "zh" if chinese else "en"
    level: Literal["characters", "words"] = (
        one.level if one.level != "auto" else "characters" if language == "zh" else "words"
    )
    categories = {row.id: str(row.fields.get(key, "")) if key else "" for row in rows}
    published = _published(one.name, rows)
    published |= {name: _answers_in(one, path, rows) for name, path in one.outputs.items()}
    return QuestionSet(one.name, one, rows, categories, language, level, published)


def _heldout(one: QuestionSetConfig, rows: list[PromptRow]) -> list[PromptRow]:
    """Those that a PPO run kept back, where one is named; else all."""
    if one.heldout_of is None:
        return rows
    first = evaluation_path(Path(one.heldout_of).expanduser(), 0)
    if not first.is_file():
        raise UserError(f"questions {one.name!r}: {one.heldout_of} isn't the folder of a `rayrl ppo` run: no {first}")
    kept = {sample.prompt_id for sample in read_samples(first)}
    found = [row for row in rows if row.id in kept]
    if not found:
        raise UserError(f"questions {one.name!r}: {one.heldout_of} held out none of the prompts in {one.path}")
    return found


def _published(name: str, rows: Sequence[PromptRow]) -> dict[str, dict[str, str]]:
    """Answers in the rows: `model_outputs` by model, or one model's `model_output`, which is called by the set."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        outputs: Any = next((row.fields[key] for key in _PUBLISHED if key in row.fields), {})
        if isinstance(outputs, str):
            outputs = {name: outputs}
        for model, answer in outputs.items() if isinstance(outputs, Mapping) else ():
            if isinstance(answer, str) and answer.strip():
                found.setdefault(str(model), {})[row.id] = answer
    return found


def _answers_in(one: QuestionSetConfig, path: str, rows: Sequence[PromptRow]) -> dict[str, str]:
    """Answers of a file of their own to the set's questions, told by the conversation. UserError where it has none."""
    read = read_prompt_rows(one.model_copy(update={"path": path}))
    marked = any("model_output" in row.fields for row in read.rows)  # else the rows' own answers are meant
    answers = {conversation_key(row): row.fields.get("model_output") if marked else row.reference for row in read.rows}
    found = {row.id: answers.get(conversation_key(row)) for row in rows}
    texts = {row_id: text for row_id, text in found.items() if isinstance(text, str) and text.strip()}
    if not texts:
        raise UserError(f"questions {one.name!r}: {path} holds no answer to any of the set's questions")
    return texts


def _talks_in(path: str, cases: Sequence[Case]) -> dict[str, list[Message]]:
    """Dialogues of a file of their own about the set's cases, told by the case. UserError where it has none."""
    read = read_cases(path)
    by_case = {
        case.case: talks[case.id] for talks in read.published.values() for case in read.cases if case.id in talks
    }
    found = {case.id: by_case[case.case] for case in cases if case.case in by_case}
    if not found:
        raise UserError(f"{path} holds no dialogue about any of the set's cases")
    return found


def _exam(one: ExamConfig, config: EvalConfig, rejected: list[Rejected]) -> ExamSet:
    read = read_exam(one.path, name=one.name, encoding=one.encoding, cop_base=one.cop_base)
    _check(one.name, "questions", read.items, read.rejected, config, rejected)
    items = draw(read.items, one.num, config.seed)
    solved: list[ExamItem] = []
    if one.shots:
        others = read.items
        if one.shots_path is not None:
            shots = read_exam(one.shots_path, name=one.name, encoding=one.encoding, cop_base=one.cop_base)
            _check(f"{one.name}.shots_path", "questions", shots.items, shots.rejected, config, rejected)
            others = shots.items
        solved = draw(others, None, config.seed)
    exam = ExamSet(one.name, one, items, solved, split_hash(items))
    short = next((item.id for item in items if len(examples_for(exam, item)) < one.shots), None)
    if short is not None:
        raise UserError(f"exams {one.name!r}: there aren't {one.shots} solved questions of other groups for {short!r}")
    return exam


def examples_for(exam: ExamSet, item: ExamItem) -> list[ExamItem]:
    """Solved questions to put before one: the first of the drawn order that aren't it, nor of its group."""
    others = (
        one
        for one in exam.solved
        if one.id != item.id and one.question != item.question and (one.group is None or one.group != item.group)
    )
    return list(islice(others, exam.config.shots))


def _check(
    name: str, what: str, rows: Sequence[Any], bad: Sequence[Rejected], config: EvalConfig, rejected: list[Rejected]
) -> None:
    check_share(name, what, len(rows), bad, config.max_rejected_fraction, "max_rejected_fraction")
    rejected += bad


def _require_published(config: EvalConfig, sets: Sets) -> None:
    """Raises UserError where a model of published answers has none in any set."""
    known: dict[str, None] = {}
    for published in [*(one.published for one in sets.questions), *(one.published for one in sets.cases)]:
        known |= dict.fromkeys(published)
    for model in config.models:
        if model.published is not None and model.published not in known:
            there = ", ".join(known) or "none at all"
            raise UserError(f"models {model.name!r}: no set holds answers of {model.published!r} (there are: {there})")
