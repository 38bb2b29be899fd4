"""What training changed on the held-out prompts: summary.json and the table at the end of a run.

Compares two evaluations of the same prompts. All intervals are over prompts (statistics.py); differences are paired,
prompt by prompt. It knows no reward and no rule: whether an answer asks a question is a callable that it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rayrl.evaluation.statistics import Estimate, by_prompt, mean_interval, paired_difference, proportion_interval
from rayrl.types import Sample

Comparison = dict[str, Any]
"""`before`, `after` and `difference`, each an Estimate as a mapping (or None), and `unit`: score, share or tokens."""


def build_summary(
    before: Sequence[Sample],
    after: Sequence[Sample],
    *,
    asks_question: Callable[[str], bool],
    complete: Mapping[str, bool | None],
    kl: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The content of summary.json.

    `complete` maps prompt ids to whether nothing is missing from the prompt (None: not known; such prompts are in no
    question share). `kl` holds the last step's `kl/...` metrics. Raises ValueError where an evaluation is empty, holds
    training samples, or shares no prompt with the other.
    """
    for name, samples in (("before", before), ("after", after)):
        if not samples:
            raise ValueError(f"summary: the evaluation {name} training has no samples")
        if any(sample.split != "heldout" for sample in samples):
            raise ValueError(f"summary: the evaluation {name} training holds samples of split 'train'")
    if not {sample.prompt_id for sample in before} & {sample.prompt_id for sample in after}:
        raise ValueError("summary: the two evaluations share no prompt; evaluate the same held-out prompts")
    sources = list(dict.fromkeys(name for sample in (*before, *after) for name in sample.raw))
    shares = {
        name: _compare(before, after, _question_share(asks_question, complete, whole), "share")
        for name, whole in (("complete", True), ("incomplete", False))
    }
    mixed = _compare(before, after, lambda sample: sample.mixed, "score")
    return {
        "headline": _headline(mixed),
        "step_before": before[0].step,
        "step_after": after[0].step,
        "prompts": len({sample.prompt_id for sample in after}),
        "answers": len(after),
        "mixed": mixed,
        "verdict": _verdict(mixed["difference"]),
        "intervals_apart": _apart(mixed),
        "sources": {name: _compare(before, after, _raw(name), "score") for name in sources},
        "question_share": shares,
        "length": _compare(before, after, lambda sample: sample.num_tokens, "tokens"),
        "kl": {key.removeprefix("kl/"): value for key, value in (kl or {}).items()},
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, Comparison]]:
    """The summary's comparisons in the order in which they are shown, each with its label."""
    rows = [("Mixed score", summary["mixed"])]
    rows += list(summary["sources"].items())
    rows += [
        ("Asks a question where needed", summary["question_share"]["incomplete"]),
        ("Asks a question where not needed", summary["question_share"]["complete"]),
        ("Answer length, tokens", summary["length"]),
    ]
    return rows


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summary for a console: before, after, difference, each with its 95% interval."""
    table = Table(
        title=Text(f"{summary['prompts']} held-out prompts, {summary['answers']} answers, 95% intervals"),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", overflow="fold")
    for name in ("before", "after", "difference"):
        table.add_column(name, justify="right")
    for label, row in summary_rows(summary):
        cells = [_cell(row[name], row["unit"]) for name in ("before", "after")]
        table.add_row(Text(label), *cells, _cell(row["difference"], row["unit"], signed=True))
    for key, value in summary["kl"].items():
        table.add_row(Text(f"KL {key.replace('_', ' ')}"), "", Text(f"{value:.4g}"), "")
    return table


def format_number(value: float, unit: str, signed: bool = False) -> str:
    """A number in its unit: scores with three digits, shares in percent (changes in points), tokens with one digit."""
    sign = "+" if signed else ""
    shown = f"{100 * value:{sign}.1f}" if unit == "share" else f"{value:{sign}.{1 if unit == 'tokens' else 3}f}"
    suffix = {"share": " pp" if signed else "%"}.get(unit, "")
    return shown.replace("-", "−") + suffix


def format_interval(estimate: Mapping[str, Any], unit: str, signed: bool = False) -> str:
    """`0.380 to 0.460`; empty where one prompt alone gave none."""
    if estimate["low"] is None:
        return ""
    low, high = (format_number(estimate[end], unit, signed).removesuffix(" pp") for end in ("low", "high"))
    return f"{low} to {high}"


def is_clear(difference: Mapping[str, Any] | None) -> bool:
    """Whether a difference's interval leaves out zero."""
    return difference is not None and difference["low"] is not None and difference["low"] * difference["high"] > 0


def _cell(estimate: Mapping[str, Any] | None, unit: str, signed: bool = False) -> Text:
    if estimate is None:
        return Text("–")
    strong = "bold" if signed and is_clear(estimate) else ""
    mean = (format_number(estimate["mean"], unit, signed), strong)
    return Text.assemble(mean, "\n", (format_interval(estimate, unit, signed), "dim"))


def _compare(
    before: Sequence[Sample], after: Sequence[Sample], value: Callable[[Sample], float | None], unit: str
) -> Comparison:
    """Both evaluations of one quantity; a sample for which `value` is None isn't counted."""
    first, last = (
        by_prompt((sample.prompt_id, number) for sample in samples if (number := value(sample)) is not None)
        for samples in (before, after)
    )
    estimate = _share if unit == "share" else mean_interval
    difference = paired_difference(first, last) if first.keys() & last.keys() else None
    return {
        "unit": unit,
        "before": asdict(estimate(first.values())) if first else None,
        "after": asdict(estimate(last.values())) if last else None,
        "difference": asdict(difference) if difference else None,
    }


def _share(values: Any) -> Estimate:
    shares = list(values)
    return proportion_interval(sum(shares), len(shares))


def _raw(name: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.raw.get(name)


def _question_share(
    asks_question: Callable[[str], bool], complete: Mapping[str, bool | None], whole: bool
) -> Callable[[Sample], float | None]:
    def share(sample: Sample) -> float | None:
        return float(asks_question(sample.response)) if complete.get(sample.prompt_id) is whole else None

    return share


def _headline(mixed: Comparison) -> str:
    before, after = (format_number(mixed[end]["mean"], "score") for end in ("before", "after"))
    return f"held-out score {before} → {after}, {_verdict(mixed['difference'])}"


def _verdict(difference: Mapping[str, Any]) -> str:
    if not is_clear(difference):
        return "no clear change"
    return "rose" if difference["mean"] > 0 else "fell"


def _apart(mixed: Comparison) -> bool:
    """Whether the intervals before and after don't overlap."""
    before, after = mixed["before"], mixed["after"]
    if before["low"] is None or after["low"] is None:
        return False
    return bool(after["low"] > before["high"] or before["low"] > after["high"])
