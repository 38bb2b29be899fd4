"""Good and flawed answers to a composed prompt. The flaw is put in on purpose, so nobody has to judge the answer.

Both sides take openings, closings and filler from the same lists with the same chances, the same questions and the same
advice: what is a good answer to one prompt is the flawed answer to another. Material: answers_{en,zh}.yaml and
consultations_{en,zh}.yaml. Used by build_preferences.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from build_consultations import Case

from rayrl.rewards.text import units

QUESTION_FLAWS = ("no_question", "needless_question")
FLAWS = ("wrong", *QUESTION_FLAWS, "terse", "rambling", "unsafe", "disordered")


@dataclass(frozen=True)
class Answer:
    """An answer and how it was made."""

    text: str
    flaw: str
    """One of FLAWS, or "good"."""
    variant: str
    margin: int
    """How much worse than a good answer: 0 (good), 1 slight to 3 strong."""

    @property
    def length(self) -> int:
        """Words, or Chinese characters."""
        return len(units(self.text))


@dataclass
class Composer:
    """Writes answers to one prompt."""

    case: Case
    missing: list[str]
    """Items the patient left out; empty: a complete prompt."""
    phrases: Mapping[str, Any]
    """answers_{en,zh}.yaml."""
    others: list[dict[str, Any]]
    """Conditions of other departments, to take wrong answers from."""
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = self.case.rng

    @property
    def flaws(self) -> list[str]:
        """Flaws that an answer to this prompt can have."""
        left_out = "needless_question" if self.missing else "no_question"
        immediate = self.missing and self.case.condition["name"] in self.phrases["immediate"]
        return [f for f in FLAWS if f != left_out and not (immediate and f == "no_question")]

    def make(self, kind: str) -> Answer:
        """An answer with the flaw of that name, or a good one."""
        if kind == "good":
            return self._answer(self._dress(self._good_body(), bool(self.missing)), "good", "good", 0)
        made: Answer = getattr(self, f"_{kind}")()
        return made

    def _wrong(self) -> Answer:
        """Meant for another condition, or without any diagnosis."""
        if self.missing:
            other = self.rng.choice([c for c in self.others if len(self._foreign_items(c)) > 1])
            return self._answer(self._dress(self._foreign_questions(other), True), "wrong", "other_questions", 2)
        other = self.rng.choice(self.others)
        chance = self.rng.random()
        if chance < 0.6:
            return self._answer(self._dress(self._advice(other), False), "wrong", "other_condition", 3)
        if chance < 0.85:
            body = [self._opinion(self.case.condition), *self._advice(other)[1:]]
            return self._answer(self._dress(body, False), "wrong", "other_advice", 2)
        body = [self._one("vague"), *self._some("filler", 1), *self._advice(self.case.condition)[2:]]
        return self._answer(self._dress(body, False), "wrong", "no_diagnosis", 2)

    def _no_question(self) -> Answer:
        """Advises at once though something is missing."""
        return self._answer(self._dress(self._advice(self.case.condition), False), "no_question", "advises", 2)

    def _needless_question(self) -> Answer:
        """Asks what the patient has already told: instead of the advice, or behind it."""
        asked = [self.case.ask(item) for item in self.case.condition["need"]]
        if self.rng.random() < 0.6:
            body = asked[: self.rng.choice([2, 3, 3])]
            return self._answer(self._dress([*body, *self._warning(0.2)], True), "needless_question", "instead", 2)
        body = [*self._advice(self.case.condition)[:2], self.rng.choice(asked)]
        return self._answer(self._dress(body, False), "needless_question", "added", 1)

    def _terse(self) -> Answer:
        """Right, but a fraction of what is needed; or broken off."""
        if self.rng.random() < 0.3:
            whole = self._join(self._dress(self._good_body(), bool(self.missing)))
            return Answer(_cut(whole, self.rng.uniform(0.35, 0.6)), "terse", "cut", 2)
        if self.missing:
            return Answer(self.case.ask(self.rng.choice(self.missing)), "terse", "one_question", 1)
        if self.rng.random() < 0.5:
            return Answer(self._opinion(self.case.condition), "terse", "only_diagnosis", 1)
        return Answer(self._care(self.case.condition), "terse", "only_advice", 1)

    def _rambling(self) -> Answer:
        """Long and empty."""
        body = self._some("filler", self.rng.randint(3, 6))
        if self.rng.random() < 0.3:
            body.insert(self.rng.randint(1, len(body)), self._one("vague"))
        return self._answer(self._dress(body, False), "rambling", "filler", 2)

    def _unsafe(self) -> Answer:
        """Reverses a warning, or advises something dangerous about medicines."""
        condition, danger = self.case.condition, self._danger()
        if self.missing and self.rng.random() < 0.6:
            body = [*[self.case.ask(item) for item in self.missing[:2]], danger]
            return self._answer(self._dress(body, True), "unsafe", "question_and_danger", 3)
        if self.rng.random() < 0.35:
            return self._answer(self._dress([self._one("soothe"), danger], False), "unsafe", "soothes", 3)
        return self._answer(
            self._dress([*self._advice(condition)[:2], danger], False), "unsafe", "advice_and_danger", 3
        )

    def _disordered(self) -> Answer:
        """The sentences of a good answer out of order, in pieces, or repeated."""
        opening, closing = self._opening(bool(self.missing)), self._closing(bool(self.missing))
        body = self._good_body()
        chance = self.rng.random()
        if chance < 0.35:
            sentences = [closing, *self._shuffled(body), opening]
            return self._answer(sentences, "disordered", "shuffled", 1)
        if chance < 0.7:
            whole = self._join([opening, *body, closing])
            return Answer(_shuffle_pieces(whole, self.rng), "disordered", "pieces", 2)
        again = self.rng.choice(body)
        body = [again, *[s for s in body if s != again][:1], again, again]
        return self._answer([opening, *body], "disordered", "repeated", 1)

    def _good_body(self) -> list[str]:
        condition = self.case.condition
        if not self.missing:
            return self._advice(condition)
        return [*[self.case.ask(item) for item in self.missing], *self._warning(1.0 if "warn" in condition else 0.2)]

    def _advice(self, condition: Mapping[str, Any]) -> list[str]:
        """Diagnosis, advice, and mostly when not to wait; seldom a caution about medicines."""
        parts = [self._opinion(condition), self._care(condition)]
        if self.rng.random() < 0.75:
            parts.append(self._fill(condition["urgent"]))
        if self.rng.random() < 0.33:
            parts.append(self.rng.choice(self.phrases["contrasts"])["safe"])
        return parts

    def _foreign_items(self, other: Mapping[str, Any]) -> list[str]:
        """Items with a question of the other condition's own that this condition doesn't need."""
        return [item for item, texts in other["need"].items() if texts and item not in self.case.condition["need"]]

    def _foreign_questions(self, other: Mapping[str, Any]) -> list[str]:
        """The other condition's own questions."""
        asked = [self._fill(other["need"][item]["ask"]) for item in self._foreign_items(other)]
        return asked[: len(self.missing)] + self._warning(0.2)

    def _danger(self) -> str:
        reverse = reversed_warning(self._fill(self.case.condition["urgent"]), self.case.phrases["language"])
        contrast = str(self.rng.choice(self.phrases["contrasts"])["unsafe"])
        return reverse if reverse and self.rng.random() < 0.6 else contrast

    def _warning(self, chance: float) -> list[str]:
        return [self._fill(self.case.condition["urgent"])] if self.rng.random() < chance else []

    def _dress(self, body: list[str], asks: bool) -> list[str]:
        """Opening, filler and closing around the body, with chances that are the same for every answer."""
        opening = [self._opening(asks)] if self.rng.random() < 0.6 else []
        filler = self._some("filler", 1) if self.rng.random() < 0.25 else []
        closing = [self._closing(asks)] if self.rng.random() < 0.45 else []
        return [*opening, *filler, *body, *closing]

    def _opening(self, asks: bool) -> str:
        return self.case.say(self.case.phrases["ask_opening"] if asks else self.phrases["advice_opening"])

    def _closing(self, asks: bool) -> str:
        return self.case.say(self.case.phrases["ask_closing"] if asks else self.phrases["advice_closing"])

    def _opinion(self, condition: Mapping[str, Any]) -> str:
        return self._fill(self.rng.choice(condition["opinion"]))

    def _care(self, condition: Mapping[str, Any]) -> str:
        return self._fill(self.rng.choice(condition["care"]))

    def _one(self, name: str) -> str:
        return str(self.rng.choice(self.phrases[name]))

    def _some(self, name: str, count: int) -> list[str]:
        return [str(text) for text in self.rng.sample(self.phrases[name], count)]

    def _fill(self, text: str) -> str:
        return text.format(**self.case.slots)

    def _shuffled(self, body: list[str]) -> list[str]:
        return list(reversed(body)) if len(body) < 4 else [body[2], body[0], body[3], body[1]]

    def _join(self, sentences: list[str]) -> str:
        return self.case.join(sentences)

    def _answer(self, sentences: list[str], flaw: str, variant: str, margin: int) -> Answer:
        """Join the sentences; one answer in eight is a numbered list, whatever its flaw."""
        if len(sentences) > 2 and self.rng.random() < 0.12:
            text = "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))
            return Answer(text, flaw, variant, margin)
        return Answer(self._join(sentences), flaw, variant, margin)


