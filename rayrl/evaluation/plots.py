"""Draws lines, stacks, bars and radars as inline SVG that follows the page's colours, light or dark.

matplotlib writes fixed colours; each colour used here is a stand-in that is replaced by a CSS variable afterwards, and
texts stay texts in the page's own font. Legends are the page's (report.html.j2); names along an axis are laid out by
plot_labels.py. What is plotted is decided in figures.py.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rayrl.evaluation.plot_labels import FONT_PT, Labels, shortened, width_em

NUM_COLOURS = 8
MAX_POINTS = 300
_SERIES = [f"#0000{index + 1:02x}" for index in range(NUM_COLOURS)]  # stand-ins, see _page_colours
_INK, _GRID, _ON_BAR = "#0000a1", "#0000a2", "#0000a3"
_VARIABLES = {colour: f"var(--s{index})" for index, colour in enumerate(_SERIES)} | {
    _INK: "var(--muted)",
    _GRID: "var(--line)",
    _ON_BAR: "var(--card)",
}
_DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
_ROUND = [1, 2, 2.5, 5, 10]
_WIDE_IN, _NARROW_IN = 10.6, 5.2
_EM_A_INCH = 72 / FONT_PT
_RADAR_IN, _RIM_PAD_IN = 3.9, 0.16
"""Height of a radar, and the distance of its names."""
_BAR_NAMES, _RIM_EM, _SLANTED_EM = 0.45, 11.0, 15.0
"""Longest names: of bars, a share of the picture; around a radar and at a slant, so many em."""
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayrl",
    "font.size": FONT_PT,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Series:
    """One line (or row of points) of a plot."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    """With `high`: ends of intervals, drawn as bars on points."""
    high: list[float] | None = None
    points: bool = False
    """Measured now and then (evaluations), not at each step."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    label: str
    """Of the vertical axis."""
    series: list[Series]
    stacked: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Plot:
    """One figure of the report: panels above each other over the same steps (or what `x_label` says)."""

    title: str
    note: str
    panels: list[Panel]
    wide: bool = False
    tall: bool = False
    """As high as a plot with two panels, where it stands beside one."""
    x_label: str | None = None
    """Of a horizontal axis that isn't the training steps."""
    x_names: Sequence[str] = ()
    """What stands at 0, 1, 2 ... of it, where it isn't numbers."""
    names: list[str] = field(init=False)
    """Of its series, in the order of their colours."""

    def __post_init__(self) -> None:
        names = dict.fromkeys(series.name for panel in self.panels for series in panel.series)
        object.__setattr__(self, "names", list(names))

    @property
    def legend(self) -> list[tuple[str, int, str]]:
        """Name, colour and mark (line, points or area) of each series."""
        marks = {
            series.name: "area" if panel.stacked else "points" if series.points else "line"
            for panel in self.panels
            for series in panel.series
        }
        return [(name, index % NUM_COLOURS, marks[name]) for index, name in enumerate(self.names)]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.names


@dataclass(frozen=True)
class Bars:
    """Horizontal bars that add up to 1, one a name: wins, ties, losses (HuatuoGPT's Figures 3 to 5)."""

    title: str
    note: str
    names: Sequence[str]
    """Of the bars, from the top."""
    parts: Sequence[tuple[str, int, Sequence[float]]]
    """Name of a part, its colour and its share in every bar."""
    wide: bool = True

    @property
    def legend(self) -> list[tuple[str, int, str]]:
        """See Plot."""
        return [(name, colour, "area") for name, colour, _ in self.parts]

    @property
    def empty(self) -> bool:
        """See Plot."""
        return not self.names


