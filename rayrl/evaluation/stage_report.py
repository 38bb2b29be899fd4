"""One self-contained HTML page for a stage: a headline, facts, tiles, tables and plots, under the run report's style.

A stage says what is on its page (`Page`); texts are escaped, nothing is fetched and no script runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rayrl.evaluation.plots import Plot, draw


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first cell of a row names it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """What a stage's page shows, from the top."""

    kind: str
    """What it is a report of. Example: "reward model" """
    name: str
    headline: str
    tone: str
    """`good`, `bad` or `open`."""
    detail: str
    facts: Sequence[tuple[str, str]] = ()
    tiles: Sequence[tuple[str, str, str]] = ()
    """Label, value, note."""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    config: str = ""
    """The resolved configuration as YAML."""


def write_page(path: Path, page: Page) -> None:
    """Writes the page, whole or not at all."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(render_page(page), encoding="utf-8", errors="replace")
    beside.replace(path)


def render_page(page: Page) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("rayrl", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.lstrip_blocks = True
    figures: list[dict[str, Any]] = [
        {"plot": plot, "svg": None if plot.empty else draw(plot, f"plot{number}")}
        for number, plot in enumerate(page.plots)
    ]
    return environment.get_template("stage_report.html.j2").render(page=page, figures=figures)
