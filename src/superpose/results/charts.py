"""Charts as data, whatever draws them, and as PNG pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from superpose.errors import UserError
from superpose.files import whole_file
from superpose.train.records import Validation, read_records

AXES = {
    "flops": "training FLOPs",
    "step": "optimizer steps",
    "raw_tokens": "raw tokens read",
    "latents": "latents computed",
    "seconds": "training seconds",
}
"""Quantities a run's curve can be drawn against; at equal steps FLOPs and latents are equal, the others are not."""

Role = Literal["ordinary", "tst", "other"]


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
        marks: places of vertical lines, by axis, with what they say.
        level: a horizontal line, such as 0 for differences.
        log_x: whether places are drawn by their logarithm.
        y_range: what is shown of the y axis first; None for all.
        caption: what the reader sees, in a sentence or two.
    """

    title: str
    y_title: str
    axes: dict[str, str]
    series: tuple[Series, ...]
    marks: tuple[tuple[dict[str, float], str], ...] = ()
    level: float | None = None
    log_x: bool = False
    y_range: tuple[float, float] | None = None
    caption: str = ""


def read_series(directory: Path, name: str, role: Role = "other", thin: bool = False) -> Series:
    """A run's validation loss against all axes, without that of the untrained model."""
    records = [record for record in read_validations(directory) if record.step > 0]
    x = {axis: [float(getattr(record, axis)) for record in records] for axis in AXES}
    return Series(name, x, [record.val_loss for record in records], role, thin=thin)


def read_validations(directory: Path) -> list[Validation]:
    """A run's validation records; a UserError if there are none, or they were altered."""
    path = directory / "metrics.jsonl"
    try:
        records = read_records(path, Validation)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a report needs the runs it is about") from None
    if not any(record.step > 0 for record in records):
        raise UserError(f"{path} holds no validation of a trained model; train the run again")
    return records


def mean_series(series: Sequence[Series], name: str) -> Series:
    """The mean of some runs at the steps all of them have; a UserError if they have none in common."""
    shared = sorted(set.intersection(*(set(one.x["step"]) for one in series)))
    if not shared:
        raise UserError(f"the runs of {name} were validated at different steps; train them with one eval_every")
    places = [[one.x["step"].index(step) for step in shared] for one in series]

    def mean(columns: list[list[float]]) -> list[float]:
        shown = [np.take(column, place) for column, place in zip(columns, places, strict=True)]
        return [float(value) for value in np.mean(shown, axis=0)]

    x = {axis: mean([one.x[axis] for one in series]) for axis in AXES}
    return Series(name, x, mean([one.y for one in series]), series[0].role)


COLORS = {"ordinary": "#6b7280", "tst": "#2563eb"}
OTHERS = ("#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#4b5563")


def color_of(series: Series, chart: Chart) -> str:
    """A series' colour: that of its role, or one of its own among the others of the chart."""
    if series.role in COLORS:
        return COLORS[series.role]
    others = [other.name for other in chart.series if other.role == "other"]
    return OTHERS[others.index(series.name) % len(OTHERS)]


def draw(chart: Chart, axes: Sequence[str], path: Path) -> None:
    """Writes a chart against one or more of its x axes, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(axes) if len(axes) > 1 else 6, 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for series in chart.series:
            _draw_series(panel, series, axis, color_of(series, chart))
        for places, label in chart.marks:
            panel.axvline(places[axis], color=COLORS["tst"], linestyle=":", linewidth=1.2, label=label)
        if chart.level is not None:
            panel.axhline(chart.level, color="#9ca3af", linewidth=1)
        if chart.y_range is not None:
            panel.set_ylim(*chart.y_range)
        if chart.log_x:
            panel.set_xscale("log")
        panel.set_xlabel(chart.axes[axis])
        panel.grid(color="#e5e7eb", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.1)
    panels[0].set_ylabel(chart.y_title)
    panels[0].legend(frameon=False)
    with whole_file(path) as aside:
        FigureCanvasAgg(figure).print_png(str(aside))


def _draw_series(panel: Any, series: Series, axis: str, color: str) -> None:
    x = series.x[axis]
    if series.thin:
        panel.plot(x, series.y, color=color, linewidth=0.7, alpha=0.4)
        return
    style = {"linestyle": "none", "marker": "o"} if series.points else {"linewidth": 2}
    panel.plot(x, series.y, color=color, label=_literal(series.name), **style)
    if series.low:
        for place, low, high in zip(x, series.low, series.high, strict=True):
            if low is not None and high is not None:
                panel.plot([place, place], [low, high], color=color, linewidth=1.2, alpha=0.7)
        panel.plot(x, series.y, color=color, linestyle="none", marker="o", markersize=4)
    elif not series.points and x:
        side = "top" if series.role == "tst" else "bottom"
        panel.annotate(
            f"{series.y[-1]:.3f}",
            (x[-1], series.y[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            va=side,
            color=color,
            fontsize=9,
        )


def _literal(text: str) -> str:
    """Text that matplotlib is not to read as mathematics, or as a name to hide."""
    return text.replace("$", r"\$").lstrip("_")
