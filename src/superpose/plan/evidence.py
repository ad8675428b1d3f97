"""What has been measured of TST's gain: the paper's runs, our own, and comparisons of the user's.

A gain is the ordinary run's final loss minus the TST run's, after equal numbers of steps and so at equal FLOPs, in nats
per token. It is positive where TST ends lower. What it says of other runs: `superpose.plan.prediction`.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Literal

from superpose.compare.comparison import Comparison
from superpose.compare.experiment import TST
from superpose.errors import UserError
from superpose.paper.published import published_runs, published_sweeps
from superpose.plan.model import parameters_of
from superpose.results.statistics import speedup

BagWeighting = Literal["uniform", "power"]
"""Weights of a bag's tokens that the paper has a sweep of."""
LATENTS_PER_STEP = 2048 * 1024
"""Of the paper's dense runs: 1,024 sequences of 2,048 latents, so 20,000 steps are 42 billion."""
ONE_SEED = 0.03
"""Standard error, in nats, of a difference between single runs: what seeds of our smallest models differ by
(docs/results.md); those of large models differ by less."""
_PARAMS = {"270M": 270e6, "600M": 600e6, "3B": 3e9}
NORMAL = 1.96
"""Standard errors to either side of a 95 % interval."""


@dataclass(frozen=True)
class Setting:
    """What to train with."""

    bag_size: int
    ratio: float
    weighting: BagWeighting = "uniform"

    def __post_init__(self) -> None:
        if self.bag_size < 1:
            raise UserError(f"bag size {self.bag_size}: expected a whole number of tokens, 1 or more")
        if not 0 <= self.ratio < 1:
            raise UserError(
                f"ratio {self.ratio:g}: expected 0 or more and below 1, because without recovery the model predicts "
                f"bags, not tokens (the paper's runs at r 1 end 1 to 3 nats above ordinary training)"
            )
        if self.weighting not in ("uniform", "power"):
            raise UserError(
                f"weighting {self.weighting!r}: the paper has sweeps of 'uniform' and 'power' alone; choose one"
            )

    @property
    def ordinary(self) -> bool:
        return self.bag_size == 1 or self.ratio == 0

    def __str__(self) -> str:
        return f"s {self.bag_size}, r {self.ratio:g}" + ("" if self.weighting == "uniform" else f", {self.weighting}")


RULE = Setting(6, 0.3)
"""The paper's own setting, at whatever scale; no search over its sweeps beats it by more than runs differ by luck."""
SMALL_RULE = Setting(4, 0.1)
"""The setting of our own comparisons, whose runs are short."""


@dataclass(frozen=True)
class Point:
    """One measured gain.

    Attributes:
        params: parameters of the model, embeddings included.
        latents: positions the model computed, in all steps; the same for both runs.
        gain: nats per token, positive where TST ends lower.
        source: the sweep, table or comparison; points of one source share their ordinary runs.
        error: nats; 1.96 of it are half the gain's 95 % interval. 0 where it is not known, as of the paper's runs.
        speedup: how many times the steps ordinary training takes for the same loss; None where that was not measured.

    Raises:
        UserError: there is no superposition, or a quantity is not positive.
    """

    params: float
    latents: float
    steps: int
    setting: Setting
    gain: float
    source: str
    error: float = 0.0
    speedup: float | None = None

    def __post_init__(self) -> None:
        if self.setting.ordinary:
            raise UserError(f"{self.source} has no superposition ({self.setting}): no gain to learn")
        if not (self.params > 0 and self.latents > 0 and self.error >= 0 and math.isfinite(self.gain)):
            raise UserError(f"{self.source}: parameters and latents have to be positive, gain and error finite")

    @property
    def scale(self) -> tuple[float, float]:
        return self.params, self.latents

    def __str__(self) -> str:
        scale = f"{short(self.params)} parameters, {short(self.latents)} latents, {self.steps:,} steps"
        return f"{self.gain:+.3f} nats at {scale}, {self.setting} ({self.source})"


