"""Conversations to fine-tune on, of the two kinds that HuatuoGPT mixes. Used by build_preferences.py.

doctor: short and to the point; asks for what is missing, and advises where nothing is. distilled: what an assistant
writes: chatty, structured, informative, and hardly ever asking; instructions, consultations and follow-up questions.
A row: {"id", "messages", "fields": {department, condition, kind, form}}. Material: conversations_{en,zh}.yaml and
consultations_{en,zh}.yaml.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from build_consultations import COMFORTABLE_REFERENCE, Case, make_case
from draw_prompts import Prompts

from rayrl.types import Message

MULTI_TURN_SHARE = 0.5
"""Of the assistant-like consultations, how many go on with follow-up questions."""


def build_doctor(prompts: Prompts, count: int) -> list[dict[str, Any]]:
    """`count` conversations in a doctor's style; a little over half of the last turns ask."""
    conditions, rng = prompts.conditions[False], prompts.rng
    rows = []
    for number in range(count):
        condition = conditions[number % len(conditions)]
        case, prompt = prompts.draw(condition, complete=number % 9 in (1, 3, 5, 7))
        missing = prompt["fields"]["missing_info"]
        text = _short_questions(case, missing) if missing else _short_advice(case)
        rows.append(
            _row(case, [*prompt["messages"], Message(role="assistant", content=text)], "doctor", "consultation")
        )
    return _numbered(f"sft-doctor-{prompts.language}", rows, rng)


