"""The options and the right answer of an exam's row, in every shape that exams.py takes.

Options: a mapping from letters, a list of texts or of {key, value}, a text's lines "A xxx" (CMExam), columns A, B, C
(CMMLU, C-Eval), MedMCQA's opa to opd. The answer: letters, an option's text, the number of a list's item from 0 (MMLU),
or MedMCQA's `cop`. A reason to refuse a row quotes nothing of it. Left out: files, and what else a row says.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayrl.data.readers.rows import BadLine, BadRow, kind_of, why_not_text

LETTERS = "ABCDEFGHIJ"
OPTIONS = ("options", "option", "choices", "选项")
ANSWERS = ("answer", "answers", "answerkey", "答案")
MEDMCQA = ("opa", "opb", "opc", "opd", "ope")
_OPTION_LINE = re.compile(r"\s*([A-J])(?:\s*[.、:)]\s*|\s+)(.*)")
_LETTERED = re.compile(r"[\s,、;/+&和]+|and")

Fields = Mapping[str, Any]
"""A row by its keys in lower case; nulls and empty texts are left out."""


@dataclass(frozen=True)
class Limits:
    """What a file's rows are read with."""

    max_chars: int
    cop_base: int | None
    """The number of MedMCQA's first option."""
    why_no_base: str = ""


def fields_of(value: Any) -> Fields:
    """The row that a decoded value stands for; BadRow where it is none."""
    if isinstance(value, BadLine):
        raise BadRow(str(value))
    if not isinstance(value, Mapping):
        raise BadRow(f"the row is {kind_of(value)}, expected a mapping")
    return {str(key).strip().lower(): item for key, item in value.items() if not _is_empty(item)}


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, also as pandas writes it, or an empty text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def first(row: Fields, names: Sequence[str]) -> Any:
    """What the row has under the first of these keys that it has, or None."""
    return next((row[name] for name in names if name in row), None)


