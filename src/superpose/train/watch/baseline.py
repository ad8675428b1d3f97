"""The way to a baseline: where a run's validation loss comes to lie under that of an ordinary one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from superpose.train.records import Record, Validation, read_records
from superpose.train.watch.watcher import Watcher


class Baseline(Watcher):
    """Says in each validation where the run passes a baseline, or may.

    Args:
        reference: the baseline's validations; empty for none.
    """

    def __init__(self, reference: Sequence[Validation]) -> None:
        self._reference = reference

    def started(self) -> None:
        self._ours = read_records(self.run.path / "metrics.jsonl", Validation)
        self._switched = (self.run.recipe.schedule.boundaries or (0,))[-1]

    def before_record(self, record: Record) -> Record:
        if not self._reference or not isinstance(record, Validation):
            return record
        self._ours.append(record)
        met = crossing(self._ours, self._reference, self._switched)
        if met is None or met.step is None:
            return record
        return replace(record, **{"crossing_forecast" if met.forecast else "crossed": met.step})


@dataclass(frozen=True)
class Crossing:
    """Where a run's validation loss comes to lie under a baseline's.

    Attributes:
        step: of the crossing; None if the gap does not close at all.
        forecast: whether it lies in the future: read off a straight line through the gaps over the logarithm of the
            steps since the switch. What a line says of a curve; believe it for a little way ahead.
    """

    step: int | None
    forecast: bool


def crossing(ours: Sequence[Validation], baseline: Sequence[Validation], switched: int) -> Crossing | None:
    """Compares the validations of a run since its switch with a baseline's at equal FLOPs.

    Args:
        baseline: of an ordinary run; between its validations its loss is taken as linear.
        switched: first step of recovery.

    Returns:
        None while there are fewer than two validations since the switch, and no crossing among them.
    """
    if not baseline:
        return None
    flops, losses = [record.flops for record in baseline], [record.val_loss for record in baseline]
    mine = [record for record in ours if record.step > switched and flops[0] <= record.flops <= flops[-1]]
    gaps = [record.val_loss - float(np.interp(record.flops, flops, losses)) for record in mine]
    under = next((record.step for record, gap in zip(mine, gaps, strict=True) if gap <= 0), None)
    if under is not None:
        return Crossing(under, forecast=False)
    if len(gaps) < 2:
        return None
    # The latest half: a curve is straight for as long as one does not look at all of it.
    recent = max(2, len(gaps) // 2)
    places = [math.log(record.step - switched) for record in mine[-recent:]]
    line: Any = np.polyfit(places, gaps[-recent:], 1)
    slope, height = float(line[0]), float(line[1])
    if slope >= 0:
        return Crossing(None, forecast=True)
    place = min(-height / slope, 50.0)
    return Crossing(switched + round(math.exp(place)), forecast=True)
