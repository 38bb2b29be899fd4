"""A patient made of rules behind an OpenAI-compatible HTTP endpoint: consultations without a key or another model.

It reads its case from the fenced text of dialogue.py's prompt, as a model would, and knows nothing else. It begins
with the case's first sentence; asked something, it answers with the sentence, not yet said, that has most to do with
the question, or says that it doesn't know; when it has told everything, or wasn't asked for the second time, it thanks
the doctor and says goodbye. The same talk always gets the same answer. It is there to try evaluation and for tests: it
understands words, not medicine. Left out: what judge/local_server.py leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rayrl.evaluation.consultations.cases import Language, case_sentences
from rayrl.evaluation.consultations.dialogue import CASE
from rayrl.evaluation.consultations.measures import content
from rayrl.judge.local_server import local_endpoint
from rayrl.judge.prompts import fenced_texts
from rayrl.rewards.question_patterns import ITEMS
from rayrl.rewards.questions import items_asked, questions_to_patient
from rayrl.rewards.text import is_chinese
from rayrl.types import Message

_SAYS = {
    "en": {
        "unknown": "I don't know, I haven't noticed.",
        "next": "Thank you. What should I do now?",
        "bye": "Thank you, doctor. Goodbye.",
    },
    "zh": {
        "unknown": "这个我不清楚，没注意过。",
        "next": "谢谢医生，那我现在该怎么办？",
        "bye": "好的，谢谢医生，再见。",
    },
}
_ANSWERS = {
    "duration": re.compile(
        r"\b(?:for|since|ago|yesterday|last (?:night|week|month|year))\b.*|\d+ (?:hours|days|weeks|months|years)"
        r"|[\d一二两三四五六七八九十半几]+(?:多)?个?(?:小时|天|周|星期|月|年)|昨[天晚]|前天|上[周月]|从.{1,6}开始",
        re.IGNORECASE,
    ),
    "age": re.compile(r"\b\d+[- ]years?[- ]old\b|\bI am (?:a |an )?\d+|\d+岁|[一二三四五六七八九十]+岁", re.IGNORECASE),
    "family_history": re.compile(
        r"\b(?:mother|father|parents?|brother|sister|aunt|uncle|grand\w+|family)\b|[妈爸爷奶姐妹哥弟叔舅姨姑]|父亲|母亲|家里",
        re.IGNORECASE,
    ),
    "triggers": re.compile(
        r"\b(?:sets?|brings?) (?:it|them)\b|\bworse\b|\bbetter\b|的时候|更|会引起|犯", re.IGNORECASE
    ),
    "readings": re.compile(r"\d+/\d+|\d+\.\d+"),
}
"""How answers to these items sound where they don't repeat the question's words (those that do: ITEMS)."""


@contextmanager
def served_patient() -> Iterator[str]:
    """The base URL (http://127.0.0.1:PORT/v1) at which the patient answers for the block; any model name will do."""
    with local_endpoint(patient_reply, "local-patient") as url:
        yield url


def patient_reply(messages: Sequence[Message]) -> str:
    """The patient's next turn after messages as `consultation.patient_messages` makes them.

    Raises ValueError where there is no case among them.
    """
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    case = next((text for label, text in fenced_texts(system) if label == CASE), "")
    facts = case_sentences(case)
    if not facts:
        raise ValueError("the system message holds no case between its markers")
    language: Language = "zh" if is_chinese(case) else "en"
    own = [message["content"] for message in messages if message["role"] == "assistant"]
    if not own:
        return facts[0]
    doctor = [message["content"] for message in messages if message["role"] == "user"][1:]  # the greeting comes first
    asked = [questions_to_patient(text, case) for text in doctor]
    left = [fact for fact in facts if fact not in own]
    if not left or sum(not questions for questions in asked) >= 2:
        return _SAYS[language]["bye"]
    if not asked or not asked[-1]:
        return _SAYS[language]["next"]
    question = "\n".join(asked[-1])
    best = max(left, key=lambda fact: _closeness(question, fact, language))
    return best if _closeness(question, best, language) > 0 else _SAYS[language]["unknown"]


def _closeness(question: str, fact: str, language: Language) -> float:
    """How much a fact has to do with a question: what both speak of, then the share of words in common."""
    items = items_asked([question], list(ITEMS))
    shared = {item for item in items if item in items_asked([fact], [item]) or _answers(item, fact)}
    words, asked = content(fact, language), content(question, language)
    return len(shared) + len(words & asked) / max(1, len(words))


def _answers(item: str, fact: str) -> bool:
    return item in _ANSWERS and _ANSWERS[item].search(fact) is not None
