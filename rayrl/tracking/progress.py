"""What a run shows while it works: a live panel on a terminal, one plain line a step and phase anywhere else.

`PhaseClock` is the one place that measures wall time by phase, for the display and for the `time/...` metrics alike.
Nothing is shown that isn't in metrics.jsonl; sample texts are printed by loggers.py, and only on request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

STEPS_FOR_MEDIAN = 20


class PhaseClock:
    """Wall time by phase since the last `take`; phases don't overlap and time outside of them is the coordinator's."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds: dict[str, float] = {}
        self._began = now()
        self.current: tuple[str, float] | None = None
        """Name of the phase that is going on, and when it began."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block as `name`'s. Raises RuntimeError inside another phase."""
        if self.current:
            raise RuntimeError(f"phase {name!r} began inside {self.current[0]!r}; end that one first")
        self.current = (name, self._now())
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - self.current[1]
            self.current = None

    def elapsed(self) -> float:
        """Seconds that the current phase has taken so far (0 between phases)."""
        return self._now() - self.current[1] if self.current else 0.0

    def take(self) -> dict[str, float]:
        """Seconds as metrics (`time/PHASE`, `time/step`, `time/coordinator`), and begin to count anew."""
        now = self._now()
        step = now - self._began
        taken = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        taken |= {"time/coordinator": max(0.0, step - sum(taken.values())), "time/step": step}
        self._seconds, self._began = {}, now
        return taken


class TimeLeft:
    """Remaining time from the median of the last steps: one slow step (a checkpoint) doesn't move it."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=STEPS_FOR_MEDIAN)

    def add(self, seconds: float) -> None:
        """A step took this long."""
        self._steps.append(seconds)

    def seconds(self, steps_left: int) -> float | None:
        """Seconds that so many steps will take; None before the first."""
        return median(self._steps) * steps_left if self._steps else None


class Progress:
    """The display. Use as a context; in it, `with progress.phase(NAME)` and, once a step, `finish_step`."""

    def __init__(
        self,
        total_steps: int,
        *,
        first_step: int = 0,
        enabled: bool = True,
        console: Console | None = None,
        clock: PhaseClock | None = None,
        title: str = "rayrl ppo",
    ) -> None:
        """`first_step` is where a resumed run goes on; with `enabled` false only the clock runs."""
        self.console = console or Console()
        self.clock = clock or PhaseClock()
        self._total, self._done, self._title = total_steps, first_step, title
        self._left = TimeLeft()
        self._metrics: Mapping[str, float] = {}
        self._before: Mapping[str, float] = {}
        self._plain = enabled and not self.console.is_terminal
        self._live: Live | None = None
        if enabled and self.console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=2)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show `name` as what happens now, and count its time."""
        if self._plain:
            self._say(f"{self._where()}  {name} ...")
        with self.clock.phase(name):
            yield

    def finish_step(self, metrics: Mapping[str, float]) -> None:
        """A step is over, and this is its metrics row (with `time/step`, as `clock.take()` gives it)."""
        self._left.add(metrics["time/step"])
        self._before, self._metrics = self._metrics, metrics
        if self._plain:
            self._say(f"{self._where()}  {step_line(metrics)}{self._remaining(', ')}")
        self._done += 1

    def rewind(self, step: int) -> None:
        """Steps from `step` on are done again."""
        self._done = step

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _where(self) -> str:
        width = len(str(self._total))
        return f"[{min(self._done + 1, self._total):>{width}}/{self._total}]"

    def _remaining(self, before: str = "") -> str:
        left = self._left.seconds(self._total - self._done - (1 if self._plain else 0))
        return "" if not left else f"{before}about {duration(left)} left"

    def _panel(self) -> Panel:
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=self._total, completed=self._done, complete_style="cyan", finished_style="green")
        head.add_row(Text(f"iteration {self._done}/{self._total}", style="bold"), bar, Text(self._remaining()))
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim", no_wrap=True)
        body.add_column(overflow="fold")
        current = self.clock.current
        now = f"{current[0]}  {duration(self.clock.elapsed())}" if current else "between phases"
        body.add_row("now", Text(now, style="cyan"))
        if self._metrics:
            for name, value in panel_rows(self._metrics, self._before):
                body.add_row(name, value)
        return Panel(Group(head, body), title=Text(self._title, style="bold"), title_align="left", border_style="dim")


def panel_rows(metrics: Mapping[str, float], before: Mapping[str, float]) -> list[tuple[str, Text]]:
    """The panel's lines from the last step's metrics; `before` is the step before it, for the score's direction."""
    score = Text()
    for name, value in scores(metrics).items():
        key = f"score/{name}"
        arrow = "" if key not in before else "▲ " if value > before[key] else "▼ " if value < before[key] else ""
        score.append(f"{name} ", style="bold" if name == "mixed" else "").append(f"{value:.3f} ", style="bold cyan")
        score.append(arrow or " ", style="dim")
        score.append("  ")
    policy = [
        f"{label} {metrics[key]:{form}}"
        for label, key, form in (
            ("per sequence", "kl/mean_per_sequence", ".3f"),
            ("coefficient", "kl/coef", ".4g"),
        )
        if key in metrics
    ]
    speed = [
        f"{metrics[key]:,.0f} {label}"
        for label, key in (("tokens/s", "time/tokens_per_second"), ("tokens an answer", "length/mean"))
        if key in metrics
    ]
    lines = [
        ("score", score),
        ("KL", Text("   ".join(policy))),
        ("speed", Text("   ".join(speed))),
        ("last step", Text(_times(metrics))),
    ]
    return [(name, text) for name, text in lines if text.plain]


def step_line(metrics: Mapping[str, float]) -> str:
    """A step's metrics in one plain line; what wasn't measured is left out."""
    parts = ["score " + " ".join(f"{name} {value:.3f}" for name, value in scores(metrics).items())]
    if "kl/mean_per_sequence" in metrics:
        parts.append(f"KL {metrics['kl/mean_per_sequence']:.3f}")
    if "time/tokens_per_second" in metrics:
        parts.append(f"{metrics['time/tokens_per_second']:,.0f} tokens/s")
    parts.append(_times(metrics))
    return ", ".join(part for part in parts if part != "score ")


def scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Mean raw score by source, the mixture first."""
    found = {key.removeprefix("score/"): value for key, value in metrics.items() if key.startswith("score/")}
    return {name: found[name] for name in sorted(found, key=lambda name: name != "mixed")}


def duration(seconds: float) -> str:
    """Seconds as a person says them. Examples: 7.6 s, 3 min 20 s, 2 h 05 min"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _times(metrics: Mapping[str, float]) -> str:
    named = {key.removeprefix("time/"): value for key, value in metrics.items() if key.startswith("time/")}
    parts = [f"{name} {value:.1f}" for name, value in named.items() if name not in ("step", "tokens_per_second")]
    inside = f" ({', '.join(parts)})" if parts else ""
    return duration(named["step"]) + inside if "step" in named else ""
