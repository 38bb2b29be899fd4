"""What the preference store holds, in numbers: verdicts by rater, how the judge favours a position, who agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from rayrl.types import Comparison, Verdict

REASONS_SHOWN = 10


def rater_table(rows: Sequence[Comparison]) -> dict[str, dict[str, Any]]:
    """By rater: rows; how many of each verdict; for a judge also `inconsistent_share` and its position bias.

    `inconsistent_share`: of the pairs that it judged in both orders, those whose orders disagree.
    `first_shown_wins`, `second_shown_wins`: of the same pairs, those in which the answer shown first (second) scored
    higher in both orders. Without a preference for a position both are about equal; their difference is the bias.
    """
    by_rater: dict[str, list[Comparison]] = {}
    for row in rows:
        by_rater.setdefault(row.rater, []).append(row)
    table: dict[str, dict[str, Any]] = {}
    for rater, own in by_rater.items():
        verdicts = Counter(row.verdict for row in own)
        table[rater] = {"rows": len(own), **{verdict: verdicts[verdict] for verdict in get_args(Verdict)}}
        leads = [_leads(row) for row in own if _both_orders(row)]
        if leads:
            table[rater] |= {
                "inconsistent_share": verdicts["inconsistent"] / len(leads),
                "first_shown_wins": sum(ab > 0 > ba for ab, ba in leads) / len(leads),
                "second_shown_wins": sum(ab < 0 < ba for ab, ba in leads) / len(leads),
            }
    return table


def reasons(rows: Sequence[Comparison]) -> dict[str, int]:
    """Why rows were set aside, the most frequent reasons first."""
    counts = Counter(f"{row.rater}: {row.reason}" for row in rows if row.verdict == "set_aside")
    shown = dict(counts.most_common(REASONS_SHOWN))
    rest = counts.total() - sum(shown.values())
    return {**shown, "other reasons": rest} if rest else shown


def headline(rows: Sequence[Comparison]) -> str:
    """One line: how many comparisons, by how many raters, how many of them with a verdict."""
    usable = sum(row.verdict in ("a", "b", "tie") for row in rows)
    raters = len({row.rater for row in rows})
    return f"{len(rows)} comparisons by {raters} rater{'s' * (raters != 1)}, {usable} with a verdict"


def _both_orders(row: Comparison) -> bool:
    return all(isinstance(row.scores.get(order), Sequence) for order in ("ab", "ba"))


def _leads(row: Comparison) -> tuple[float, float]:
    """By how much answer a leads, with a shown first and with b shown first."""
    ab, ba = row.scores["ab"], row.scores["ba"]
    return ab[0] - ab[1], ba[0] - ba[1]
