"""What a run wrote into metrics.jsonl, as series of charts: its validations, its training losses, its switch.

A training loss is of bags or of single tokens. The two are different quantities, so no series and no chart holds both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from superpose.core.schedule import Schedule
from superpose.errors import UserError
from superpose.results.charts import AXES, Chart, Mark, Role, Series
from superpose.train.records import Record, Training, Validation, read_records

_Kind = TypeVar("_Kind", bound=Record)
_MOST = 150
"""Points of a training curve: more would be a thick line."""
_RECOVERY = "recovery begins"
_FEWEST = 3
_UNTIL = 0.1
"""Share of a run that may lie above the picture: losses fall steeply there, and would squeeze the rest."""
TRAINING_AXES = {name: AXES[name] for name in ("step", "raw_tokens", "latents", "seconds")}


def read_series(directory: Path, name: str, role: Role = "other", thin: bool = False) -> Series:
    """A run's validation loss against all axes, from the untrained model on."""
    records = read_validations(directory)
    x = {axis: [float(getattr(record, axis)) for record in records] for axis in AXES}
    return Series(name, x, [record.val_loss for record in records], role, thin=thin)


def read_validations(directory: Path) -> list[Validation]:
    """A run's validation records; a UserError if there are none, or they were altered."""
    records = _read(directory, Validation)
    if not any(record.step > 0 for record in records):
        path = directory / "metrics.jsonl"
        raise UserError(f"{path} holds no validation of a trained model; train the run again")
    return records


def _read(directory: Path, kind: type[_Kind]) -> list[_Kind]:
    path = directory / "metrics.jsonl"
    try:
        return read_records(path, kind)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a report needs the runs it is about") from None


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


def switch_marks(directory: Path, schedule: Schedule) -> list[Mark]:
    """Where phases meet, on all axes: every boundary of a run's phases has a validation record."""
    records = {record.step: record for record in read_validations(directory)}
    marks = list[Mark]()
    for boundary in schedule.boundaries:
        if boundary in records:
            label = _RECOVERY if boundary == schedule.recovers_at else "next stage"
            places = {axis: float(getattr(records[boundary], axis)) for axis in AXES}
            marks.append((places, label))
    return marks


@dataclass(frozen=True)
class Losses:
    """A run whose training loss is to be drawn."""

    directory: Path
    name: str
    role: Role = "other"


def training_charts(runs: Sequence[Losses], marks: Sequence[Mark], whose: str = "") -> list[Chart]:
    """The training loss of some runs: of single tokens and, where there are bags, of bags in a chart of its own.

    Args:
        whose: a sentence on the runs, for the captions.
    """
    tokens, bags = list[Series](), list[Series]()
    for run in runs:
        for size, series in _losses(run).items():
            (tokens if size == 1 else bags).append(series)
    points = "A point is the mean of the steps since the point before."
    other = "A bag loss and a token loss are different quantities: never compare this chart with the one of {}."
    sizes = {one.name for one in bags}
    more = "Losses of bags that differ in size or weights are different quantities too." if len(sizes) > 1 else ""
    of_tokens = (whose, points, other.format("bags") if bags else "")
    of_bags = (whose, points, other.format("single tokens") if tokens else "", more)
    return [
        captioned(_training_chart(title, kind, series, marks), *words)
        for title, kind, series, words in (
            ("Training loss: single tokens", "next-token", tokens, of_tokens),
            ("Training loss: bags", "next-bag", bags, of_bags),
        )
        if series
    ]


def _training_chart(title: str, kind: str, series: list[Series], marks: Sequence[Mark]) -> Chart:
    y_title = f"{kind} training loss, nats per token"
    return Chart(title, y_title, TRAINING_AXES, tuple(series), tuple(marks), y_range=zoomed(series))


def _losses(run: Losses) -> Mapping[int, Series]:
    """A run's training loss by bag size."""
    known: dict[int, list[tuple[int, Training]]] = {}
    before = 0
    for record in _read(run.directory, Training):
        known.setdefault(record.bag_size, []).append((max(1, record.step - before), record))
        before = record.step
    found = {}
    for size, weighted in known.items():
        length = -(-len(weighted) // _MOST)
        parts = [weighted[start : start + length] for start in range(0, len(weighted), length)]
        y = [float(np.average([one.measured_loss for _, one in part], weights=[n for n, _ in part])) for part in parts]
        x = {axis: [float(getattr(part[-1][1], axis) or 0) for part in parts] for axis in TRAINING_AXES}
        found[size] = Series(run.name if size == 1 else f"{run.name}, bags of {size}", x, y, run.role)
    return found


def zoomed(series: Sequence[Series]) -> tuple[float, float] | None:
    """What to show of the y axis first: what ordinary training did after its first steps, and where every line ends.

    An untrained model, and one that has only seen bags, is far above all that matters. Where no line is of ordinary
    training, all of them stand for it. None where so few points are left that all are to be seen.
    """
    lines = [one for one in series if not one.thin]
    tops = [one.y[-1] for one in lines]
    for one in [one for one in lines if one.role == "ordinary"] or lines:
        later = [y for step, y in zip(one.x["step"], one.y, strict=True) if step >= _UNTIL * one.x["step"][-1]]
        if len(later) < _FEWEST:
            return None
        tops += later
    low, high = min(min(one.y) for one in series), max(tops)
    margin = 0.08 * (high - low)
    return (low - margin, high + margin) if margin > 0 else None


def captioned(chart: Chart, *words: str) -> Chart:
    """The chart with a caption: sentences, then what its marks are and what lies above its picture."""
    said = [word for word in words if word]
    recovery = [label.endswith(_RECOVERY) for _, label in chart.marks]
    if recovery and all(recovery):
        said.append("A dotted line is the switch: bags end and single tokens begin.")
    elif recovery:
        more = "; where recovery begins, single tokens do" if any(recovery) else ""
        said.append(f"Dotted lines are the ends of stages{more}.")
    hidden = [_above(one, chart) for one in chart.series if not one.thin]
    if any(hidden):
        said.append(f"Above the picture: {'; '.join(filter(None, hidden))}.")
    return replace(chart, caption=" ".join(said))


def _above(series: Series, chart: Chart) -> str:
    """Which of a line's points are higher than the picture; nothing if none is."""
    axis = "step" if "step" in series.x else next(iter(chart.axes))
    name = "step" if axis == "step" else chart.axes[axis]
    places, top = series.x[axis], math.inf if chart.y_range is None else chart.y_range[1]
    hidden = [place for place, y in zip(places, series.y, strict=True) if y > top]
    if not hidden:
        return ""
    many = f"up to {name} {hidden[-1]:,.6g}" if hidden == places[: len(hidden)] else f"at {len(hidden)} points"
    when = f"at {name} {hidden[0]:,.6g}" if len(hidden) == 1 else many
    return f"{series.name} {when} (highest {max(series.y):.3g})"
