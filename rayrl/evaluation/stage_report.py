"""A stage's report.html: one self-contained page of a headline, numbers, tables, plots and the configuration.

What stands on it is the stage's business (sft_report.py); how it looks is the template's (assets/stage_report.html.j2).
Texts are escaped, nothing is fetched and no script runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl.evaluation.plots import Drawing
from rayrl.evaluation.report import ROLES, config_lines, page_environment, read_config, shown


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first cell of a row names it."""

    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    ends_in_words: bool = False
    """The last column holds words, not numbers."""


@dataclass(frozen=True)
class SideBySide:
    """One question with several answers beside each other."""

    id: str
    turns: Sequence[tuple[str, str]]
    """Role (user, assistant) and text, up to what is answered."""
    answers: Sequence[tuple[str, str, str]]
    """Name, text, and how it is marked: "", `after` or `reference`."""
    mark: str = ""
    """In a word, who did well."""
    chips: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class TextGroup:
    """Questions of one kind."""

    title: str
    about: str
    items: Sequence[SideBySide]


@dataclass(frozen=True)
class Page:
    """What a stage's page shows, from the top."""

    kind: str
    """What it is a report of. Example: "fine-tuning" """
    headline: str
    detail: str
    tone: str = "open"
    """`good`, `bad` or `open`: how the headline is marked."""
    facts: Sequence[tuple[str, str]] = ()
    tiles: Sequence[tuple[str, str, str]] = ()
    """Label, value, note."""
    tables: Sequence[Table] = ()
    sections: Sequence[tuple[str, Sequence[Drawing]]] = ()
    """Title and plots of each."""
    figures_first: bool = False
    """Plots stand before the tables."""
    texts: Sequence[TextGroup] = ()


def write_page(folder: Path, page: Page) -> Path:
    """Writes `folder`/report.html, whole or not at all, with the folder's config.yaml at its end; returns its path."""
    path = folder / "report.html"
    beside = folder / "report.html.new"
    name = folder.resolve().name.removesuffix(".partial")
    html = render_page(name, page, read_config(folder / "config.yaml"))
    beside.write_text(html, encoding="utf-8", errors="replace")
    beside.replace(path)
    return path


def render_page(name: str, page: Page, config: Mapping[str, Any]) -> str:
    """The page's HTML. `name`: of the run; `config`: as its config.yaml says, with secrets masked."""
    sections = [
        (title, [shown(plot, f"section{number}-{i}") for i, plot in enumerate(plots)])
        for number, (title, plots) in enumerate(page.sections)
    ]
    template = page_environment().get_template("stage_report.html.j2")
    return template.render(name=name, page=page, sections=sections, config=config_lines(config), roles=ROLES)
