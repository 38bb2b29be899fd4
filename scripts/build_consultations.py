"""Build the project's consultation prompts, rayrl/assets/consultations_{en,zh}.jsonl, from consultations_{en,zh}.yaml.

    python scripts/build_consultations.py [--output DIR]

For each condition four complete prompts (the patient tells all that a doctor must know for it, with age, health and
mostly allergies; the reference advises and asks nothing) and four that lack two or three items (`missing_info` lists
which; the reference asks for exactly those). One of each four is a conversation of two turns. Greetings, closings,
background and small talk come from the same lists on both sides, so no phrase alone tells the sides apart. A row:

    {"id": "en-0001", "messages": [...], "reference": "...", "fields": {department, condition, language, missing_info}}

The same seed gives the same bytes. Advice is general and illustrates a format; it is no medical guideline.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SEED = 20240501
ROWS_A_HALF = 4
COMFORTABLE_REFERENCE = {"en": 44, "zh": 84}
"""Words (characters) up to which a question reference takes optional sentences: about 64 tokens."""

LONGEST_PROMPT = {"en": 120, "zh": 160}
"""Words (characters) of all turns together."""


@dataclass
class Case:
    """One patient: the condition, the random draws for them, and the language's phrases."""

    rng: random.Random
    phrases: dict[str, Any]
    condition: dict[str, Any]
    slots: dict[str, str]
    """What the braces in a phrase become."""

    def say(self, choices: list[str]) -> str:
        """One of the choices, filled in."""
        return self.rng.choice(choices).format(**self.slots)

    def join(self, parts: list[str]) -> str:
        """Sentences in a row, empty ones left out."""
        return self.phrases["joiner"].join(part for part in parts if part)

    @property
    def is_child(self) -> bool:
        """Whether a parent writes."""
        return bool(self.condition["who"][0] == "child")

    def ask(self, item: str) -> str:
        """The doctor's question for an item."""
        own = self.condition["need"][item]
        if own:
            return str(own["ask"]).format(**self.slots)
        generic = self.phrases["generic"][item]
        return self.say(generic["ask_child"] if self.is_child else generic["ask"])

    def tell(self, item: str) -> str:
        """The patient's statement about an item."""
        return self.say((self.condition["need"][item] or self.phrases["generic"][item])["told"])

    def age(self) -> str:
        """The patient's age, and sex where the condition has one."""
        return self.say(self.phrases["age"][self.condition["who"][0]])

    def background(self) -> list[str]:
        """Health with medication, and mostly allergies, save what the condition's own items already tell."""
        need, health, allergies = self.condition["need"], self.phrases["health"], self.phrases["allergies"]
        told = []
        if "medication" not in need and "history" not in need:
            adult = health["plain"] if "plain" in self.condition else health["plain"] + health["other"]
            told.append(self.say(health["child"] if self.is_child else adult))
        if "allergies" not in need and self.rng.random() < 0.7:
            told.append(self.say(allergies["child" if self.is_child else "adult"]))
        return told


def make_case(rng: random.Random, phrases: dict[str, Any], condition: dict[str, Any]) -> Case:
    """Draw age, duration, score and (for children) the pronouns of one patient."""
    _, youngest, oldest, *unit = condition["who"]
    age = str(rng.randint(youngest, oldest))
    slots = {
        "age": age,
        "age_text": phrases["ages_by_unit"][unit[0] if unit else "years"].format(age=age),
        "d": rng.choice(phrases["durations"][condition["time"]]),
        "n": str(rng.randint(4, 7)),
        **rng.choice(phrases["pronouns"]),
    }
    return Case(rng, phrases, condition, slots)