@dataclass(frozen=True)
class Radar:
    """Several dimensions around a centre, one line a name."""

    title: str
    note: str
    axes: Sequence[str]
    series: Sequence[tuple[str, Sequence[float]]]
    """Name, and its value on every axis."""
    low: float
    high: float
    wide: bool = False

    @property
    def legend(self) -> list[tuple[str, int, str]]:
        """See Plot."""
        return [(name, index % NUM_COLOURS, "line") for index, (name, _) in enumerate(self.series)]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw: two axes make no figure."""
        return len(self.axes) < 3 or not self.series


Drawing = Plot | Bars | Radar
"""Whatever a page can show."""


def draw(plot: Drawing, prefix: str) -> Markup:
    """The plot as an `<svg>` element; `prefix` keeps its ids apart from those of the page's other plots."""
    labels = Labels()
    with matplotlib.rc_context(_STYLE):
        way = {Plot: _plot_canvas, Bars: _bars_canvas, Radar: _radar_canvas}[type(plot)]
        canvas = way(plot, labels)  # type: ignore[operator]
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    # drawn here from numbers, texts of our own, and names that both steps escape
    return Markup(labels.put_in(_page_colours(out.getvalue(), plot.title, prefix)))


def _bars_canvas(plot: Bars, labels: Labels) -> Canvas:
    width_in = _WIDE_IN if plot.wide else _NARROW_IN
    canvas = Canvas(figsize=(width_in, 0.7 + 0.34 * len(plot.names)))
    FigureCanvasSVG(canvas)
    axes = canvas.subplots()
    rows = np.arange(len(plot.names))[::-1]
    base = np.zeros(len(rows))
    for _, colour, shares in plot.parts:
        values = np.asarray(shares, dtype=float)
        axes.barh(rows, values, left=base, height=0.62, color=_SERIES[colour], alpha=0.85)
        for row, left, value in zip(rows, base, values, strict=True):
            if value >= 0.06:
                axes.text(left + value / 2, row, f"{value:.0%}", ha="center", va="center", color=_ON_BAR)
        base = base + values
    axes.set_yticks(rows, labels.stand_ins(plot.names, _BAR_NAMES * width_in * _EM_A_INCH))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(False)
    canvas.tight_layout(pad=0.4)
    return canvas


def _radar_canvas(plot: Radar, labels: Labels) -> Canvas:
    canvas = Canvas(figsize=(_NARROW_IN, _RADAR_IN))
    FigureCanvasSVG(canvas)
    angles = np.linspace(0, 2 * np.pi, len(plot.axes), endpoint=False)
    sides = [round(math.sin(angle), 6) for angle in angles]
    names = [shortened(name, _RIM_EM) for name in plot.axes]
    radius_in = _radius_in([width_em(name) / _EM_A_INCH for name in names], sides)
    width, height = radius_in / _NARROW_IN, radius_in / _RADAR_IN
    axes: Any = canvas.add_axes((0.5 - width, 0.5 - height, 2 * width, 2 * height), projection="polar")
    closed = np.append(angles, angles[0])
    for index, (_, values) in enumerate(plot.series):
        line = np.append(values, values[0])
        style = _DASHES[index % len(_DASHES)]
        axes.plot(closed, line, color=_SERIES[index % NUM_COLOURS], linewidth=1.6, linestyle=style)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, labels.stand_ins(plot.axes, _RIM_EM))
    for label, side in zip(axes.get_xticklabels(), sides, strict=True):  # away from the rim
        label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    axes.tick_params(axis="x", pad=1)
    axes.set_ylim(plot.low, plot.high if plot.high > plot.low else plot.low + 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(True, color=_GRID)
    axes.spines["polar"].set_color(_GRID)
    return canvas


def _radius_in(widths_in: Sequence[float], sides: Sequence[float]) -> float:
    """The largest circle beside which all names fit. `sides`: sine of each name's angle from the top."""
    room = [
        (_NARROW_IN / 2 - width - _RIM_PAD_IN) / abs(side) for width, side in zip(widths_in, sides, strict=True) if side
    ]
    return min(_RADAR_IN / 2 - 2 * _RIM_PAD_IN, *room)


def _plot_canvas(plot: Plot, labels: Labels) -> Canvas:
    panels = [panel for panel in plot.panels if panel.series]
    height = 3.3 if len(panels) > 1 or plot.tall else 2.3
    width_in = _WIDE_IN if plot.wide else _NARROW_IN
    canvas = Canvas(figsize=(width_in, height))
    FigureCanvasSVG(canvas)
    grid = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        _draw_panel(axes, panel, plot.names)
    grid[-1, 0].set_xlabel(plot.x_label or "training steps")
    if plot.x_names:
        _name_steps(grid[-1, 0], plot.x_names, 0.85 * width_in * _EM_A_INCH / len(plot.x_names), labels)
        if all(series.points for panel in panels for series in panel.series):
            grid[-1, 0].set_xlim(-0.5, len(plot.x_names) - 0.5)
    else:
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=plot.x_label is None, steps=_ROUND))
    canvas.align_ylabels()
    canvas.tight_layout(pad=0.4)
    return canvas