@cache
def published_points() -> tuple[Point, ...]:
    """The paper's gains at equal steps: its four sweeps (tables 4 to 7) and the 3B run (table 1).

    Left out are r 1.0 (no recovery: its loss is no next-token model's), the re-initialised run (table 2: another
    method), the runs of table 1 that are cells of a sweep too, and the 10B-A1B mixture of experts: its ordinary run has
    other steps, so it has no gain at equal steps, only `published_bound`.
    """
    found = {}
    for name, sweep in published_sweeps().items():
        params, latents = _PARAMS[sweep.params], sweep.steps * LATENTS_PER_STEP
        for (bag_size, ratio), gain in sweep.gains.items():
            if ratio < 1:
                setting = Setting(bag_size, ratio, sweep.weighting)
                found[params, sweep.steps, setting] = Point(params, latents, sweep.steps, setting, gain, name)
    runs = published_runs()
    for run in runs:
        curve = {r.steps: [r.loss] for r in runs if (r.params, r.bag_size) == (run.params, None)}
        if run.bag_size is None or run.params not in _PARAMS or run.steps not in curve:
            continue
        params, setting = _PARAMS[run.params], Setting(run.bag_size, run.tst_steps / run.steps)
        gain, name = round(curve[run.steps][0] - run.loss, 4), f"{run.params.lower()}_{run.steps // 1000}k"
        point = Point(params, run.steps * LATENTS_PER_STEP, run.steps, setting, gain, name)
        known = found.get((params, run.steps, setting), point)
        times = speedup(curve, [run.loss], run.steps).ratio if len(curve) > 1 else None
        found[params, run.steps, setting] = replace(known, speedup=times)
    return tuple(found.values())


def published_bound() -> tuple[int, float, float]:
    """What the paper's 10B-A1B mixture of experts says: (steps of its TST run, nats its gain is above, times the
    steps an ordinary run takes at least).

    Its TST run of 49,983 steps ends below an ordinary run of 125,000, which itself ends below any shorter one.
    """
    ordinary, tst = sorted((run for run in published_runs() if run.params == "10B-A1B"), key=lambda run: -run.steps)
    return tst.steps, round(ordinary.loss - tst.loss, 4), ordinary.steps / tst.steps


@cache
def measured_points() -> tuple[Point, ...]:
    """Our own gains, out of measured.json: comparisons at several budgets, and a sweep of s and r at 2,000 steps."""
    known = json.loads(files("superpose.plan").joinpath("measured.json").read_text("utf-8"))
    return tuple(Point(**{**entry, "setting": Setting(*entry["setting"])}) for entry in known["points"])


def points_of(comparison: Comparison, name: str = "comparison") -> tuple[Point, ...]:
    """The gains of a comparison at each budget both arms were trained for.

    Args:
        comparison: such as `Comparison.load(directory)`.
        name: of its source, for messages.

    Raises:
        UserError: its superposition is not of the kind the paper's sweeps have.
    """
    settings = comparison.recipe.superposition
    if settings.stages:
        raise UserError(f"{name}: only comparisons of one stage can be evidence, in short (bag_size and ratio)")
    s, r, weighting = settings.bag_size, settings.ratio, settings.weighting
    if not isinstance(s, int) or not isinstance(r, float) or settings.mode != "full" or settings.variant != "mce":
        raise UserError(f"{name}: only comparisons of one stage, mode 'full' and variant 'mce' can be evidence")
    if weighting not in ("uniform", "power"):
        raise UserError(f"{name}: only comparisons of weighting 'uniform' or 'power' can be evidence")
    params = float(parameters_of(comparison.recipe, comparison.store["vocab_size"]))
    points = []
    for steps in comparison.budgets(TST):
        difference, saved = comparison.equal_flops(steps), comparison.equal_loss(steps)
        if difference is not None:
            error = ONE_SEED if difference.low is None else (difference.value - difference.low) / NORMAL
            latents, setting = float(steps * comparison.recipe.latents_per_step), Setting(s, r, weighting)
            times = None if saved is None else saved.ratio
            points.append(Point(params, latents, steps, setting, -difference.value, name, error, times))
    return tuple(points)


def short(number: float) -> str:
    """A large number in three digits: 600M, 3B, 42B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit * 0.9995:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