def complete_row(case: Case, index: int) -> dict[str, Any]:
    """The patient tells everything; the reference advises."""
    phrases, condition, rng = case.phrases, case.condition, case.rng
    items = list(condition["need"])
    complaint = condition["complaint"][index % len(condition["complaint"])].format(**case.slots)
    told = [case.tell(item) for item in items] + case.background()
    closing, greeting = rng.choice(phrases["closings"]), rng.choice(phrases["greetings"])
    if index == ROWS_A_HALF - 1:
        asked, rest = case.join([case.ask(item) for item in items[:2]]), [case.age(), *told[2:]]
        rng.shuffle(rest)
        turns = [case.join([greeting, complaint]), asked, case.join([*told[:2], *rest, closing])]
    else:
        rng.shuffle(told)
        told.insert(rng.randint(0, 2), case.age())
        turns = [case.join([greeting, complaint, *told, small_talk(case, index), closing])]
    advice = [condition["opinion"][index % 2], condition["care"][index // 2], condition["urgent"]]
    return row(case, turns, case.join(advice).format(**case.slots), [])


def incomplete_row(case: Case, index: int) -> dict[str, Any]:
    """The patient leaves out two or three items, sometimes amid other talk; the reference asks for them."""
    phrases, condition, rng = case.phrases, case.condition, case.rng
    items = list(condition["need"])
    complaint = condition["complaint"][index % len(condition["complaint"])].format(**case.slots)
    told_item = rng.choice(items) if index % 2 else None
    missing = [item for item in items if item != told_item]
    told = [case.tell(told_item)] if told_item else []
    closing, greeting = rng.choice(phrases["closings"]), rng.choice(phrases["greetings"])
    talk = small_talk(case, index)
    age = case.age() if rng.random() < 0.5 else ""
    aside = rng.choice(case.background() or [""]) if rng.random() < 0.5 else ""
    if told_item and index == ROWS_A_HALF - 1:
        first = case.join([greeting, complaint, closing])
        turns = [first, case.ask(told_item), case.join([*told, age, aside, talk])]
    else:
        middle = [age, *told, aside, talk]
        rng.shuffle(middle)
        turns = [case.join([greeting, complaint, *middle, closing])]
    return row(case, turns, question_reference(case, missing), missing)


def small_talk(case: Case, index: int) -> str:
    """A remark without information; the third of four is long."""
    return str(case.rng.choice(case.phrases["chatter_long" if index == 2 else "chatter"]))


def question_reference(case: Case, missing: list[str]) -> str:
    """Asks for each missing item; where the condition can be dangerous, also says when not to wait."""
    opening, closing = case.say(case.phrases["ask_opening"]), case.say(case.phrases["ask_closing"])
    parts = [opening, *[case.ask(item) for item in missing]]
    optional = [case.condition["urgent"].format(**case.slots)] if "warn" in case.condition else []
    for sentence in [*optional, closing]:
        if length(case, case.join([*parts, sentence])) <= COMFORTABLE_REFERENCE[case.phrases["language"]]:
            parts.append(sentence)
    return case.join(parts)


def length(case: Case, text: str) -> int:
    """Words, or characters in Chinese."""
    return len(text) if case.phrases["language"] == "zh" else len(text.split())


def row(case: Case, turns: list[str], reference: str, missing: list[str]) -> dict[str, Any]:
    """A prompt row without its id; turns alternate between patient and doctor."""
    roles = ["user", "assistant"] * 2
    return {
        "messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)],
        "reference": reference,
        "fields": {
            "department": case.condition["department"],
            "condition": case.condition["name"],
            "language": case.phrases["language"],
            "missing_info": missing,
        },
    }


def build(material: Path) -> list[dict[str, Any]]:
    """All rows of a language, shuffled and numbered; RuntimeError where the material can't give distinct ones."""
    phrases = yaml.safe_load(material.read_text(encoding="utf-8"))
    rng = random.Random(f"{SEED}-{phrases['language']}")
    rows: dict[str, dict[str, Any]] = {}
    for condition in phrases["conditions"]:
        for make in (complete_row, incomplete_row):
            for index in range(ROWS_A_HALF):
                for _ in range(20):
                    case = make_case(rng, phrases, condition)
                    made = make(case, index)
                    text = case.join([message["content"] for message in made["messages"]])
                    if text not in rows and length(case, text) <= LONGEST_PROMPT[phrases["language"]]:
                        rows[text] = made
                        break
                else:
                    raise RuntimeError(f"{material}: {condition['name']!r} has too few phrases for distinct prompts")
    shuffled = list(rows.values())
    rng.shuffle(shuffled)
    return [{"id": f"{phrases['language']}-{number:04d}", **made} for number, made in enumerate(shuffled, 1)]


def main() -> None:
    """Write both files."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=here.parent / "rayrl" / "assets", help="folder to write to")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for language in ("en", "zh"):
        rows = build(here / f"consultations_{language}.yaml")
        path = output / f"consultations_{language}.jsonl"
        text = "".join(json.dumps(made, ensure_ascii=False) + "\n" for made in rows)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{path}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
