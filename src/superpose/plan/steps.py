"""How many steps TST needs before it gains: evidence of our own, from models of 0.09 million parameters.

The paper's runs have 20,000 steps and more, and there TST gains in every setting one would take. Short runs are
another matter: after the switch a model needs a number of steps, not a share of them, to find back to single tokens.
What there is to say of it is in measured.json, which benchmarks/response.py gathers from benchmarks/results:
comparisons at 1,000 to 32,000 steps over several seeds, and a sweep of s and r at 2,000 steps.

It stays apart from the response model. With one model size, few steps cannot be told from few tokens per parameter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from scipy.stats import norm

from superpose.plan.evidence import Point
from superpose.plan.response import LEVEL

_USUAL = (4, 0.1)
"""s and r of the comparisons at several budgets."""


@dataclass(frozen=True)
class Measured:
    """A gain, the steps it took, and the seeds it is a mean of."""

    point: Point
    steps: int
    seeds: int


@dataclass(frozen=True)
class AtSteps:
    """Mean gain at a number of steps over comparisons, nats per token, positive where TST ends lower.

    Attributes:
        low, high: 90 % interval of the mean; where comparisons disagree beyond their errors, it is the wider for it.
        comparisons: texts it was measured on.
    """

    steps: int
    gain: float
    low: float
    high: float
    comparisons: int

    def __str__(self) -> str:
        return f"{self.gain:+.3f} nats, {self.low:+.3f} to {self.high:+.3f}"


@cache
def measured() -> tuple[Measured, ...]:
    """All of measured.json."""
    entries = json.loads(files("superpose.plan").joinpath("measured.json").read_text("utf-8"))["points"]
    return tuple(Measured(Point(**entry["point"]), entry["steps"], entry["seeds"]) for entry in entries)


def gain_by_steps(
    known: Sequence[Measured] | None = None, bag_size: int = _USUAL[0], ratio: float = _USUAL[1]
) -> tuple[AtSteps, ...]:
    """Mean gains of one setting, by steps, ascending.

    Comparisons are pooled with a variance between them (DerSimonian and Laird, 1986), as texts differ.

    Args:
        known: by default `measured()`.
    """
    known = measured() if known is None else known
    points: dict[int, list[Point]] = {}
    for entry in known:
        if (entry.point.bag_size, entry.point.ratio) == (bag_size, ratio):
            points.setdefault(entry.steps, []).append(entry.point)
    return tuple(_pooled(steps, points[steps]) for steps in sorted(points))


def _pooled(steps: int, points: Sequence[Point]) -> AtSteps:
    variances = [point.error**2 for point in points]
    weights = [1 / variance for variance in variances]
    mean = sum(w * p.gain for w, p in zip(weights, points, strict=True)) / sum(weights)
    excess = sum(w * (p.gain - mean) ** 2 for w, p in zip(weights, points, strict=True)) - (len(points) - 1)
    scale = sum(weights) - sum(w**2 for w in weights) / sum(weights)
    between = max(0.0, excess / scale) if len(points) > 1 else 0.0
    weights = [1 / (variance + between) for variance in variances]
    mean = sum(w * p.gain for w, p in zip(weights, points, strict=True)) / sum(weights)
    half = float(norm.ppf((1 + LEVEL) / 2)) / math.sqrt(sum(weights))
    return AtSteps(steps, mean, mean - half, mean + half, len(points))


def gains_from(rows: Sequence[AtSteps]) -> int | None:
    """The fewest steps from which on every interval is above 0; None if the longest budget's is not."""
    found = None
    for row in sorted(rows, key=lambda row: row.steps, reverse=True):
        if row.low <= 0:
            break
        found = row.steps
    return found


def few_steps(steps: int, bag_size: int, ratio: float) -> tuple[str, ...]:
    """What our smallest models say against a run of so many steps, in sentences; nothing if they say nothing.

    Args:
        steps, bag_size, ratio: of the run that is planned, of whatever size.
    """
    sentences = []
    rows = gain_by_steps()
    enough = gains_from(rows)
    if enough is None or steps < enough:
        nearest = min(rows, key=lambda row: abs(math.log(row.steps / steps)))
        certain = f"and a sure gain from {enough:,} steps on" if enough is not None else "and no sure gain at all"
        sentences.append(
            f"{steps:,} steps are few: models of 0.09M parameters gained {nearest} at {nearest.steps:,} steps "
            f"(s {_USUAL[0]}, r {_USUAL[1]:g}), {certain}"
        )
    worse = [
        entry
        for entry in measured()
        if steps <= entry.steps and entry.point.bag_size <= bag_size and entry.point.ratio <= ratio and _lost(entry)
    ]
    if worse:
        mildest = min(worse, key=lambda entry: (entry.point.ratio, entry.point.bag_size)).point
        sentences.append(
            f"at {worse[0].steps:,} steps they lost with s {mildest.bag_size}, r {mildest.ratio:g} already "
            f"({mildest.gain:+.3f} nats): take a lower ratio, or smaller bags"
        )
    return tuple(sentences)


def _lost(entry: Measured) -> bool:
    return entry.point.gain + float(norm.ppf((1 + LEVEL) / 2)) * entry.point.error < 0