def _name_steps(axes: Axes, names: Sequence[str], room_em: float, labels: Labels) -> None:
    """Names of 0, 1, 2 ...: at a slant where one doesn't fit between its neighbours."""
    fits = all(width_em(name) <= room_em - 1 for name in names)
    slant: dict[str, Any] = {} if fits else {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), labels.stand_ins(names, max(room_em, _SLANTED_EM)), **slant)


def _draw_panel(axes: Axes, panel: Panel, names: list[str]) -> None:
    axes.set_ylabel(panel.label)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1.02)
    if panel.stacked:
        _draw_stack(axes, panel.series, names)
        return
    for series in panel.series:
        index = names.index(series.name)
        (_draw_points if series.points else _draw_line)(axes, series, _SERIES[index % NUM_COLOURS], index)


def _draw_line(axes: Axes, series: Series, colour: str, index: int) -> None:
    x, y = _thinned(series.x), _thinned(series.y)
    window = len(x) // 12
    mark = "o" if len(x) == 1 else ""
    if window < 3:
        axes.plot(x, y, color=colour, linewidth=1.5, linestyle=_DASHES[index % len(_DASHES)], marker=mark, markersize=4)
        return
    axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(x, moving_mean(y, window), color=colour, linewidth=1.7, linestyle=_DASHES[index % len(_DASHES)])


def _draw_points(axes: Axes, series: Series, colour: str, index: int) -> None:
    x, y = np.array(series.x), np.array(series.y)
    if series.low is not None and series.high is not None:
        axes.vlines(x, series.low, series.high, color=colour, linewidth=1.6, alpha=0.55)
    axes.plot(x, y, color=colour, linewidth=0.9, linestyle=":", marker="o", markersize=4.5)


def _draw_stack(axes: Axes, series: list[Series], names: list[str]) -> None:
    x = np.array(_thinned(series[0].x))
    half = (x[1] - x[0]) / 2 if len(x) > 1 else 0.5
    edges = np.append(x - half, x[-1] + half)
    base = np.zeros(len(edges))
    for one in series:
        y = _thinned(one.y)
        top = base + np.append(y, y[-1])
        colour = _SERIES[names.index(one.name) % NUM_COLOURS]
        axes.fill_between(edges, base, top, step="post", color=colour, alpha=0.85, linewidth=0)
        base = top
    axes.set_ylim(0, float(base.max()) * 1.05 or 1.0)
    axes.margins(x=0)


def moving_mean(y: np.ndarray, window: int) -> np.ndarray:
    """The mean over a window around each point, shorter at the ends. Example: ([1, 2, 6], 3) -> [1.5, 3, 4]"""
    sums = np.concatenate([[0.0], np.cumsum(y)])
    centre = np.arange(len(y))
    low, high = np.maximum(0, centre - window // 2), np.minimum(len(y), centre + (window + 1) // 2)
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _thinned(values: list[float]) -> np.ndarray:
    """At most MAX_POINTS values: means of equal stretches, so that a run of any length makes a small file."""
    array = np.asarray(values, dtype=float)
    if len(array) <= MAX_POINTS:
        return array
    return np.array([part.mean() for part in np.array_split(array, MAX_POINTS)])


def _page_colours(svg: str, title: str, prefix: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r"#0000[0-9a-f]{2}\b", lambda found: _VARIABLES.get(found[0], found[0]), svg)
    box, body = re.fullmatch(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>(.*)', svg, flags=re.S).groups()  # type: ignore[union-attr]
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">{body}'
