"""Charts as data: what is drawn, whatever draws it (`superpose.compare.picture`, `superpose.report.page`)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from superpose.compare.experiment import ORDINARY, TST
from superpose.errors import UserError
from superpose.train.metrics import read_metrics

if TYPE_CHECKING:
    from superpose.compare.comparison import Comparison, Trained

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
    records = [record for record in _validations(directory) if record["step"] > 0]
    x = {axis: [record[axis] for record in records] for axis in AXES}
    return Series(name, x, [record["val_loss"] for record in records], role, thin=thin)


def _validations(directory: Path) -> list[dict[str, float]]:
    """The numbers of a run's validation records.

    Raises:
        UserError: there are none, or they were altered.
    """
    path = directory / "metrics.jsonl"
    try:
        records = [record for record in read_metrics(path) if record["kind"] == "validation"]
        numbers = [{name: float(record[name]) for name in (*AXES, "val_loss")} for record in records]
        if not all(math.isfinite(number) for record in numbers for number in record.values()):
            raise ValueError
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a report needs the runs it is about") from None
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path} was altered; train the run again") from None
    if not any(record["step"] > 0 for record in numbers):
        raise UserError(f"{path} holds no validation of a trained model; train the run again")
    return numbers


def mean_series(series: Sequence[Series], name: str) -> Series:
    """The mean of some runs at the steps all of them have.

    Raises:
        UserError: they have none in common.
    """
    shared = sorted(set.intersection(*(set(one.x["step"]) for one in series)))
    if not shared:
        raise UserError(f"the runs of {name} were validated at different steps; train them with one eval_every")
    places = [[one.x["step"].index(step) for step in shared] for one in series]
    x = {
        axis: [
            statistics.fmean(one.x[axis][place[number]] for one, place in zip(series, places, strict=True))
            for number in range(len(shared))
        ]
        for axis in AXES
    }
    y = [
        statistics.fmean(one.y[place[number]] for one, place in zip(series, places, strict=True))
        for number in range(len(shared))
    ]
    return Series(name, x, y, series[0].role)


def curves(comparison: Comparison) -> Chart:
    """Validation loss of both arms at the main budget: each seed thinly, and the means."""
    series: list[Series] = []
    for arm, label in _arms(comparison):
        of_arm = [
            read_series(run.directory, f"{label}, seed {run.seed}", arm, thin=True)
            for run in _main_runs(comparison, arm)
        ]
        series += [*(of_arm if len(of_arm) > 1 else []), mean_series(of_arm, label)]
    tst = _main_runs(comparison, TST)[0]
    least, most = min(min(one.y) for one in series), max(max(one.y) for one in series if one.role == "ordinary")
    margin = 0.08 * (most - least)
    return Chart(
        "Validation loss",
        "next-token validation loss, nats per token",
        {name: AXES[name] for name in ("flops", "raw_tokens", "latents", "seconds")},
        tuple(series),
        _switches(comparison, tst),
        y_range=(least - margin, most + margin) if margin > 0 else None,
        caption="Thin lines are seeds, thick ones their mean. Validation is next-token in both phases, so TST's curve "
        "is far above the picture until recovery begins.",
    )


def _arms(comparison: Comparison) -> tuple[tuple[Role, str], ...]:
    """The two arms and what they are called."""
    return ("ordinary", "ordinary"), ("tst", comparison.tst_label)


def _main_runs(comparison: Comparison, arm: str) -> list[Trained]:
    wanted = (arm, comparison.steps)
    return [run for run in comparison.runs if (run.arm, run.steps) == wanted and run.seed in comparison.seeds]


def _switches(comparison: Comparison, tst: Trained) -> tuple[tuple[dict[str, float], str], ...]:
    """Where phases meet on each axis: at the validation record of each boundary."""
    records = {int(record["step"]): record for record in _validations(tst.directory)}
    boundaries = comparison.recipe.schedule.boundaries
    return tuple(
        (
            {axis: records[boundary][axis] for axis in AXES},
            "recovery begins" if boundary == boundaries[-1] else "next stage",
        )
        for boundary in boundaries
        if boundary in records
    )


def seeds(comparison: Comparison) -> Chart:
    """Final loss of each seed in both arms."""
    numbers = [float(seed) for seed in comparison.seeds]
    return Chart(
        "Spread of the seeds",
        "final validation loss, nats per token",
        {"seed": "seed"},
        tuple(
            Series(label, {"seed": numbers}, comparison.values(arm, "val_loss"), arm, points=True)
            for arm, label in _arms(comparison)
        ),
        caption="Both arms share a seed's initial weights and order of text.",
    )


def budgets(comparison: Comparison) -> Chart:
    """Final loss against the budget: what the question of equal loss is read off."""
    series = []
    for arm, label in _arms(comparison):
        steps = [budget for budget in comparison.budgets(arm) if comparison.seeds_of((arm, budget))]
        losses = [comparison.values(arm, "val_loss", budget, comparison.seeds_of((arm, budget))) for budget in steps]
        series.append(
            Series(
                label,
                {"step": [float(budget) for budget in steps]},
                [statistics.fmean(of_budget) for of_budget in losses],
                arm,
                [min(of_budget) for of_budget in losses],
                [max(of_budget) for of_budget in losses],
            )
        )
    return Chart(
        "Final loss at each budget",
        "final validation loss, nats per token",
        {"step": "optimizer steps of the whole run"},
        tuple(series),
        log_x=True,
        caption="Each point is the mean of runs that decayed their learning rate at that budget; bars reach from the "
        "lowest to the highest seed. How far the ordinary curve lies to the right of TST's point is the speedup.",
    )


def gains(comparison: Comparison) -> Chart:
    """TST minus ordinary at each budget both arms have."""
    known = [(steps, gain) for steps in comparison.budgets(TST) if (gain := comparison.equal_flops(steps)) is not None]
    return Chart(
        "Gain against budget, at equal FLOPs",
        "TST minus ordinary, nats per token",
        {"step": "optimizer steps of the whole run"},
        (
            Series(
                "difference and its 95 % interval",
                {"step": [float(steps) for steps, _ in known]},
                [gain.mean for _, gain in known],
                "tst",
                [gain.low for _, gain in known],
                [gain.high for _, gain in known],
            ),
        ),
        level=0.0,
        log_x=True,
        caption="Below the line TST is better.",
    )


def all_charts(comparison: Comparison) -> list[Chart]:
    """Those that have something to show."""
    charts = [curves(comparison)]
    if len(comparison.seeds) > 1:
        charts.append(seeds(comparison))
    if len(comparison.budgets(ORDINARY)) > 1:
        charts.append(budgets(comparison))
    if len(comparison.budgets(TST)) > 1:
        charts.append(gains(comparison))
    return charts
