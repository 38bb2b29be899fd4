"""Physicians' blind choices between two models' answers, from a CSV, as the outcomes that judges give too.

Columns: `id` (the question), `expert`, `model_a`, `model_b`, `choice` (a, tie or b; A, 1, 平 ... are understood), and
`category` if there is one. Blind means that whoever chose didn't know which model was which; the file does. A question
that several experts saw has the outcome that most of them chose; without a majority it is a tie, as in HuatuoGPT-II's
evaluation by four physicians.
"""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rayrl.data.readers.rows import Rejected
from rayrl.errors import UserError
from rayrl.evaluation.csv_rows import read_csv
from rayrl.evaluation.pairwise import Match, Outcome, opposite
from rayrl.feedback.agreement import cohen_kappa

_COLUMNS = ("id", "expert", "model_a", "model_b", "choice")
_CHOICES: dict[str, Outcome] = {
    **dict.fromkeys(("a", "1", "left", "model_a", "win"), "a"),
    **dict.fromkeys(("b", "2", "right", "model_b", "lose", "loss"), "b"),
    **dict.fromkeys(("tie", "0", "same", "equal", "draw", "平", "平局"), "tie"),
}


@dataclass(frozen=True)
class Choices:
    """What a file held. `matches`: one an expert and question, models in alphabetical order."""

    matches: list[Match]
    rejected: list[Rejected]


def read_choices(name: str, path: str) -> Choices:
    """The choices of a file. Raises UserError where it can't be read or lacks a column."""
    try:
        table = read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"experts {name!r}: {path} can't be read as CSV in UTF-8: {error}") from error
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise UserError(f"experts {name!r}: {path} has no column {missing[0]!r}; it needs {', '.join(_COLUMNS)}")
    matches: dict[tuple[str, ...], Match] = {}
    rejected: list[Rejected] = []
    for line, row in table.rows:
        found = _match(name, row)
        if isinstance(found, Match):
            key = (found.rater, found.item, found.model_a, found.model_b)
            if key not in matches:
                matches[key] = found
                continue
            found = f"{found.rater} has chosen for {found.item!r} before"
        rejected.append(Rejected(path, line, found))
    return Choices(list(matches.values()), rejected)


def majority(matches: Sequence[Match]) -> list[Match]:
    """One match a question and pair of models: what most experts chose, a tie where no choice has a majority."""
    groups: dict[tuple[str, ...], list[Match]] = defaultdict(list)
    for match in matches:
        groups[match.set, match.item, match.model_a, match.model_b].append(match)
    decided = []
    for group in groups.values():
        choice, count = Counter(match.outcome for match in group).most_common(1)[0]
        first = group[0]
        outcome = choice if 2 * count > len(group) else "tie"
        decided.append(
            Match(first.set, first.item, first.category, first.model_a, first.model_b, outcome, rater="experts")
        )
    return decided


def expert_agreement(matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Every two experts on the questions that both saw: experts, questions, same (a share), kappa (None: undefined)."""
    chosen: dict[str, dict[tuple[str, ...], Outcome]] = defaultdict(dict)
    for match in matches:
        if match.outcome is not None:
            chosen[match.rater][match.set, match.item, match.model_a, match.model_b] = match.outcome
    table = []
    for one, other in combinations(sorted(chosen), 2):
        keys = [key for key in chosen[one] if key in chosen[other]]
        if keys:
            first, second = [chosen[one][key] for key in keys], [chosen[other][key] for key in keys]
            same = sum(a == b for a, b in zip(first, second, strict=True)) / len(keys)
            kappa = cohen_kappa(first, second, ("a", "tie", "b"))
            table.append({"experts": (one, other), "questions": len(keys), "same": same, "kappa": kappa})
    return table


def _match(name: str, values: Mapping[str, str]) -> Match | str:
    """The row's match, or why it can't be used."""
    empty = [column for column in _COLUMNS if not values[column]]
    if empty:
        return f"{empty[0]} is empty"
    outcome = _CHOICES.get(unicodedata.normalize("NFKC", values["choice"]).casefold())  # full width: Ａ, １
    if outcome is None:
        return f"choice is {values['choice'][:40]!r}, expected a, tie or b"
    one, other = values["model_a"], values["model_b"]
    if one == other:
        return "model_a and model_b are the same"
    if one > other:
        one, other, outcome = other, one, opposite(outcome)
    return Match(name, values["id"], values.get("category", ""), one, other, outcome, rater=values["expert"])
