"""Does an answer ask the patient for what is missing? The reward `clarifying_question` and the metric `asks_question`.

A question counts only if a patient could answer it with something about the case: a sentence of a few words that
ends in a question mark, has an interrogative form and is put to the patient. Bare question marks, headings ("What is
asthma?"), offers of help, the patient's own words handed back and the patient's voice don't count. These are the
cheap ways to a "?" that a policy finds first. Pattern tables are in question_patterns.py.

The behaviour rewarded is what HuatuoGPT asks of a doctor (ask when the complaint is too thin for a diagnosis) and
Zhongjing calls initiative. Left out: judging whether a question is clever; that is for a reward model or a judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rayrl.rewards import question_patterns as patterns
from rayrl.rewards.text import CLOSERS, is_chinese, ngram_counts, sentences, units
from rayrl.types import PromptRow

_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|「[^」\n]*」|^[ \t]*>.*$", re.MULTILINE)
_PATIENT_LINE = re.compile(r"^\W*(?:user|patient|human|用户|病人|患者)\W*[:：]", re.IGNORECASE)
_OPENING = re.compile(r"^[\W\d]*(?:(?:doctor|assistant|医生)\W{0,3}[:：]\W*)?", re.IGNORECASE)
_ECHO_SHARE = 0.6


def asks_question(text: str, patient: str = "") -> bool:
    """Whether the text puts at least one real question to the patient; `patient`: the patient's own words, if known."""
    return bool(questions_to_patient(text, patient))


def questions_to_patient(text: str, patient: str = "") -> list[str]:
    """The sentences that put a real question to the patient, in order."""
    patient_grams = ngram_counts(units(patient), 3)
    return [
        sentence
        for sentence in _question_sentences(text)
        if _is_put_to_patient(sentence) and not _is_echo(sentence, patient_grams)
    ]


def items_asked(questions: Sequence[str], items: Sequence[str]) -> set[str]:
    """Which of the items the questions ask about, by the words of `question_patterns.ITEMS` in both languages.

    An item outside that table is matched by its own words: any of its Latin words of four letters or more, or any two
    neighbouring Chinese characters of it.
    """
    return {item for item in items if any(_mentions(question, item) for question in questions)}


def clarifying_question(
    prompt: PromptRow, response: str, *, max_questions: int = 3, any_question: float = 0.65, needless: float = 0.0
) -> float:
    """In [`needless`, 1]: asks the patient where something is missing, and doesn't where nothing is.

    With `prompt.fields["missing_info"]` empty: 1 without a question, `needless` (0 or below) with one. With items in
    it: 0 without a real question, `any_question` with one, 1 where a question asks about an item. More than
    `max_questions` question marks (neighbours count once) score 0: an interrogation is no consultation. An answer
    without words scores 0.

    Raises ValueError where the row doesn't say what is missing, or an option is out of its range.
    """
    if max_questions < 1 or not 0 <= any_question <= 1 or not -math.inf < needless <= 0:
        raise ValueError(
            "clarifying_question: max_questions must be at least 1, any_question in [0, 1] and needless at most 0, "
            f"got {max_questions}, {any_question} and {needless}"
        )
    missing = _missing_info(prompt)
    if not units(response):
        return 0.0
    patient = "\n".join(message["content"] for message in prompt.messages if message["role"] == "user")
    questions = questions_to_patient(response, patient)
    if not missing:
        return needless if questions else 1.0
    if not questions or len(re.findall(r"[?？][?？!！\s]*", response)) > max_questions:
        return 0.0
    return 1.0 if items_asked(questions, missing) else any_question


def _missing_info(prompt: PromptRow) -> list[str]:
    value = prompt.fields.get("missing_info")
    if value is None or isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ValueError(
            f"prompt {prompt.id!r}: the rule clarifying_question needs fields.missing_info, a list of strings "
            f"(empty where nothing is missing), got {value!r}"
        )
    return list(value)


def _question_sentences(text: str) -> list[str]:
    spoken = [line for line in _QUOTED.sub(" ", text).split("\n") if not _PATIENT_LINE.match(line)]
    marks = ("?", "？", "吗", "吗。")
    return [s for s in sentences("\n".join(spoken)) if s.rstrip(CLOSERS + "!！").endswith(marks)]


def _is_put_to_patient(sentence: str) -> bool:
    words = units(sentence)
    if is_chinese(sentence):
        return 4 <= len(words) <= 60 and len(set(words)) >= 4 and _is_real_chinese(sentence)
    plain = " ".join(_OPENING.sub("", sentence).replace("’", "'").lower().split())
    return 3 <= len(words) <= 40 and len(set(words)) >= 3 and _is_real_english(plain)


def _is_real_english(plain: str) -> bool:
    if patterns.EN_NOT_ABOUT_THE_CASE.search(plain):
        return False
    if patterns.EN_FIRST_PERSON.search(patterns.EN_DOCTOR_SPEAKS.sub("", plain)):
        return False
    if patterns.EN_SECOND_PERSON.search(plain):
        return bool(patterns.EN_INTERROGATIVE.search(plain))
    return bool(patterns.EN_ABOUT_SYMPTOM.search(plain))


def _is_real_chinese(sentence: str) -> bool:
    if patterns.ZH_NOT_ABOUT_THE_CASE.search(sentence) or "我" in patterns.ZH_DOCTOR_SPEAKS.sub("", sentence):
        return False
    return bool(patterns.ZH_INTERROGATIVE.search(sentence) and patterns.ZH_ABOUT_PATIENT.search(sentence))


def _is_echo(sentence: str, patient_grams: dict[tuple[str, ...], int]) -> bool:
    grams = ngram_counts(units(sentence), 3)
    shared = sum(count for gram, count in grams.items() if gram in patient_grams)
    return shared >= _ECHO_SHARE * grams.total()


def _mentions(question: str, item: str) -> bool:
    key = item.strip().lower().replace(" ", "_").replace("-", "_")
    if key in patterns.ITEMS:
        return bool(patterns.ITEMS[key].search(question))
    words = [unit for unit in units(item) if len(unit) >= 4]
    if words:
        return any(unit in words for unit in units(question))
    return any(item[start : start + 2] in question for start in range(max(1, len(item) - 1)))
