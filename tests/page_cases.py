"""Pages as tests look at them: their elements, and how a browser shows them."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest


class Page(HTMLParser):
    """The elements of a page, its visible text and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.plots: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        found = dict(attrs)
        if tag == "svg" and found.get("role") == "img":
            self.plots.append(found["aria-label"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def chromium(tmp_path: Path, html: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in headless Chromium."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("Chromium isn't installed; to see the report tested in a browser: apt-get install chromium")
    quiet = "--disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-gpu"
    where = [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", *options, html.as_uri()]
    return subprocess.run(
        [found[0], "--headless", "--no-sandbox", *quiet.split(), *where], capture_output=True, text=True, timeout=120
    )
