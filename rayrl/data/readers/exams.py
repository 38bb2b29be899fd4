"""Multiple-choice exams, in the shapes in which they are published, to exam items.

A row's shape is told from its keys: rayrl's own, HuatuoGPT-II, CMB, CMExam, MedQA, MedMCQA, MMLU, CMMLU, C-Eval
(exam_rows.py reads options and answers). A table without a header is taken for MMLU's: question, options, letter.

A row is refused rather than repaired, with a reason that quotes nothing of it. Left out: questions with options inside
their text, answers that lie in another file, explanations, subjects.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rayrl.config.encoding import Encoding
from rayrl.config.sources import SourceConfig
from rayrl.data.readers.exam_rows import (
    LETTERS,
    Fields,
    Limits,
    answer_of,
    checked,
    cop_base_of,
    fields_of,
    first,
    options_of,
)
from rayrl.data.readers.files import Part, parts
from rayrl.data.readers.rows import BadLine, BadRow, Rejected, why_not_text
from rayrl.data.readers.text import decode, read_text, why_not_decoded
from rayrl.data.readers.values import Values
from rayrl.types import ExamItem

Type = Literal["single", "multiple", "matched", "case"]
_TYPES: tuple[tuple[Type, str], ...] = (
    ("multiple", r"多项|多选|不定项|x ?型|^multi"),
    ("matched", r"配伍|共用(?:备选)?答案|b1? ?型|^match"),
    ("case", r"综合分析|病例|案例|共用题干|a[34](?:/a[34])? ?型|^case"),
    ("single", r"最佳|单项|单选|a[12]? ?型|^single"),
)
"""Words of a question's type, in lower case, such as HuatuoGPT-II's 最佳选择题 配伍选择题 综合分析选择题 多项选择题."""
_TYPE_KEYS = ("type", "question_type", "题型")
_QUESTION_KEYS = ("question", "问题", "题目")
_CASE_KEYS = ("case", "stem", "题干", "病例")
_GROUP_KEYS = ("group", "group_id", "case_id")
_TABLES = (".csv", ".tsv")
_YEAR = re.compile(r"(?<!\d)20\d\d(?!\d)")
_HAN = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class ExamRead:
    """What an exam's files held, in the order of files and lines."""

    name: str
    items: list[ExamItem]
    rejected: list[Rejected]


@dataclass(frozen=True)
class _Place:
    """Where a row stands."""

    name: str
    """The exam's."""
    part: Part
    line: int


def read_exam(
    path: str, *, name: str, encoding: Encoding = "auto", cop_base: int | None = None, max_chars: int = 100_000
) -> ExamRead:
    """Read an exam's file, folder, saved data set or built-in set (`exam-en`): JSONL, JSON, CSV, TSV, Parquet.

    `cop_base`: the number of MedMCQA's first option, 0 or 1; by default each file's numbers say it. Raises UserError
    where there is nothing at the path, or nothing that can be opened. Bad rows never raise.
    """
    items: list[ExamItem] = []
    rejected: list[Rejected] = []
    ids: Counter[str] = Counter()
    source = SourceConfig(name=re.sub(r"[\s/]+", "-", name) or "exam", path=path, encoding=encoding)
    for part in parts(source):
        values = list(_table_without_header(part, encoding) or part.values)
        base, why_no_base = (cop_base, "") if cop_base is not None else cop_base_of(values)
        limits = Limits(max_chars, base, why_no_base)
        for line, value in values:
            try:
                item = _item(fields_of(value), _Place(name, part, line), limits)
            except (BadRow, RecursionError) as error:
                reason = str(error) if isinstance(error, BadRow) else "nested too deeply"
                rejected.append(Rejected(part.name, line, reason))
                continue
            if ids[item.id]:  # another row has it
                item = replace(item, id=f"{item.id}@{part.stem}-{line}" if part.stem else f"{item.id}@{line}")
            ids[item.id] += 1
            items.append(item)
    return ExamRead(name, items, rejected)


def split_hash(items: Sequence[ExamItem]) -> str:
    """SHA-256 over all questions with their options and answers, in any order: equal where two people asked the same.

    Only letters and digits count (after NFKC), so that spaces, full-width forms and punctuation may differ.
    """

    def plain(text: str) -> str:
        return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text)))

    digests = sorted(
        hashlib.sha256("\n".join(map(plain, (item.question, *item.options.values(), item.answer))).encode()).hexdigest()
        for item in items
    )
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _item(row: Fields, place: _Place, limits: Limits) -> ExamItem:
    """The item that a row stands for; BadRow where it is none."""
    case, question = _case_and_question(row, limits)
    options, lettered = options_of(row, limits)
    answer = answer_of(row, options, lettered, limits)
    kind, multiple = _type(row, answer, bool(case))
    return ExamItem(
        id=_id(row, place),
        question=question if not case or case in question else f"{case}\n{question}",
        options=options,
        answer=answer,
        multiple=multiple,
        type=kind,
        exam=_named(row, ("exam",)) or place.name,
        year=_year(row, place),
        group=_group(row, kind, case, options),
        language=_language(row, question, options),
    )