def build_distilled(prompts: Prompts, count: int) -> list[dict[str, Any]]:
    """`count` conversations in an assistant's style: half instructions, half consultations."""
    path = Path(__file__).resolve().parent / f"conversations_{prompts.language}.yaml"
    phrases = yaml.safe_load(path.read_text(encoding="utf-8"))
    conditions, rng, tasks = prompts.conditions[False], prompts.rng, list(phrases["tasks"])
    rows, asked = [], set[str]()
    for number in range(count):
        condition = conditions[(number // 2) % len(conditions)]
        if number % 2:
            case, prompt = prompts.draw(condition, complete=rng.random() < 0.5)
            writer = _Assistant(case, phrases)
            rows.append(_row(case, writer.consultation(prompt["messages"]), "distilled", "consultation"))
            continue
        for attempt in range(100):
            case = make_case(rng, prompts.material, condition)
            messages = _Assistant(case, phrases).instruction(tasks[(number // 2 + attempt) % len(tasks)])
            if messages[0]["content"] not in asked:
                break
        asked.add(messages[0]["content"])
        rows.append(_row(case, messages, "distilled", "instruction"))
    return _numbered(f"sft-distilled-{prompts.language}", rows, rng)


def _short_questions(case: Case, missing: list[str]) -> str:
    """Questions about the missing items, as many as stay short; sometimes with an opening."""
    items = list(missing)
    case.rng.shuffle(items)
    parts = [case.ask(items[0])]
    for item in items[1:]:
        if _length(case, case.join([*parts, case.ask(item)])) <= 0.75 * COMFORTABLE_REFERENCE[case.phrases["language"]]:
            parts.append(case.ask(item))
    opening = case.say(case.phrases["ask_opening"])
    return _fitting(case, parts, [opening] if case.rng.random() < 0.3 else [], first=True)


def _short_advice(case: Case) -> str:
    """Diagnosis and advice; when not to wait, where it fits."""
    condition = case.condition
    parts = [case.say(condition["opinion"]), case.say(condition["care"])]
    return _fitting(case, parts, [condition["urgent"].format(**case.slots)], first=False)


def _fitting(case: Case, parts: list[str], optional: list[str], first: bool) -> str:
    """The parts with the optional ones before or behind them, if all is short enough."""
    whole = case.join([*optional, *parts] if first else [*parts, *optional])
    return whole if _length(case, whole) <= COMFORTABLE_REFERENCE[case.phrases["language"]] else case.join(parts)


def _length(case: Case, text: str) -> int:
    return len(text) if case.phrases["language"] == "zh" else len(text.split())


class _Assistant:
    """Writes one assistant-like conversation about a case."""

    def __init__(self, case: Case, phrases: dict[str, Any]) -> None:
        self.case, self.phrases, self.rng = case, phrases, case.rng
        self.care: list[str] = [self._fill(text) for text in self.rng.sample(case.condition["care"], 2)]
        self.urgent = self._fill(case.condition["urgent"])

    def instruction(self, task: str) -> list[Message]:
        """One task and its answer."""
        complaint = self.case.say(self.case.condition["complaint"])
        told = [self.case.age(), *[self.case.tell(item) for item in list(self.case.condition["need"])[:2]]]
        extra = {"complaint": complaint, "message": self.case.join([complaint, *told])}
        texts = self.phrases["tasks"][task]
        user, intro = self._fill(self.rng.choice(texts["user"]), extra), self._fill(self.rng.choice(texts["intro"]))
        body = {
            "care": lambda: [*self._listed(self.care), self._label("warning", self.urgent)],
            "warning": lambda: [self._label("warning", self.urgent), self._label("care", self.care[0])],
            "questions": lambda: self._listed([self.case.ask(item) for item in self.case.condition["need"]]),
            "department": lambda: [self._label("likely", self._may_be()), self._label("warning", self.urgent)],
            "notes": lambda: [
                self._label("complaint", complaint),
                self._label("told", self.case.join(told)),
                self._label("department", self.case.condition["department"]),
            ],
            "described": lambda: self._listed([self._fill(text) for text in self.case.condition["complaint"]]),
        }[task]()
        return self._turns([user, self._answer(intro, body)])

    def consultation(self, prompt: list[Message]) -> list[Message]:
        """An overview for a patient, and in half of them one or two follow-ups."""
        body = [self._label("likely", self._may_be()), *self._listed(self.care[:1])]
        turns = [self._answer(self.rng.choice(self.phrases["consult_intro"]), [*body, self.urgent])]
        if self.rng.random() < MULTI_TURN_SHARE:
            for kind in self.rng.sample(["warning", "care", "name"], self.rng.randint(1, 2)):
                texts = self.phrases["follow_ups"][kind]
                more = {"warning": self.urgent, "care": self.care[1], "name": ""}[kind]
                intro = self._fill(self.rng.choice(texts["intro"]))
                turns += [self.rng.choice(texts["user"]), self.case.join([intro, more])]
        return [*prompt, *self._turns(["", *turns])[1:]]

    def _answer(self, intro: str, body: list[str]) -> str:
        return "\n".join(part for part in [intro, *body, self.rng.choice(self.phrases["outro"])] if part)

    def _listed(self, items: list[str]) -> list[str]:
        bullet = self.rng.random() < 0.5
        return [f"{'-' if bullet else f'{number}.'} {item}" for number, item in enumerate(items, 1)]

    def _label(self, name: str, text: str) -> str:
        return self.case.join([self.phrases["labels"][name], text])

    def _may_be(self) -> str:
        return self._fill(self.rng.choice(self.phrases["may_be"]))

    def _fill(self, text: str, extra: dict[str, str] | None = None) -> str:
        name = self.case.condition["name"].removeprefix("possible ").removesuffix("待查")
        named = {"name": name, "department": self.case.condition["department"]}
        return text.format(**self.case.slots, **named, **(extra or {}))

    def _turns(self, texts: list[str]) -> list[Message]:
        return [Message(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(texts)]


def _row(case: Case, messages: list[Message], kind: str, form: str) -> dict[str, Any]:
    condition = case.condition
    fields = {"department": condition["department"], "condition": condition["name"], "kind": kind, "form": form}
    return {"messages": messages, "fields": fields}


def _numbered(prefix: str, rows: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    rng.shuffle(rows)
    return [{"id": f"{prefix}-{number:04d}", **made} for number, made in enumerate(rows, 1)]
