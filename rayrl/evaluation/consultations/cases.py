"""Cases to consult about, the facts in them, and the dialogues that others published about them.

A file holds rows of three shapes: {id, case, diagnosis, department}, the project's own; HuatuoGPT's cases with
`medical_case`, `doctor_diagnosis` and `Department`; and either with published dialogues, as `model_dialogues` (model ->
turns of a patient and a doctor) or as HuatuoGPT-II's `model_output` ([[user, assistant], ...] of the model that the
file is named after). Rows that aren't as they should be are refused with their reason; where the real talk follows a
case in its text, the case alone is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rayrl.data.readers.files import builtin_sets
from rayrl.data.readers.rows import BadLine, BadRow, Rejected, kind_of, short
from rayrl.data.readers.turns import Rules, Turn, checked_text, messages_of, spoken_turn
from rayrl.data.readers.values import file_values
from rayrl.errors import UserError
from rayrl.rewards.text import is_chinese, sentences
from rayrl.types import Message

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Published = dict[str, dict[str, list[Message]]]
"""Model -> id of the case -> its dialogue, the patient as user and the doctor as assistant."""

_CASE, _DIAGNOSIS = ("case", "medical_case"), ("diagnosis", "doctor_diagnosis")
_DEPARTMENT, _DIALOGUES = ("department", "Department"), ("model_dialogues", "model_output")
_TAKEN = {"id", "language", *_CASE, *_DIAGNOSIS, *_DEPARTMENT, *_DIALOGUES}
_REAL_TALK = re.compile(r"^(?:医生给您发来一个提醒[:：]\s*)?Dialogue\s*$", re.MULTILINE)
"""In one of HuatuoGPT's cases the real talk with the doctor follows."""
_STAMP = re.compile(r"[（(]\d{4}-\d{1,2}-\d{1,2}填写[）)]")
_HEADING = re.compile(r"^\s*([^\s:：，。,.]{1,12}|[A-Z][A-Za-z ]{1,30})[:：]\s*(.*)$")
_CLAUSE = {"zh": re.compile(r"(?<=[，,；;。！？!?\s])(?![，,；;。！？!?\s])"), "en": re.compile(r"(?<=[;；])\s*")}
_MARKS = "，,；;。.！!？?:： \t"
_NO_FACT = re.compile(
    r"[?？]$|[吗呢][?？]?$|如何|怎么|怎样|是否|能否|请问|什么|咨询|希望|帮忙|感谢|谢谢|[您你]好"
    r"|^(?:hello|hi|thank|please|could you)\b",
    re.IGNORECASE,
)
"""Questions and courtesies."""
_ALONE = ("疾病", "主诉", "现病史", "病情描述")
"""Headings whose content means as much without them."""
_MOST_BARE, _LEAST_CHARS = 4, 2
"""Characters of what would mean nothing without its heading ("无"), and of a fact in Chinese."""


@dataclass(frozen=True)
class Case:
    """A patient's case. Example: Case("zh-1", "咳嗽两周。没有发烧。", "支气管炎", "呼吸内科", "zh")"""

    id: str
    case: str
    """All that the patient knows."""
    diagnosis: str | None
    """What a doctor found; neither side of a consultation is told."""
    department: str
    language: Language
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's other keys."""


class CasesRead(NamedTuple):
    """What a file held."""

    cases: list[Case]
    rejected: list[Rejected]
    published: Published


def read_cases(path: str | Path) -> CasesRead:
    """The cases of a JSONL or JSON file, or of a built-in set (`cases-en`, `cases-zh`), in order.

    Raises UserError where the file isn't there or can't be read.
    """
    file = builtin_sets().get(str(path), Path(path).expanduser())
    if not file.is_file():
        raise UserError(f"No cases at {file}: there is no such file (built in: cases-en, cases-zh).")
    cases: dict[str, Case] = {}
    rejected: list[Rejected] = []
    published: Published = {}
    for line, value in file_values(file):
        try:
            case, dialogues = _case_of(value, file.stem)
            if case.id in cases:
                raise BadRow(f"the id {short(case.id)} is taken by an earlier row")
        except BadRow as error:
            rejected.append(Rejected(str(file), line, str(error)))
            continue
        cases[case.id] = case
        for model, messages in dialogues.items():
            published.setdefault(model, {})[case.id] = messages
    return CasesRead(list(cases.values()), rejected, published)


