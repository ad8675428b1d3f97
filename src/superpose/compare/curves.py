"""A comparison's curves, as data for any plot and as a picture."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpose.compare.experiment import ORDINARY, TST
from superpose.files import whole_file
from superpose.train.metrics import read_metrics

if TYPE_CHECKING:
    from superpose.compare.comparison import Comparison

COLORS = {ORDINARY: "#6b7280", TST: "#2563eb"}
AXES = {
    "flops": "training FLOPs",
    "raw_tokens": "raw tokens read",
    "latents": "latents computed",
    "seconds": "training seconds",
}
"""The four axes of a run; equal steps are equal FLOPs and equal latents."""


@dataclass(frozen=True)
class Curve:
    """Validation of a run, without that of the untrained model: one number a record."""

    arm: str
    seed: int
    steps: int
    records: list[dict[str, Any]]

    def column(self, name: str) -> list[float]:
        return [record[name] for record in self.records]

    def at(self, step: int, name: str) -> float | None:
        """A quantity at a step that was validated."""
        return next((record[name] for record in self.records if record["step"] == step), None)


def read_curve(directory: Path, arm: str, seed: int, steps: int) -> Curve:
    records = read_metrics(directory / "metrics.jsonl")
    return Curve(arm, seed, steps, [r for r in records if r["kind"] == "validation" and r["step"] > 0])


def main_curves(comparison: Comparison) -> list[Curve]:
    """Of both arms at the main budget, seed by seed."""
    return [
        read_curve(run.directory, run.arm, run.seed, run.steps)
        for run in comparison.runs
        if run.arm in COLORS and run.steps == comparison.steps and run.seed in comparison.seeds
    ]


def plot(comparison: Comparison, path: Path) -> None:
    """Validation loss against steps (equal FLOPs) and raw tokens: thin lines are seeds, thick ones their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    by_step, by_tokens = figure.subplots(1, 2, sharey=True)
    labels = {ORDINARY: "ordinary", TST: comparison.tst_label}
    everything = main_curves(comparison)
    for axes, quantity, name in (
        (by_step, "step", "step (equal FLOPs)"),
        (by_tokens, "raw_tokens", "raw tokens read, millions"),
    ):
        scale = 1e6 if quantity == "raw_tokens" else 1
        for arm, color in COLORS.items():
            curves = [curve for curve in everything if curve.arm == arm]
            shared = shared_steps(curves)
            places = [(curves[0].at(step, quantity) or 0) / scale for step in shared]
            losses = [[curve.at(step, "val_loss") or 0 for step in shared] for curve in curves]
            if len(losses) > 1:
                for loss in losses:
                    axes.plot(places, loss, color=color, linewidth=0.7, alpha=0.4)
            mean = [statistics.fmean(column) for column in zip(*losses, strict=True)]
            axes.plot(places, mean, color=color, linewidth=2, label=labels[arm])
            axes.annotate(
                f"{mean[-1]:.3f}",
                (places[-1], mean[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="top" if arm == TST else "bottom",
                color=color,
                fontsize=9,
            )
        axes.set_xlabel(name)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.08)
    latents = comparison.recipe.latents_per_step
    schedule = comparison.recipe.schedule
    for boundary in schedule.boundaries:
        last = boundary == schedule.boundaries[-1]
        line = {"color": COLORS[TST], "linestyle": ":", "linewidth": 1.2}
        by_step.axvline(boundary, label="recovery begins" if last else None, **line)
        by_tokens.axvline(schedule.raw_tokens(latents, boundary) / 1e6, **line)
    by_step.set_ylabel("next-token validation loss, nats")
    by_step.legend(frameon=False)
    with whole_file(path) as aside:
        FigureCanvasAgg(figure).print_png(str(aside))


def shared_steps(curves: list[Curve]) -> list[int]:
    """Steps at which all of the curves have a record, ascending."""
    return sorted(set.intersection(*({int(record["step"]) for record in curve.records} for curve in curves)))
