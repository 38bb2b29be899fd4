"""Every measured number of an evaluation in one shape: what tables, figures and comparisons are made from.

numbers.jsonl in an evaluation's folder holds one a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rayrl.evaluation.statistics import Estimate
from rayrl.tracking.rows import read_rows, replace_rows

NUMBERS = "numbers.jsonl"
ALL = "all"
"""The split of a number that covers its whole set."""

Unit = Literal["share", "points", "score", "number", "probability"]


@dataclass(frozen=True)
class Number:
    """One measured number.

    Example: Number("metrics", "heldout", "all", "sft", "rouge-l", 0.21, 0.19, 0.23, 100, "score")
    """

    section: str
    set: str
    split: str
    """`all`, or the part of the set: "department: ENT", "year: 2019"."""
    model: str
    """The model, or "A against B"."""
    measure: str
    mean: float
    low: float | None
    """With `high`: the 95% interval; None where there is none."""
    high: float | None
    n: int
    """What it rests on: questions, answers, consultations."""
    unit: Unit = "score"
    """`points`: a difference of shares. `number`: a count, or a length."""

    @classmethod
    def of(
        cls, section: str, set: str, split: str, model: str, measure: str, estimate: Estimate, unit: Unit = "score"
    ) -> Number:
        """From an estimate."""
        return cls(section, set, split, model, measure, estimate.mean, estimate.low, estimate.high, estimate.n, unit)

    @property
    def shown(self) -> str:
        """The number alone, in its unit."""
        return _format(self.mean, self.unit)

    @property
    def interval(self) -> str:
        """Its interval; "" where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{_format(self.low, self.unit)} to {_format(self.high, self.unit)}"

    @property
    def text(self) -> str:
        """Number and interval. Example: "0.210 (0.190 to 0.230)" """
        return f"{self.shown} ({self.interval})" if self.interval else self.shown


def write_numbers(path: Path, numbers: Iterable[Number]) -> None:
    """Writes them, whole or not at all."""
    replace_rows(path, (asdict(number) for number in numbers))


def read_numbers(path: Path) -> list[Number]:
    """What `write_numbers` wrote."""
    return [Number(**row) for row in read_rows(path)]


def pivot(numbers: Sequence[Number], row: str, column: str) -> dict[str, dict[str, Number]]:
    """Numbers by the values of two of their fields, in the order in which they come."""
    table: dict[str, dict[str, Number]] = {}
    for number in numbers:
        table.setdefault(getattr(number, row), {})[getattr(number, column)] = number
    return table


def columns_of(table: Mapping[str, Mapping[str, Number]]) -> list[str]:
    """All columns of a pivot, in the order in which they come."""
    return list(dict.fromkeys(name for row in table.values() for name in row))


def _format(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{value:.1%}"
    if unit == "points":
        return f"{100 * value:+.1f} pp".replace("-", "−")
    if unit == "number":
        return (f"{value:,.0f}" if value == round(value) else f"{value:,.1f}").replace("-", "−")
    if unit == "probability":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return f"{value:.3f}".replace("-", "−")