def _case_of(value: Any, stem: str) -> tuple[Case, dict[str, list[Message]]]:
    if isinstance(value, BadLine):
        raise BadRow(str(value))
    if not isinstance(value, Mapping):
        raise BadRow(f"the row is {kind_of(value)}, expected a mapping")
    rules = Rules()
    row_id = value.get("id")
    if isinstance(row_id, int) and not isinstance(row_id, bool):
        row_id = str(row_id)
    text = _REAL_TALK.split(checked_text("case", _first(value, _CASE), rules))[0].strip()
    diagnosis = _first(value, _DIAGNOSIS)
    if diagnosis is not None:
        diagnosis = checked_text("diagnosis", diagnosis, rules).strip()
    department = _first(value, _DEPARTMENT)
    language: Language | None = next((one for one in LANGUAGES if one == value.get("language")), None)
    if language is None and value.get("language") is not None:
        raise BadRow(f"language is {short(value['language'])}, expected en or zh")
    case = Case(
        id=checked_text("id", row_id, rules),
        case=text,
        diagnosis=diagnosis,
        department="" if department is None else checked_text("department", department, rules).strip(),
        language=language or ("zh" if is_chinese(text) else "en"),
        fields={key: item for key, item in value.items() if key not in _TAKEN and item is not None},
    )
    return case, dict(_dialogues(value, stem, rules))


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _dialogues(row: Mapping[str, Any], stem: str, rules: Rules) -> Iterator[tuple[str, list[Message]]]:
    """(model, dialogue) of those that a row publishes."""
    by_model, output = (row.get(key) for key in _DIALOGUES)
    if by_model is not None and not isinstance(by_model, Mapping):
        raise BadRow(f"model_dialogues is {kind_of(by_model)}, expected a mapping from models to their turns")
    for model, turns in (by_model or {}).items():
        if not isinstance(turns, list):
            raise BadRow(f"the dialogue of {short(model)} is {kind_of(turns)}, expected a list of turns")
        spoken = [spoken_turn(turn, number) for number, turn in enumerate(turns, start=1)]
        yield str(model), messages_of(spoken, rules)
    if output is not None:
        yield stem, messages_of(_turns_of_pairs(output), rules)


def _turns_of_pairs(output: Any) -> list[Turn]:
    """Turns of [[user, assistant], ...]; the last pair may lack its answer."""
    if not isinstance(output, list):
        raise BadRow(f"model_output is {kind_of(output)}, expected a list of pairs of turns")
    turns = []
    for number, pair in enumerate(output, start=1):
        if not isinstance(pair, list) or not 1 <= len(pair) <= 2 or (len(pair) == 1 and number < len(output)):
            raise BadRow(f"pair {number} of model_output is no pair of a patient's and a doctor's turn")
        turns += [Turn(role, text) for role, text in zip(("user", "assistant"), pair, strict=False)]
    return turns


def case_sentences(text: str) -> list[str]:
    """A case's sentences, without the dates and the longer headings of a form.

    A heading stays with what means nothing without it. Example: "过敏史：\\n无（2020-03-25填写）" -> ["过敏史：无"]
    """
    found, heading = [], ""
    for line in _STAMP.sub("", text).splitlines():
        named = _HEADING.match(line)
        if named is not None:
            heading, line = named.group(1).strip(), named.group(2)
        if not line.strip():
            continue
        for sentence in sentences(line):
            bare = heading and heading not in _ALONE and len(sentence.strip(_MARKS)) <= _MOST_BARE
            found.append(f"{heading}{': ' if heading.isascii() else '：'}{sentence}" if bare else sentence)
        heading = ""
    return found


def case_facts(case: Case) -> list[str]:
    """The single facts of a case, in order, without repeats: clauses in Chinese, sentences in English.

    What the patient asks and says out of politeness is no fact.
    """
    split = _CLAUSE[case.language].split
    clauses = [clause.strip() for sentence in case_sentences(case.case) for clause in split(sentence)]
    facts = [clause.strip(_MARKS) for clause in clauses if not _NO_FACT.search(clause.rstrip(_MARKS[:5]))]
    least = _LEAST_CHARS if case.language == "zh" else 1
    return list(dict.fromkeys(fact for fact in facts if len(fact) >= least))
