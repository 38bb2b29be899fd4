"""The pipeline on the console: one tree, a line a stage, and below the running one what it says last.

Whatever a stage prints goes to `NAME.log` in the pipeline's folder. On a terminal the tree is redrawn in place; else
each stage is a line when it starts and one when it ends, its own lines between, indented.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from rayrl.tracking.progress import duration

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "done": ("✓", "green"),
    "skipped": ("✓", "dim"),
    "failed": ("✗", "red"),
}


class PipelineTree:
    """The display. Use as a context; in it `skip`, or `with running(NAME)` and then `finish`."""

    def __init__(self, folder: Path, names: list[str], console: Console | None = None) -> None:
        """`console`: by default the process's standard output as it is now."""
        self.console = console or Console(file=sys.stdout)
        self._folder, self._names = folder, names
        self._states = dict.fromkeys(names, "waiting")
        self._said = dict.fromkeys(names, "")
        self._seconds: dict[str, float] = {}
        self._started = 0.0
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._tree,
                console=self.console,
                refresh_per_second=2,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> PipelineTree:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def skip(self, name: str, seconds: float, said: str) -> None:
        """The stage was done before."""
        self._states[name], self._seconds[name], self._said[name] = "skipped", seconds, said
        self._say(f"{self._where(name)} {name}: done before{_after(said)}")

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """The stage runs in the block; what it prints goes to its log."""
        self._states[name], self._started = "running", time.monotonic()
        self._say(f"{self._where(name)} {name}: started")
        with (self._folder / f"{name}.log").open("a", encoding="utf-8") as log:
            lines = _Lines(log, lambda line: self._heard(name, line))
            try:
                with contextlib.redirect_stdout(lines), _logging_to(lines):
                    yield
            except BaseException:
                self._states[name] = "failed"
                raise
            finally:
                self._seconds[name] = time.monotonic() - self._started

    def finish(self, name: str, said: str) -> None:
        """The stage has ended well; `said` is its result in a few words."""
        self._states[name], self._said[name] = "done", said
        self._say(f"{self._where(name)} {name}: done in {duration(self._seconds[name])}{_after(said)}")

    def _heard(self, name: str, line: str) -> None:
        self._said[name] = line
        self._say(f"    {line}")

    def _say(self, line: str) -> None:
        if not self._live:
            self.console.print(Text(line), soft_wrap=True)

    def _where(self, name: str) -> str:
        return f"[{self._names.index(name) + 1}/{len(self._names)}]"

    def _tree(self) -> Tree:
        tree = Tree(Text(str(self._folder), style="bold"), guide_style="dim")
        width = max(map(len, self._names))
        for name in self._names:
            state = self._states[name]
            mark, style = MARKS[state]
            seconds = time.monotonic() - self._started if state == "running" else self._seconds.get(name)
            took = "" if seconds is None else duration(seconds)
            head = Text.assemble((mark, style), " ", (name.ljust(width), "bold"), f"  {took:>7}", no_wrap=True)
            said = Text(self._said[name], style="dim" if state == "running" else "", overflow="ellipsis", no_wrap=True)
            if state == "running":
                tree.add(head).add(said)
            else:
                tree.add(Text.assemble(head, "  ", said, overflow="ellipsis", no_wrap=True))
        return tree


class _Lines(io.TextIOBase):
    """A text stream that writes to a log and hands on every whole line that isn't blank."""

    def __init__(self, log: TextIO, heard: Callable[[str], None]) -> None:
        self._log, self._heard, self._rest = log, heard, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._heard(line.rstrip())
        return len(text)


@contextlib.contextmanager
def _logging_to(stream: io.TextIOBase) -> Iterator[None]:
    """The process's log handlers write to `stream` inside the block: their lines would tear the tree."""
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    before = [handler.setStream(stream) for handler in handlers]
    try:
        yield
    finally:
        for handler, old in zip(handlers, before, strict=True):
            if old is not None:
                handler.setStream(old)


def _after(said: str) -> str:
    return f": {said}" if said else ""
