"""Scores of single answers by a judge, and how far they agree with people's.

CMB-Clin's protocol as HuatuoGPT-II uses it: each answer gets points from 1 to 5 on fluency, relevance, completeness and
proficiency. A judge that nobody has checked measures itself: people's scores of the same answers come from a CSV with
the columns `id`, `model`, `rater` (if there are several) and one a criterion.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rayrl.data.readers.rows import Rejected
from rayrl.errors import UserError
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

    `pearson`, `spearman`: of the scores, None where either never varies; `difference`: judge minus people, in points;
    `within_one`: share of answers on which they are at most a point apart.
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
    file = Path(path).expanduser()
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"scored.human: {path} can't be read as UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    known = [name for name in criteria if name in columns]
    if any(name not in columns for name in _ID) or not known:
        raise UserError(f"scored.human: {path} needs the columns id, model and one of {', '.join(criteria)}")
    gathered: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    rejected = []
    for row in reader:
        try:
            values = {name: float(row[name]) for name in known if (row[name] or "").strip()}
            if not values or not all(map(math.isfinite, values.values())) or not row["id"] or not row["model"]:
                raise ValueError
        except (ValueError, TypeError):
            rejected.append(Rejected(path, reader.line_num, f"no number in one of {', '.join(known)}, or no id, model"))
            continue
        for name, value in values.items():
            gathered[row["id"].strip(), row["model"].strip()][name].append(value)
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


def _correlations(judge: np.ndarray, human: np.ndarray) -> tuple[float | None, float | None]:
    from scipy import stats

    if len(judge) < 3 or np.ptp(judge) == 0 or np.ptp(human) == 0:
        return None, None
    return float(stats.pearsonr(judge, human).statistic), float(stats.spearmanr(judge, human).statistic)
