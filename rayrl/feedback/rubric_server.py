"""The shipped rules behind an OpenAI-compatible HTTP endpoint: a judge for those without a key.

It reads the case and the answers from the prompt's text, as any judge would, and knows nothing else: what the doctor's
answer asks for is what is missing. It measures form and questions, not medicine; it is there to try the whole loop and
costs nothing. The HTTP part is judge/local_server.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rayrl.config.judge import LOCAL_RUBRIC, JudgeConfig
from rayrl.judge.local_server import local_endpoint
from rayrl.judge.prompts import (
    ANSWER,
    ANSWER_A,
    ANSWER_B,
    CASE,
    CONSULTATION_A,
    CONSULTATION_B,
    DIAGNOSIS,
    PATIENT_TURN,
    QUESTION,
    REFERENCE,
    fenced_texts,
)
from rayrl.rewards.question_patterns import ITEMS
from rayrl.rewards.questions import clarifying_question, items_asked, questions_to_patient
from rayrl.rewards.rules import language_match, length_window, presentation, reference_overlap, repetition
from rayrl.rewards.text import units
from rayrl.types import Message, PromptRow

_CRITERION = re.compile(r"^- ([\w -]+): ", re.MULTILINE)
_SPEAKER = r"(?:^|\n\n)(Patient|Doctor|患者|医生)[:：]"
_TURN = re.compile(_SPEAKER + rf"\s?(.*?)(?={_SPEAKER.replace('(Patient', '(?:Patient')}|\Z)", re.DOTALL)
_DOCTORS = ("Doctor", "医生")
_SCALE = re.compile(r"from (\d+) \(very poor\) to (\d+)|(\d+)分最差，(\d+)分最好")
_OVERLAP_OF_A_GOOD_ANSWER = 0.5
"""ROUGE-L of two good answers to one case; more says little."""


@contextmanager
def served(config: JudgeConfig) -> Iterator[JudgeConfig]:
    """The configuration with a real endpoint: starts the local rubric's server for the block where it is named."""
    if config.endpoint != LOCAL_RUBRIC:
        yield config
        return
    with local_endpoint(judge_prompt, LOCAL_RUBRIC) as url:
        yield config.model_copy(update={"endpoint": url})


def judge_prompt(messages: Sequence[Message]) -> str:
    """The reply to a prompt of rayrl/judge/prompts.py, as JSON. Raises ValueError where it is none."""
    content = messages[-1]["content"] if messages else ""
    texts = fenced_texts(content)
    labels = [label for label, _ in texts]
    answers = [(label, text) for label, text in texts if label in (ANSWER, ANSWER_A, ANSWER_B)]
    task = content[content.rfind(">>>") :]
    criteria, scale = _CRITERION.findall(task), _SCALE.search(task)
    if CASE in labels and criteria and scale:
        return json.dumps(_consultations(texts, criteria, *(int(number) for number in scale.groups() if number)))
    if QUESTION not in labels or not answers or not criteria or not scale:
        raise ValueError("the prompt holds no question, no answer, or behind them no criteria or no scale")
    low, high = (int(number) for number in scale.groups() if number)
    prompt = _prompt_row(texts)
    if [label for label, _ in answers] == [ANSWER]:
        return json.dumps(_scores(prompt, answers[0][1], criteria, low, high))
    sides = {ANSWER_A: "A", ANSWER_B: "B"}
    return json.dumps({sides[label]: _scores(prompt, text, criteria, low, high) for label, text in answers})


def _consultations(
    texts: Sequence[tuple[str, str]], criteria: Sequence[str], low: int, high: int
) -> dict[str, dict[str, float]]:
    """Points of both consultations for what the doctor says: does it ask, name the diagnosis, read well?"""
    said = dict(texts)
    points = {}
    for side, label in (("A", CONSULTATION_A), ("B", CONSULTATION_B)):
        turns = [found[2].strip() for found in _TURN.finditer(said[label]) if found[1] in _DOCTORS]
        values = _of_turns(turns, said[CASE], said.get(DIAGNOSIS, ""))
        overall = sum(values.values()) / len(values)
        points[side] = {name: round(low + (high - low) * values.get(name, overall), 1) for name in criteria}
    return points


def _of_turns(turns: Sequence[str], case: str, diagnosis: str) -> Mapping[str, float]:
    """In [0, 1]; a doctor who says nothing has nothing."""
    if not turns:
        return {"inquiry": 0.0, "fluency": 0.0}
    row = PromptRow("case", [Message(role="user", content=case)], None)
    asking = sum(bool(questions_to_patient(turn, case)) for turn in turns) / len(turns)
    reads = [presentation(row, turn) * repetition(row, turn) * language_match(row, turn) for turn in turns]
    named, whole = set(units(" ".join(turns))), set(units(diagnosis))
    values = {"inquiry": min(1.0, 2 * asking), "fluency": sum(reads) / len(reads)}
    if whole:
        values["diagnosis"] = values["accuracy"] = min(1.0, 2 * len(named & whole) / len(whole))
    return values


def _prompt_row(texts: Sequence[tuple[str, str]]) -> PromptRow:
    """The case; `missing_info` is what the doctor asked for."""
    turns = [Message(role="user", content=text) for label, text in texts if label in (PATIENT_TURN, QUESTION)]
    reference = next((text for label, text in texts if label == REFERENCE), None)
    questions = questions_to_patient(reference or "")
    missing = sorted(items_asked(questions, list(ITEMS))) or (["other"] if questions else [])
    return PromptRow("prompt", turns, reference, {"missing_info": missing})


def _scores(prompt: PromptRow, answer: str, criteria: Sequence[str], low: int, high: int) -> dict[str, float]:
    """Points from `low` to `high`, with one decimal."""
    values = _rules(prompt, answer)
    overall = sum(values.values()) / len(values)
    return {name: round(low + (high - low) * values.get(name, overall), 1) for name in criteria}


def _rules(prompt: PromptRow, answer: str) -> Mapping[str, float]:
    """What the rules say of the built-in criteria, in [0, 1]; nothing is good in the wrong language."""
    asks = clarifying_question(prompt, answer) if prompt.reference else presentation(prompt, answer)
    same = min(1.0, reference_overlap(prompt, answer) / _OVERLAP_OF_A_GOOD_ANSWER) if prompt.reference else asks
    fresh = repetition(prompt, answer)
    full = min(1.0, len(set(units(answer))) / 40)
    values = {
        "accuracy": 0.5 * asks + 0.5 * same,
        "informativeness": fresh * (0.5 * full + 0.5 * same),
        "conciseness": fresh * length_window(prompt, answer, min_units=5, max_units=120, slack=60),
        "similarity": same,
        "inquiry": asks,
        "fluency": presentation(prompt, answer) * fresh,
    }
    language = language_match(prompt, answer)
    return {name: language * value for name, value in values.items()}