def checked(name: str, value: Any, limits: Limits) -> str:
    """`value` without space around it, or BadRow where it isn't a text of permitted length. Numbers are texts too."""
    if _is_empty(value):
        raise BadRow(f"no {name}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:.15g}" if isinstance(value, float) else str(value)[:100]
    reason = why_not_text(name, value)
    if reason is None and len(value) > limits.max_chars:
        reason = f"{name} has {len(value)} characters, more than max_chars, {limits.max_chars}"
    if reason is not None:
        raise BadRow(reason)
    return str(value).strip()


def options_of(row: Fields, limits: Limits) -> tuple[dict[str, str], bool]:
    """Letter -> text, and whether the row itself has letters (else a list, whose items have numbers)."""
    given = first(row, OPTIONS)
    lettered = not isinstance(given, list) or any(isinstance(one, Mapping) for one in given)
    if given is not None:
        pairs = _pairs(given)
    elif "opa" in row:
        pairs = [(LETTERS[number], row.get(key)) for number, key in enumerate(MEDMCQA)]
    else:
        pairs = [(letter, row.get(letter.lower())) for letter in LETTERS]
    while pairs and _is_empty(pairs[-1][1]):
        pairs.pop()  # options that a row hasn't, in a table that has them
    if len(pairs) < 2:
        raise BadRow("no options: expected two or more, under a key like 'options', or in columns A, B, C")
    letters = "".join(letter for letter, _ in pairs)
    if letters != LETTERS[: len(pairs)]:
        raise BadRow("the options' letters aren't A, B, C ... without a gap, J at most")
    options = {letter: checked(f"option {letter}", text, limits) for letter, text in pairs}
    if all(re.match(rf"{letter}\s*[.、:：．)]\s*\S", text) for letter, text in options.items()):
        options = {letter: re.sub(r"^.\s*[.、:：．)]\s*", "", text) for letter, text in options.items()}
    seen: dict[str, str] = {}
    for letter, text in options.items():
        other = seen.setdefault(" ".join(text.split()), letter)
        if other != letter:
            raise BadRow(f"options {other} and {letter} are the same")
    return options, lettered


def _pairs(given: Any) -> list[tuple[str, Any]]:
    """(letter, text) of options as a mapping, a list of texts or of mappings, or a text's lines; in letters' order."""
    if isinstance(given, str):
        given = _lines_or_json(given)
    if isinstance(given, Mapping) and isinstance(given.get("text"), list) and isinstance(given.get("label"), list):
        given = dict(zip(map(str, given["label"]), given["text"], strict=False))
    if isinstance(given, list) and given and all(isinstance(one, Mapping) for one in given):
        named = [(first(one, ("key", "label")), first(one, ("value", "text"))) for one in given]
    elif isinstance(given, list):
        return [(LETTERS[number] if number < len(LETTERS) else "?", text) for number, text in enumerate(given)]
    elif isinstance(given, Mapping):
        named = list(given.items())
    else:
        raise BadRow(f"options are {kind_of(given)}, expected a mapping or a list")
    pairs = [(unicodedata.normalize("NFKC", str(key)[:4]).strip(" .:、)(").upper(), text) for key, text in named]
    return sorted(pairs, key=lambda pair: pair[0])


def _lines_or_json(text: str) -> Any:
    """Options in one text: JSON, or lines "A xxx", of which one without a letter continues the one before."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise BadRow("options are text that isn't JSON") from None
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _OPTION_LINE.match(unicodedata.normalize("NFKC", line[:8]) + line[8:])
        if match and match[1] == LETTERS[len(found) : len(found) + 1]:
            found[match[1]] = match[2]
        elif line.strip() and not found:
            raise BadRow("options are text that doesn't begin with a line 'A ...'")
        elif line.strip():
            last = LETTERS[len(found) - 1]
            found[last] = f"{found[last]}\n{line}"
    return found


def answer_of(row: Fields, options: Mapping[str, str], lettered: bool, limits: Limits) -> str:
    """The right letters, ascending."""
    if "cop" in row:
        return _numbered(row["cop"], limits, options)
    given, index = first(row, ANSWERS), row.get("answer_idx")
    if given is None and index is None:
        cmb = {"exam_type", "exam_class"} & set(row)
        hint = ": answers of CMB's test set lie in another file, join them first" if cmb else ""
        raise BadRow(f"no answer{hint}")
    if index is not None:
        letters = _letters_of(index, options)
        if isinstance(given, str) and given.strip() in options.values() and options.get(letters) != given.strip():
            raise BadRow("answer and answer_idx disagree")
        return letters
    if isinstance(given, int) and not isinstance(given, bool) and not lettered:
        if not 0 <= given < len(options):
            raise BadRow(f"answer is no number of an option, 0 to {len(options) - 1}")
        return LETTERS[given]
    return _letters_of(given, options)


def _letters_of(given: Any, options: Mapping[str, str]) -> str:
    """Letters as "ACD", "A, C" or a list, or an option's text."""
    if isinstance(given, list) and given and all(isinstance(one, str) for one in given):
        given = given[0] if len(given) == 1 else ",".join(given)
    if not isinstance(given, str):
        raise BadRow(f"answer is {kind_of(given)}, expected letters or an option's text")
    plain = unicodedata.normalize("NFKC", given.strip()[:200]).strip(" .。()")
    letters = "".join(_LETTERED.split(plain))
    as_text = next((letter for letter, text in options.items() if text == given.strip()), None)
    if len(letters) == 1:
        letters = letters.upper()
    chosen = "".join(sorted(letters))
    are_letters = re.fullmatch("[A-Z]{1,10}", letters) is not None and len(set(letters)) == len(letters)
    if are_letters and all(letter in options for letter in chosen):
        if as_text is not None and len(chosen) > 1:
            raise BadRow("answer may be letters or an option's text")
        return chosen
    if as_text is not None:
        return as_text
    if are_letters:
        raise BadRow(f"answer {chosen} isn't among the options A to {max(options)}")
    raise BadRow("answer is neither letters nor an option's text")


def _numbered(given: Any, limits: Limits, options: Mapping[str, str]) -> str:
    """MedMCQA's `cop`, the number of the right option."""
    number = _whole_number(given)
    if number is None:
        raise BadRow(f"cop is {kind_of(given)}, expected an option's number")
    if number < 0:
        raise BadRow("no answer: cop is below 0, as in MedMCQA's test set")
    if limits.cop_base is None:
        raise BadRow(limits.why_no_base)
    place = number - limits.cop_base
    if not 0 <= place < len(options):
        raise BadRow(f"cop is no number of an option, counted from {limits.cop_base}")
    return LETTERS[place]


def cop_base_of(values: Sequence[tuple[int, Any]]) -> tuple[int | None, str]:
    """What MedMCQA's numbers begin with in a file (copies differ: 0 or 1), or why that can't be told."""
    numbers = {_whole_number(row["cop"]) for _, row in values if isinstance(row, Mapping) and "cop" in row}
    if 0 in numbers and 4 in numbers:
        return None, "the file's cop are 0 to 4: whether they count from 0 or from 1 can't be told"
    if 0 in numbers or 4 in numbers:
        return (0, "") if 0 in numbers else (1, "")
    return None, "no cop of the file is 0 or 4: whether they count from 0 or from 1 can't be told; say it (cop_base)"


def _whole_number(given: Any) -> int | None:
    if isinstance(given, str) and re.fullmatch(r"\s*-?\d{1,3}(?:\.0)?\s*", given):
        given = float(given)
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    return given if isinstance(given, int) and not isinstance(given, bool) else None