def _case_and_question(row: Fields, limits: Limits) -> tuple[str, str]:
    """The case that the question is about, "" where the row holds none apart; and the question."""
    question, case = first(row, _QUESTION_KEYS), first(row, _CASE_KEYS)
    if question is None and case is not None:
        question, case = case, None
    return "" if case is None else checked("the case", case, limits), checked("question", question, limits)


def _type(row: Fields, answer: str, has_case: bool) -> tuple[Type, bool]:
    """The question's type, and whether several letters may be right."""
    given = first(row, _TYPE_KEYS)
    words = given.strip().lower() if isinstance(given, str) else ""
    kind = next((kind for kind, pattern in _TYPES if re.search(pattern, words)), None)
    multiple = kind == "multiple" or row.get("multiple") in (True, "true", "True")
    if len(answer) > 1 and not multiple:
        if kind is not None or "multiple" in row:
            raise BadRow(f"answer {answer} has several letters, but the question is a {kind or 'single'} one")
        multiple = True  # nothing says otherwise
    return kind or ("case" if has_case else "multiple" if multiple else "single"), multiple


def _group(row: Fields, kind: Type, case: str, options: Mapping[str, str]) -> str | None:
    """The row's own group; else that of the same case, or of the same options of matched questions."""
    named = _named(row, _GROUP_KEYS)
    if named is not None or not (case or kind == "matched"):
        return named
    return _digest(case) if case else _digest(*options.values())


def _year(row: Fields, place: _Place) -> str:
    given = [row.get("year"), row.get("exam"), Path(place.part.name).name, place.name]
    found = (_YEAR.search(str(one)[:200]) for one in given if isinstance(one, str | int))
    return next((match.group() for match in found if match), "")


def _language(row: Fields, question: str, options: Mapping[str, str]) -> Literal["en", "zh"]:
    """As the row says; else Chinese where a tenth of the letters or more are."""
    given = row.get("language")
    if isinstance(given, str) and given in ("en", "zh"):
        return "zh" if given == "zh" else "en"
    text = " ".join((question, *options.values()))
    return "zh" if 10 * len(_HAN.findall(text)) >= sum(map(str.isalpha, text)) > 0 else "en"


def _id(row: Fields, place: _Place) -> str:
    """The row's own id; a bare number, which other files have as well, with the exam's name and the file's."""
    given = row.get("id")
    given = str(given) if isinstance(given, int) and not isinstance(given, bool) and abs(given) < 10**18 else given
    usable = isinstance(given, str) and why_not_text("id", given) is None and len(given) <= 200
    if usable and not str(given).isdigit():
        return str(given)
    return "-".join(text for text in (place.name, place.part.stem, str(given) if usable else str(place.line)) if text)


def _named(row: Fields, keys: Sequence[str]) -> str | None:
    """A short text or number under one of the keys."""
    given = first(row, keys)
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)[:100]
    usable = isinstance(given, str) and why_not_text("id", given) is None and len(given) <= 200
    return str(given).strip() if usable else None


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _table_without_header(part: Part, encoding: Encoding) -> Values | None:
    """Rows of a table whose first row is a question already (MMLU): question, options, letter. None where it isn't."""
    path = part.path
    if path is None or (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower() not in _TABLES:
        return None
    try:
        raw, found = read_text(path, encoding)
    except (OSError, EOFError, zlib.error):
        return None  # which the reader of files reports
    text = decode(raw, found)
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    begin = next(rows, [])
    is_question = len(begin) >= 4 and re.fullmatch("[A-J]", begin[-1].strip()) and len(set(begin) & set(LETTERS)) < 2
    return _rows_of_cells(begin, rows, found) if is_question else None


def _rows_of_cells(begin: list[str], rows: Any, encoding: str) -> Values:
    """(line where it begins, row) of a table's first row and all others."""
    columns = ("question", *LETTERS[: len(begin) - 2], "answer")
    line = 1
    cells: list[str] | None = begin
    while cells is not None:
        reason = next((bad for cell in cells if (bad := why_not_decoded(cell, encoding))), None)
        if len(cells) != len(columns):
            reason = f"the row has {len(cells)} cells, the first one {len(columns)}"
        if any(cells):
            yield line, BadLine(reason) if reason else dict(zip(columns, cells, strict=True))
        line = rows.line_num + 1
        cells = next(rows, None)
