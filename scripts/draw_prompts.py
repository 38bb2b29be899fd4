"""New prompts of consultations for the preference and fine-tuning sets, each once, and who answers them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from build_consultations import LONGEST_PROMPT, Case, complete_row, incomplete_row, make_case
from compose_answers import Composer

from rayrl.data.split import conversation_key
from rayrl.types import PromptRow

PROMPT_KINDS = (3, 3, 1, 3)
"""How often which of the four kinds of consultation prompt; the third carries long small talk."""


@dataclass
class Prompts:
    """Draws prompts, each once."""

    language: str
    material: dict[str, Any]
    answers: dict[str, Any]
    rng: random.Random
    taken: set[str]
    """Conversation keys that are used up, those of the consultations from the start."""
    conditions: dict[bool, list[dict[str, Any]]] = field(init=False)
    """Those of the training files (False) and the unseen ones (True)."""

    def __post_init__(self) -> None:
        names, unseen = {c["name"] for c in self.material["conditions"]}, set(self.answers["unseen"])
        if unknown := (unseen | set(self.answers["immediate"])) - names:
            raise RuntimeError(f"answers_{self.language}.yaml names conditions that don't exist: {sorted(unknown)}")
        both: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for condition in self.material["conditions"]:
            both[condition["name"] in unseen].append(condition)
        self.conditions = both

    def draw(self, condition: dict[str, Any], complete: bool) -> tuple[Case, dict[str, Any]]:
        """A new prompt of the condition; RuntimeError where the material has no further one."""
        make = complete_row if complete else incomplete_row
        for _ in range(200):
            case = make_case(self.rng, self.material, condition)
            made = make(case, self.rng.choices(range(4), weights=PROMPT_KINDS)[0])
            text = case.join([message["content"] for message in made["messages"]])
            keys = prompt_keys(made["messages"])
            size = len(text) if self.language == "zh" else len(text.split())
            if size <= LONGEST_PROMPT[self.language] and not self.taken.intersection(keys):
                self.taken.update(keys)
                return case, made
        raise RuntimeError(f"{self.language}: {condition['name']!r} has too few phrases for distinct prompts")

    def composer(self, condition: dict[str, Any], complete: bool) -> tuple[Composer, dict[str, Any]]:
        """A writer of answers to a new prompt, and the prompt."""
        case, made = self.draw(condition, complete)
        known = self.conditions[False] + (self.conditions[True] if condition in self.conditions[True] else [])
        others = [other for other in known if other["department"] != condition["department"]]
        return Composer(case, made["fields"]["missing_info"], self.answers, others), made


def prompt_keys(messages: list[dict[str, str]]) -> list[str]:
    """Keys of every part of a conversation that ends with the patient's turn: each is a prompt to learn from."""
    ends = [n for n, message in enumerate(messages, 1) if message["role"] == "user"]
    return [conversation_key(PromptRow("", messages[:end])) for end in ends]  # type: ignore[arg-type]
