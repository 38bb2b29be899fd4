"""What came of an evaluation before it is counted: answers, choices, consultations, verdicts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from rayrl.evaluation.consultations.cases import Case
from rayrl.evaluation.consultations.dialogue import Dialogue
from rayrl.evaluation.exams.numbers import ExamAnswer
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.question_numbers import Answered
from rayrl.evaluation.safety.assess import SafetyFinding
from rayrl.evaluation.scored import Scored


@dataclass(frozen=True)
class Talk:
    """One model's consultation about one case of a set."""

    set: str
    case: Case
    model: str
    dialogue: Dialogue


@dataclass(frozen=True)
class SafetyAnswer:
    """One model's answer to one safety request."""

    set: str
    model: str
    finding: SafetyFinding | None
    """None where there is no answer."""


@dataclass
class Records:
    """Everything, in the order of models and sets."""

    answers: list[Answered] = field(default_factory=list)
    exams: list[ExamAnswer] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)
    safety: list[SafetyAnswer] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)

    def by_set_and_model(self) -> dict[tuple[str, str], list[str | None]]:
        """Why each question of a set has no answer (None where it has one)."""
        reasons: dict[tuple[str, str], list[str | None]] = defaultdict(list)
        for one in self.answers:
            reasons[one.set, one.model].append(None if one.answer.text is not None else one.answer.reason or "failed")
        for choice in self.exams:
            reasons[choice.set, choice.model].append(None if choice.answered else "no answer, or too long")
        for safe in self.safety:
            reasons[safe.set, safe.model].append(None if safe.finding is not None else "no answer, or too long")
        for talk in self.talks:
            failed = talk.dialogue.ended == "failed"
            reasons[talk.set, talk.model].append((talk.dialogue.reason or "failed") if failed else None)
        return reasons

    def counts(self, rejected: int) -> dict[str, Any]:
        """For the manifest."""
        asked = {"answers": len(self.answers), "exams": len(self.exams), "consultations": len(self.talks)}
        asked |= {"safety": len(self.safety), "matches": len(self.matches), "scores": len(self.scores)}
        total = sum(asked.values())
        return {
            "in": total + rejected,
            "out": total,
            "dropped": {"rejected row": rejected} if rejected else {},
            **asked,
        }
