"""What a corpus' report shows, from the manifests of its stages: the funnel, what was dropped and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayrl.evaluation.plots import NUM_COLOURS, Panel, Plot, Series
from rayrl.evaluation.stage_report import Page, Table

Counts = Mapping[str, Any]
"""A stage's `counts` of its manifest."""
OTHERS = "others"
_MAX_SOURCES = 30
_EXAMPLE_CHARS = 120


def corpus_page(stages: Mapping[str, Counts]) -> Page:
    """The page of a run. `stages`: by name, in their order."""
    first, last = next(iter(stages.values())), list(stages.values())[-1]
    start, end = _total(first, "in"), _total(last, "out")
    share = end["bytes"] / max(1, start["bytes"])
    names = ", ".join(stages)
    return Page(
        kind="corpus",
        headline=f"{_size(end['bytes'])} of {_size(start['bytes'])} kept, in {end['rows']:,} texts",
        detail=f"{share:.1%} of the bytes that were read, after {names}.",
        facts=[
            ("Stages", str(len(stages))),
            ("Documents read", f"{start['rows']:,}"),
            ("Texts out", f"{end['rows']:,}"),
        ],
        tiles=[
            (name, f"{_total(one, 'out')['chars'] / max(1, start['chars']):.1%}", _tile(one))
            for name, one in stages.items()
        ],
        tables=[_funnel(stages), *_by(stages), _reasons(stages), _notes(stages)],
        sections=[
            (
                "Plots",
                [
                    _plot(stages, "language", "By language"),
                    _plot(stages, "genre", "By genre"),
                    _plot(stages, "source", "By source"),
                    _dropped_plot(stages),
                ],
            )
        ],
    )


def _tile(counts: Counts) -> str:
    return f"of the characters left, {_total(counts, 'out')['rows']:,} texts"


def _total(counts: Counts, side: str) -> dict[str, int]:
    rows = counts["sizes"][side]
    return {key: sum(row[key] for row in rows) for key in ("rows", "chars", "bytes")}


def _funnel(stages: Mapping[str, Counts]) -> Table:
    first = _total(next(iter(stages.values())), "in")
    rows = [("input", f"{first['rows']:,}", f"{first['chars']:,}", _size(first["bytes"]), "100.0%")]
    for name, counts in stages.items():
        out = _total(counts, "out")
        share = out["bytes"] / max(1, first["bytes"])
        rows.append((name, f"{out['rows']:,}", f"{out['chars']:,}", _size(out["bytes"]), f"{share:.1%}"))
    caption = (
        "What each stage left. After `segment` a row is a segment; after `unify` a question with its answer, measured "
        "by the text that it was made from, neighbours included."
    )
    return Table("Funnel", caption, ("After", "Rows", "Characters", "Size", "Of the input's bytes"), rows)


def _by(stages: Mapping[str, Counts]) -> list[Table]:
    tables = []
    for key in ("language", "genre", "source"):
        sizes = _sizes(stages, key)
        shown = list(sizes)[:_MAX_SOURCES]
        rows = []
        for name in shown:
            start, *rest = sizes[name]
            rows.append((name or "none", f"{start:,}", *(f"{chars / start:.1%}" if start else "" for chars in rest)))
        more = f" {len(sizes) - len(shown)} smaller ones aren't shown." if len(sizes) > len(shown) else ""
        caption = f"Characters of the input, and the share of them left after each stage, by {key}.{more}"
        tables.append(Table(f"By {key}", caption, (key.capitalize(), "Characters", *stages), rows))
    return tables


def _reasons(stages: Mapping[str, Counts]) -> Table:
    rows = []
    for name, counts in stages.items():
        for reason, entry in sorted(counts["reasons"].items(), key=lambda item: -item[1]["chars"]):
            examples = " | ".join(_short(example["text"]) for example in entry["examples"])
            rows.append((f"{name}: {reason}", f"{entry['rows']:,}", f"{entry['chars']:,}", examples))
    caption = "Texts that were dropped, with the first of them as examples."
    return Table("Dropped", caption, ("Reason", "Rows", "Characters", "Examples"), rows, ends_in_words=True)


def _notes(stages: Mapping[str, Counts]) -> Table:
    rows = [
        (f"{name}: {note}", f"{count:,}")
        for name, counts in stages.items()
        for note, count in sorted(counts["notes"].items(), key=lambda item: ("more" in item[0], item[0]))
        if count
    ]
    caption = "Masks, sizes of groups of duplicates, requests, answers that departed from their texts."
    return Table("Counted beside", caption, ("What", "Number"), rows)


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _EXAMPLE_CHARS else words[:_EXAMPLE_CHARS] + "…"


def _sizes(stages: Mapping[str, Counts], key: str) -> dict[str, list[int]]:
    """Characters of the input and after each stage, by the values of a key; the largest first."""
    sides = [(next(iter(stages.values())), "in"), *((counts, "out") for counts in stages.values())]
    sizes: dict[str, list[int]] = {}
    for column, (counts, side) in enumerate(sides):
        for row in counts["sizes"][side]:
            sizes.setdefault(row[key], [0] * len(sides))[column] += row["chars"]
    return dict(sorted(sizes.items(), key=lambda item: (-item[1][0], item[0])))


def _plot(stages: Mapping[str, Counts], key: str, title: str) -> Plot:
    sizes = _sizes(stages, key)
    shown = dict(list(sizes.items())[: NUM_COLOURS - 1])
    rest = list(sizes.values())[NUM_COLOURS - 1 :]
    if rest:
        shown[OTHERS] = [sum(column) for column in zip(*rest, strict=True)]
    x = [float(position) for position in range(len(stages) + 1)]
    series = [Series(name or "none", x, [chars / 1e6 for chars in values]) for name, values in shown.items()]
    note = f"Millions of characters left after each stage, by {key}."
    panel = Panel("million characters", series, stacked=True)
    return Plot(title, note, [panel], wide=True, x_label="after the stage", x_names=["input", *stages])


def _dropped_plot(stages: Mapping[str, Counts]) -> Plot:
    x = [float(position) for position in range(len(stages))]
    series = []
    for reason in dict.fromkeys(reason for counts in stages.values() for reason in counts["reasons"]):
        values = [counts["reasons"].get(reason, {"chars": 0})["chars"] / 1e6 for counts in stages.values()]
        series.append(Series(reason, x, values))
    series.sort(key=lambda one: -sum(one.y))
    panel = Panel("million characters", series[:NUM_COLOURS], stacked=True)
    note = "Millions of characters dropped by each stage, by the most frequent reasons."
    return Plot("Dropped, by reason", note, [panel], wide=True, x_label="by the stage", x_names=list(stages))


def _size(num_bytes: int) -> str:
    """Example: 24531730 -> "24.5 MB" """
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{num_bytes} B"


def summary_of(stages: Mapping[str, Counts]) -> dict[str, Any]:
    """For summary.json: totals after each stage."""
    last = list(stages.values())[-1]
    end = _total(last, "out")
    return {
        "headline": f"{end['rows']:,} texts of {end['chars'] / 1e6:,.2f} million characters after {list(stages)[-1]}",
        "stages": {
            name: {"in": _total(one, "in"), "out": _total(one, "out"), "dropped": one["dropped"]}
            for name, one in stages.items()
        },
    }
