"""Scores of single answers by a judge, and how far they agree with people's.

CMB-Clin's protocol as HuatuoGPT-II uses it: each answer gets points from 1 to 5 on fluency, relevance, completeness and
proficiency. A judge that nobody has checked measures itself: people's scores of the same answers come from a CSV with
the columns `id`, `model`, `rater` (if there are several) and one a criterion; a rater's second row for an answer isn't
used.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rayrl.data.readers.rows import Rejected
from rayrl.errors import UserError
from rayrl.evaluation.csv_rows import read_csv
from rayrl.evaluation.statistics import Estimate, mean_interval

_ID = ("id", "model")


@dataclass(frozen=True)
class Scored:
    """One answer's scores. Example: Scored("heldout", "en-7", "cough", "sft", {"fluency": 4.0}, None)"""

    set: str
    item: str
    category: str
    model: str
    criteria: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    """Why there are none."""

    @property
    def mean(self) -> float | None:
        """Mean of the criteria."""
        return sum(self.criteria.values()) / len(self.criteria) if self.criteria else None


@dataclass(frozen=True)
class Agreement:
    """Judge and people on one criterion.

    `pearson`, `spearman`: of the scores, None where either never varies, and of fewer than three; `difference`: judge
    minus people, in points; `within_one`: share of answers on which they are at most a point apart.
    """

    criterion: str
    n: int
    pearson: float | None
    spearman: float | None
    difference: Estimate
    within_one: float


def read_people(path: str, criteria: Sequence[str]) -> tuple[dict[tuple[str, str], dict[str, float]], list[Rejected]]:
    """(question, model) -> mean score by criterion over the raters; and the rows that couldn't be used.

    Raises UserError where the file can't be read, or holds none of the criteria.
    """
    try:
        table = read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"scored.human: {path} can't be read as CSV in UTF-8: {error}") from error
    known = [name for name in criteria if name in table.columns]
    if any(name not in table.columns for name in _ID) or not known:
        raise UserError(f"scored.human: {path} needs the columns id, model and one of {', '.join(criteria)}")
    gathered: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seen: set[tuple[str, ...]] = set()
    rejected = []
    for line, row in table.rows:
        values = _values(row, known)
        who = (row["id"], row["model"], row.get("rater", ""))
        if values is None or not row["id"] or not row["model"]:
            rejected.append(Rejected(path, line, f"no number in one of {', '.join(known)}, or no id, model"))
            continue
        if who[2] and who in seen:
            rejected.append(Rejected(path, line, "its rater has scored this answer before"))
            continue
        seen.add(who)
        for name, value in values.items():
            gathered[row["id"], row["model"]][name].append(value)
    means = {key: {name: sum(v) / len(v) for name, v in one.items()} for key, one in gathered.items()}
    return means, rejected


def agreement(
    scored: Sequence[Scored], people: Mapping[tuple[str, str], Mapping[str, float]], criteria: Sequence[str]
) -> list[Agreement]:
    """By criterion, over the answers that both scored; criteria without any are left out."""
    table = []
    for name in criteria:
        pairs = [
            (one.criteria[name], people[one.item, one.model][name])
            for one in scored
            if name in one.criteria and name in people.get((one.item, one.model), {})
        ]
        if pairs:
            judge, human = np.array(pairs).T
            table.append(
                Agreement(
                    name,
                    len(pairs),
                    *_correlations(judge, human),
                    mean_interval((judge - human).tolist()),
                    float((np.abs(judge - human) <= 1 + 1e-9).mean()),
                )
            )
    return table


def _values(row: Mapping[str, str], names: Sequence[str]) -> dict[str, float] | None:
    """Its scores; None where there are none, or one isn't a number."""
    try:
        values = {name: float(row[name]) for name in names if row[name]}
    except ValueError:
        return None
    return values if values and all(map(math.isfinite, values.values())) else None


def _correlations(judge: np.ndarray, human: np.ndarray) -> tuple[float | None, float | None]:
    from scipy import stats

    if len(judge) < 3 or min(np.ptp(judge), np.ptp(human)) < 1e-9:  # means may differ by a rounding
        return None, None
    return float(stats.pearsonr(judge, human).statistic), float(stats.spearmanr(judge, human).statistic)
