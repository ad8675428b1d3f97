"""Charts as PNG pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superpose.files import whole_file
from superpose.results.charts import Chart, Series

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
    for number, (panel, axis) in enumerate(
        zip(figure.subplots(1, len(axes), sharey=True, squeeze=False)[0], axes, strict=True)
    ):
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
        if number == 0:
            panel.set_ylabel(chart.y_title)
            panel.legend(frameon=False)
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
