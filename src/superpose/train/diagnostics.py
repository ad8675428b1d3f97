"""What a run's own numbers say about it: the spike at the switch, the way to a baseline, a loss that runs away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Switch:
    """How a run took the change from bags to single tokens.

    The loss of a bag and that of a token are two quantities. The jump from one to the other is what is seen on a
    curve and reported in the paper (arXiv 2605.06546, section 4: 1 to 2 nats); it is no loss of quality by itself.

    Attributes:
        step: first step of recovery.
        bag_loss: mean training loss of the last record before it.
        spike: the first record's next-token loss over `bag_loss`, in nats.
        steps_to_recover: until a record's next-token loss was no more than `bag_loss`; None if it never was.
    """

    step: int
    bag_loss: float
    spike: float
    steps_to_recover: int | None


def switch(records: Iterable[dict[str, Any]]) -> Switch | None:
    """The last change from bags to single tokens in a run's training records; None where there is none."""
    training = [record for record in records if record["kind"] == "training"]
    after = next((i for i, record in enumerate(training) if record["phase"] == "recovery"), len(training))
    if not 0 < after < len(training):
        return None
    step, bag_loss = training[after - 1]["step"], training[after - 1]["bag_loss"]
    recovered = next((record["step"] for record in training[after:] if record["loss"] <= bag_loss), None)
    return Switch(step, bag_loss, training[after]["loss"] - bag_loss, None if recovered is None else recovered - step)


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


def crossing(ours: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], switched: int) -> Crossing | None:
    """Compares the validations of a run since its switch with a baseline's at equal FLOPs.

    Args:
        ours: records of a run.
        baseline: records of an ordinary run; between its validations its loss is taken as linear.
        switched: first step of recovery.

    Returns:
        None while there are fewer than two validations since the switch, and no crossing among them.
    """
    reference = [record for record in baseline if record["kind"] == "validation"]
    flops, losses = ([record[name] for record in reference] for name in ("flops", "val_loss"))
    mine = [record for record in ours if record["kind"] == "validation" and record["step"] > switched]
    mine = [record for record in mine if flops and flops[0] <= record["flops"] <= flops[-1]]
    gaps = [record["val_loss"] - float(np.interp(record["flops"], flops, losses)) for record in mine]
    under = next((record["step"] for record, gap in zip(mine, gaps, strict=True) if gap <= 0), None)
    if under is not None:
        return Crossing(under, forecast=False)
    if len(gaps) < 2:
        return None
    # The latest half: a curve is straight for as long as one does not look at all of it.
    recent = max(2, len(gaps) // 2)
    places = [math.log(record["step"] - switched) for record in mine[-recent:]]
    line: Any = np.polyfit(places, gaps[-recent:], 1)
    slope, height = float(line[0]), float(line[1])
    if slope >= 0:
        return Crossing(None, forecast=True)
    place = min(-height / slope, 50.0)
    return Crossing(switched + round(math.exp(place)), forecast=True)


class Runaway:
    """Notices a loss that has left its course: far above its lowest in this phase, three records in a row."""

    PATIENCE = 3

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._phase = ""
        self._lowest = math.inf
        self._above = 0
        self.since = 0
        """Step of the last record on course."""

    def leaves(self, record: dict[str, Any]) -> bool:
        """Whether a training record is the third in a row that is more than the allowed nats above the lowest."""
        loss: float = record["loss"] if "loss" in record else record["bag_loss"]
        if record["phase"] != self._phase:
            self._phase, self._lowest, self._above = record["phase"], math.inf, 0
        self._lowest = min(self._lowest, loss)
        if not self._allowed or loss <= self._lowest + self._allowed:
            self._above, self.since = 0, record["step"]
            return False
        self._above += 1
        return self._above >= self.PATIENCE
