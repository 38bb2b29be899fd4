"""What can be counted of a consultation: does the doctor ask, does it name the diagnosis, who tells what of the case?

HuatuoGPT wants a doctor that asks before it decides, and a patient that tells its case bit by bit. These are plain
counts over texts, to be read beside a judge's verdicts and never instead of them: naming the diagnosis among ten others
counts as naming it, and facts are told apart by the characters and words that they share with what was said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rayrl.evaluation.consultations.cases import Case, case_facts
from rayrl.evaluation.consultations.diagnosis_names import comparable, diagnosis_names, is_named
from rayrl.evaluation.consultations.dialogue import Dialogue
from rayrl.rewards.questions import asks_question
from rayrl.rewards.text import CLOSERS, ngram_counts, sentences, units

_SAID = 0.5
"""The share of a fact's n-grams from which on a text says it."""
_EMPTY_WORDS = (
    " a about after all also am an and any are as at be been but by can do does for from get got had has have he her "
    "him his i i've i'm if in into is it it's its just me my no not of on or our she so some than that the their them "
    "there they this to up was we were what when which who will with would you your "
)


@dataclass(frozen=True)
class Leaks:
    """Shares of the case's facts, each in [0, 1]. Example: Leaks(told_at_first=0.25, told=0.75, doctor_ahead=0.0)"""

    told_at_first: float
    """What the patient's first message says."""
    told: float
    """What the patient says in any one message."""
    doctor_ahead: float
    """What the doctor states, not asks, before the patient has said it: a doctor that never saw the case hits upon few.

    Compare it with that of dialogues whose doctor surely saw nothing: advice in general terms shares words too.
    """


@dataclass(frozen=True)
class Measures:
    """One consultation, counted. None where there is nothing to count."""

    rounds: int
    """The doctor's turns."""
    questions_asked: float | None
    """Share of the doctor's turns that put a real question to the patient."""
    doctor_units: float | None
    """Mean length of the doctor's turns, in words and Chinese characters."""
    patient_units: float | None
    diagnosis_named: bool | None
    diagnosis_found: bool | None
    """The same where the case itself doesn't name it: patients often write what they were told before."""
    told_at_first: float | None
    told: float | None
    doctor_ahead: float | None


def measure(dialogue: Dialogue, case: Case) -> Measures:
    """All measures of one dialogue."""
    doctor, leaks = _texts(dialogue, "assistant"), information_leaked(dialogue, case)
    named = diagnosis_named(dialogue, case)
    return Measures(
        rounds=len(doctor),
        questions_asked=questions_asked(dialogue),
        doctor_units=_mean(len(units(text)) for text in doctor),
        patient_units=_mean(len(units(text)) for text in _texts(dialogue, "user")),
        diagnosis_named=named,
        diagnosis_found=None if _names(case, [case.case]) else named,
        told_at_first=leaks.told_at_first if leaks else None,
        told=leaks.told if leaks else None,
        doctor_ahead=leaks.doctor_ahead if leaks else None,
    )


def questions_asked(dialogue: Dialogue) -> float | None:
    """Share of the doctor's turns that ask the patient something; None where the doctor said nothing."""
    asked, patient = [], ""
    for message in dialogue.messages:
        if message["role"] == "assistant":
            asked.append(asks_question(message["content"], patient))
        elif message["role"] == "user":
            patient += "\n" + message["content"]
    return _mean(map(float, asked))


def diagnosis_named(dialogue: Dialogue, case: Case) -> bool | None:
    """Whether the doctor names the case's diagnosis, be it among others, other than in a question.

    By the rule of diagnosis_names.py; None where the case has no diagnosis, or one that names nothing.
    """
    return _names(case, [_stated(text) for text in _texts(dialogue, "assistant")])


def _names(case: Case, texts: Sequence[str]) -> bool | None:
    names = diagnosis_names(case.diagnosis or "", case.language)
    if not names:
        return None
    said = [comparable(text) for text in texts]
    return any(is_named(name, text) for name in names for text in said)


def information_leaked(dialogue: Dialogue, case: Case) -> Leaks | None:
    """Who tells what of the case, and when; None where the case holds no fact.

    A message says a fact that shares half of its n-grams with it: pairs of characters in Chinese, words in English but
    for those that carry no content. The doctor says one only within one sentence, since its turns are long.
    """
    facts = [grams for fact in case_facts(case) if (grams := content(fact, case.language))]
    if not facts:
        return None
    patient = [content(text, case.language) for text in _texts(dialogue, "user")]
    told = [next((turn for turn, said in enumerate(patient) if _says(said, fact)), None) for fact in facts]
    ahead = set()
    turn = 0
    for message in dialogue.messages:
        turn += message["role"] == "user"
        if message["role"] != "assistant":
            continue
        stated = [content(sentence, case.language) for sentence in sentences(_stated(message["content"]))]
        for number, (fact, when) in enumerate(zip(facts, told, strict=True)):
            if (when is None or when >= turn) and any(_says(sentence, fact) for sentence in stated):
                ahead.add(number)
    count = len(facts)
    return Leaks(
        told_at_first=sum(when == 0 for when in told) / count,
        told=sum(when is not None for when in told) / count,
        doctor_ahead=len(ahead) / count,
    )


def content(text: str, language: str) -> frozenset[tuple[str, ...]]:
    """What a text says, as n-grams: pairs of characters in Chinese, single words with content in English."""
    if language == "zh":
        found = units(text)
        return frozenset(ngram_counts(found, min(2, len(found)))) if found else frozenset()
    return frozenset((word,) for word in units(text) if f" {word} " not in _EMPTY_WORDS)


def _says(said: frozenset[tuple[str, ...]], fact: frozenset[tuple[str, ...]]) -> bool:
    return len(said & fact) >= _SAID * len(fact)


def _stated(text: str) -> str:
    """A text without its questions."""
    marks = ("?", "？", "吗")
    return "\n".join(part for part in sentences(text) if not part.rstrip(CLOSERS + "!！").endswith(marks))


def _texts(dialogue: Dialogue, role: str) -> list[str]:
    return [message["content"] for message in dialogue.messages if message["role"] == role]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