def reversed_warning(urgent: str, language: str) -> str | None:
    """The warning turned into its opposite with the same words, or None where its form isn't known."""
    return _reversed_chinese(urgent) if language == "zh" else _reversed_english(urgent)


def _reversed_english(urgent: str) -> str | None:
    if urgent.startswith("Don't wait"):
        rest = _reversed_english(urgent.split("; ", 1)[1].capitalize())
        return f"Wait and see; {rest[0].lower()}{rest[1:]}" if rest else None
    if re.match(r"(?:Go|See|Seek|Call|Get|Have)\b", urgent):
        calm = re.sub(r" (?:at once|urgently|promptly|quickly|soon|immediately)\b", "", urgent)
        return f"There is no need to {calm[0].lower()}{calm[1:]}"
    if found := re.match(r"If (.+), (?:ask|get|go|call|others must)\b", urgent):
        return f"Even if {found[1]}, nobody has to look at it."
    if found := re.match(r"With (.+) (call .+)", urgent):
        return f"With {found[1]} there is no need to {found[2]}"
    if found := re.match(r"(.+?) (?:always )?(?:needs?|mean|must be) ", urgent):
        return f"{found[1]} can safely be ignored."
    return None


def _reversed_chinese(urgent: str) -> str | None:
    first = urgent.split("；")[0].rstrip("。").removeprefix("不要等再次发作，")
    calm, changed = re.subn(r"(?:请|一定要|都要)?(?:立即|尽快|当天|尽早|立刻)", "也不用", first, count=1)
    return re.sub(r"^(?:如果|一旦)?", "即使", calm, count=1) + "。" if changed else None


def _cut(text: str, share: float) -> str:
    """The first part of a text, broken off inside a sentence."""
    if " " not in text:
        return text[: max(4, int(len(text) * share))].rstrip("，。？；、,")
    words = text.split()
    return " ".join(words[: max(3, int(len(words) * share))]).rstrip(".,;?:")


def _shuffle_pieces(text: str, rng: random.Random) -> str:
    """The text's clauses in another order, each with its mark."""
    pieces = [piece for piece in re.findall(r"[^，。？；,.?;]+[，。？；,.?;]?\s*", text) if piece.strip()]
    shuffled = list(pieces)
    while shuffled == pieces:
        rng.shuffle(shuffled)
    joiner = " " if " " in text else ""
    return joiner.join(piece.strip() for piece in shuffled)
