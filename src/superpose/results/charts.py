"""Charts as data, whatever draws them, and as PNG pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from superpose.files import whole_file

AXES = {
    "flops": "training FLOPs",
    "step": "optimizer steps",
    "raw_tokens": "raw tokens read",
    "latents": "latents computed",
    "seconds": "training seconds",
}
"""Quantities a run's curve can be drawn against; at equal steps FLOPs and latents are equal, the others are not."""

AMOUNTS = ("flops", "seconds", "raw_tokens", "latents")
"""Axes whose numbers are large or odd; all others have few places, which are named as they are."""
Role = Literal["ordinary", "tst", "other"]
Mark = tuple[dict[str, float], str]
"""A vertical line: its place on each axis, and what it says."""
FEW = 12
"""Points of a line up to which each one is drawn, so that a line of a single point is seen."""


@dataclass(frozen=True)
class Series:
    """One line or set of points.

    Attributes:
        x: places on each axis of the chart, by the axis' name.
        y: values; `low` and `high` are their intervals, None where there is none.
        role: whose it is; "other" takes a colour of its own.
        thin: one of many, in the background and without a name in the legend.
        points: drawn as points and not as a line.
    """

    name: str
    x: dict[str, list[float]]
    y: list[float]
    role: Role = "other"
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    thin: bool = False
    points: bool = False


@dataclass(frozen=True)
class Chart:
    """Series that share a y axis and can be drawn against each of the x axes.

    Attributes:
        axes: title of each x axis by its name; the first is shown first.
        level: a horizontal line, such as 0 for differences; it is always in the picture.
        log_x: whether places are drawn by their logarithm.
        y_range: what is shown of the y axis first; None for all.
        caption: what the reader sees, in a sentence or two.
    """

    title: str
    y_title: str
    axes: dict[str, str]
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    level: float | None = None
    log_x: bool = False
    y_range: tuple[float, float] | None = None
    caption: str = ""

    @property
    def shown(self) -> tuple[float, float] | None:
        """What the y axis shows first; None for whatever there is."""
        if self.y_range is not None or self.level is None:
            return self.y_range
        bars = [end for one in self.series for end in (*one.low, *one.high) if end is not None]
        values = [self.level, *(y for one in self.series for y in one.y), *bars]
        margin = 0.08 * (max(values) - min(values)) or 1.0
        return min(values) - margin, max(values) + margin

    def places(self, axis: str) -> list[float]:
        """Those of an x axis that are few enough to be named: budgets, seeds, ratios; none of amounts."""
        found = sorted({place for one in self.series for place in one.x[axis]})
        return [] if len(found) > FEW or axis in AMOUNTS else found


COLORS = {"ordinary": "#6b7280", "tst": "#2563eb"}
_MOST_ENDS = 3
"""Lines whose last values fit beside each other."""
OTHERS = ("#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#4b5563")


def color_of(series: Series, chart: Chart) -> str:
    """A series' colour: that of its role, or one of its own among the others of the chart."""
    if series.role in COLORS:
        return COLORS[series.role]
    others = [other.name for other in chart.series if other.role == "other"]
    return OTHERS[others.index(series.name) % len(OTHERS)]


def draw(chart: Chart, axes: Sequence[str], path: Path) -> None:
    """Writes a chart against one or more of its x axes, side by side."""
    canvas = drawn(chart, axes)
    with whole_file(path) as aside:
        canvas.print_png(str(aside))


def drawn(chart: Chart, axes: Sequence[str]) -> Any:
    """The picture as matplotlib has it, a FigureCanvasAgg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(axes) if len(axes) > 1 else 6, 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for series in chart.series:
            _draw_series(panel, series, axis, color_of(series, chart))
        for places, label in chart.marks:
            panel.axvline(places[axis], color=COLORS["tst"], linestyle=":", linewidth=1.2, label=_literal(label))
        if chart.level is not None:
            panel.axhline(chart.level, color="#9ca3af", linewidth=1)
        if chart.shown is not None:
            panel.set_ylim(*chart.shown)
        panel.margins(x=0.1)
        _label_ends(panel, chart, axis)
        _place_ticks(panel, chart, axis)
        panel.set_xlabel(chart.axes[axis])
        panel.grid(color="#e5e7eb", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(chart.y_title)
    panels[0].legend(frameon=False)
    return FigureCanvasAgg(figure)


def _place_ticks(panel: Any, chart: Chart, axis: str) -> None:
    """Names few places, none so near to another that the names would touch."""
    from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    if chart.log_x:
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
    if places := chart.places(axis):
        kept = apart(places, log=chart.log_x)
        panel.xaxis.set_major_locator(FixedLocator(kept))
        panel.xaxis.set_major_formatter(FixedFormatter([f"{place:,.6g}" for place in kept]))
        return
    if not chart.log_x:
        panel.xaxis.set_major_locator(MaxNLocator(5))
    # 2.5e+11 is read as it is written, without a power at the end of the axis; 240 k and 3 M for all else.
    panel.xaxis.set_major_formatter("{x:.3g}" if axis == "flops" else EngFormatter())


def apart(places: Sequence[float], log: bool = False, least: float = 0.11) -> list[float]:
    """Those of ascending places that are at least a share of the axis from the one before; the last is always kept."""
    scaled = [math.log(place) if log else place for place in places]
    width, kept = (scaled[-1] - scaled[0]) * least, [len(places) - 1]
    for number in range(len(places) - 2, -1, -1):
        if scaled[kept[-1]] - scaled[number] >= width:
            kept.append(number)
    return [places[number] for number in reversed(kept)]


def _label_ends(panel: Any, chart: Chart, axis: str) -> None:
    """Writes the last value beside each line, the higher one higher."""
    lines = [one for one in chart.series if one.y and not (one.thin or one.points or one.low)]
    if len(lines) > _MOST_ENDS:
        return
    for rank, series in enumerate(sorted(lines, key=lambda one: one.y[-1])):
        side = "top" if rank == 0 and len(lines) > 1 else "bottom" if rank == len(lines) - 1 else "center"
        panel.annotate(
            f"{series.y[-1]:.3f}",
            (series.x[axis][-1], series.y[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va=side,
            color=color_of(series, chart),
            fontsize=9,
        )


def _draw_series(panel: Any, series: Series, axis: str, color: str) -> None:
    x, marker = series.x[axis], "o" if len(series.y) <= FEW else ""
    if series.thin:
        panel.plot(x, series.y, color=color, linewidth=0.7, alpha=0.4, marker=marker, markersize=2)
        return
    style = {"linestyle": "none", "marker": "o"} if series.points else {"linewidth": 2, "marker": marker}
    panel.plot(x, series.y, color=color, label=_literal(series.name), markersize=5, **style)
    for place, y, low, high in zip(x, series.y, series.low, series.high, strict=False):
        bottom, top = y if low is None else low, y if high is None else high
        panel.plot([place, place], [bottom, top], color=color, linewidth=1.2, alpha=0.7)


def _literal(text: str) -> str:
    """Text that matplotlib is not to read as mathematics, or as a name to hide."""
    return text.replace("$", r"\$").lstrip("_")
