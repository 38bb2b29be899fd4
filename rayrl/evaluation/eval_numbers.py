"""All numbers of an evaluation from its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from rayrl.evaluation.bootstrap import bootstrap_means
from rayrl.evaluation.consultations.measures import Measures, measure
from rayrl.evaluation.exams.numbers import exam_numbers
from rayrl.evaluation.experts import majority
from rayrl.evaluation.numbers import ALL, Number, Unit
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.question_numbers import agreement_numbers, match_numbers, metric_numbers, scored_numbers
from rayrl.evaluation.records import Records, SafetyAnswer, Talk
from rayrl.evaluation.safety.assess import SafetyFinding, safety_shares
from rayrl.evaluation.scored import Agreement
from rayrl.evaluation.statistics import proportion_interval

_CONSULTATION: tuple[tuple[str, str, Unit], ...] = (
    ("rounds", "rounds", "number"),
    ("questions_asked", "doctor's turns that ask", "share"),
    ("diagnosis_named", "diagnosis named", "share"),
    ("diagnosis_found", "diagnosis named, where the case doesn't", "share"),
    ("told_at_first", "facts told in the first message", "share"),
    ("told", "facts told by the patient", "share"),
    ("doctor_ahead", "facts stated by the doctor first", "share"),
    ("doctor_units", "length of a doctor's turn", "number"),
    ("patient_units", "length of a patient's turn", "number"),
)
"""A measure of Measures, what tables call it, its unit."""


@dataclass(frozen=True)
class Measured:
    """A question set's way of measuring."""

    name: str
    level: Literal["characters", "words"]
    language: Literal["en", "zh"]


def all_numbers(
    records: Records,
    models: Sequence[str],
    measured: Sequence[Measured],
    experts: Sequence[Match],
    agreements: Sequence[Agreement],
    seed: int,
    resamples: int,
) -> list[Number]:
    """Every number. `measured`: the question sets with metrics; `experts`: their single choices."""
    numbers = [*match_numbers("pairwise", records.matches, models, seed, resamples)]
    if experts:
        decided = majority(experts)
        known = [*models, *sorted({m for match in experts for m in (match.model_a, match.model_b)} - set(models))]
        numbers += match_numbers("experts", decided, known, seed, resamples)
    for one in measured:
        own = [record for record in records.answers if record.set == one.name]
        answering = [name for name in models if any(record.model == name for record in own)]
        if answering:
            numbers += metric_numbers(one.name, own, answering, one.level, one.language, seed, resamples)
    numbers += exam_numbers(records.exams, seed, resamples)
    numbers += scored_numbers(records.scores, seed, resamples)
    numbers += agreement_numbers(agreements)
    numbers += consultation_numbers(records.talks, seed, resamples)
    numbers += safety_numbers(records.safety)
    return numbers


def consultation_numbers(talks: Sequence[Talk], seed: int, resamples: int) -> Iterator[Number]:
    """Measures of every model's consultations of every set; failed ones are counted and left out."""
    for set_name in dict.fromkeys(talk.set for talk in talks):
        for model in dict.fromkeys(talk.model for talk in talks if talk.set == set_name):
            own = [talk for talk in talks if (talk.set, talk.model) == (set_name, model)]
            held = [talk for talk in own if talk.dialogue.ended != "failed"]
            ended = sum(talk.dialogue.ended == "goodbye" for talk in held)
            found = [measure(talk.dialogue, talk.case) for talk in held]
            yield from _measures(set_name, model, found, seed, resamples)
            if held:
                estimate = proportion_interval(ended, len(held))
                yield Number.of("consultations", set_name, ALL, model, "ended with goodbye", estimate, "share")
            estimate = proportion_interval(len(held), len(own))
            yield Number.of("consultations", set_name, ALL, model, "held to the end", estimate, "share")


def safety_numbers(answers: Sequence[SafetyAnswer]) -> Iterator[Number]:
    """By set, what is due, and model: the share that is as expected and the answers to be read. Never one number."""
    for set_name in dict.fromkeys(one.set for one in answers):
        for model in dict.fromkeys(one.model for one in answers if one.set == set_name):
            own = [one for one in answers if (one.set, one.model) == (set_name, model)]
            missing = sum(one.finding is None for one in own)
            if missing:
                estimate = proportion_interval(missing, len(own))
                yield Number.of("safety", set_name, "all requests", model, "unanswered", estimate, "share")
        for share in safety_shares(findings_of(answers, set_name)):
            split = f"due: {share.expect}"
            yield Number.of("safety", set_name, split, share.model, "as expected", share.as_expected, "share")
            yield Number("safety", set_name, split, share.model, "to be read", share.flagged, None, None,
                         share.answers, "number")  # fmt: skip


def findings_of(answers: Sequence[SafetyAnswer], set_name: str) -> Mapping[str, list[SafetyFinding]]:
    """A set's findings by model."""
    found: dict[str, list[SafetyFinding]] = {}
    for one in answers:
        if one.set == set_name and one.finding is not None:
            found.setdefault(one.model, []).append(one.finding)
    return found


def _measures(set_name: str, model: str, found: Sequence[Measures], seed: int, resamples: int) -> Iterator[Number]:
    rows = [asdict(one) for one in found]
    for key, label, unit in _CONSULTATION:
        values = [float(row[key]) for row in rows if row[key] is not None]
        if not values:
            continue
        if unit == "share" and set(values) <= {0.0, 1.0}:
            estimate = proportion_interval(sum(values), len(values))
        else:
            (estimate,) = bootstrap_means(np.array(values)[:, None], seed=seed, resamples=resamples)
        yield Number.of("consultations", set_name, ALL, model, label, estimate, unit)
