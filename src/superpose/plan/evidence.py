"""What is known of TST's gain, as points of one kind: the paper's sweeps and runs, and comparisons of one's own.

A gain is the ordinary run's final loss minus the TST run's, after equal numbers of steps and so at equal FLOPs, in nats
per token. It is positive where TST ends lower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from superpose.compare.comparison import Comparison
from superpose.compare.experiment import TST
from superpose.errors import UserError
from superpose.models.build import build_config, build_model
from superpose.paper.published import published_runs, published_sweeps
from superpose.results.statistics import Difference
from superpose.train.config import Recipe

PUBLISHED, OWN = "published", "own"
"""Setups: the paper's text, tokenizer and recipe, or those of whoever plans a run."""
BagWeighting = Literal["uniform", "power"]
"""Weights of a bag's tokens that the paper has a sweep of."""
LATENTS_PER_STEP = 2048 * 1024
"""Of all the paper's dense runs: 1,024 rows of 2,048 latents (20,000 steps are 42 billion)."""
ONE_SEED = 0.03
"""Standard error, in nats, of a difference between single runs whose spread is not known: what seeds of our smallest
models differ by (docs/results.md); those of large models differ by less."""
_PARAMS = {"270M": 270e6, "600M": 600e6, "3B": 3e9}


@dataclass(frozen=True)
class Point:
    """One measured gain.

    Attributes:
        params: parameters of the model, embeddings included.
        latents: budget: positions the model computed, steps x rows x length; the same for both runs.
        bag_size: s.
        ratio: r, share of the steps in superposition, above 0 and below 1.
        gain: nats per token, positive where TST ends lower.
        source: the sweep, table or comparison; points of one source share its ordinary run.
        setup: `PUBLISHED` or `OWN`.
        error: standard error of the gain over seeds, in nats; 0 where it is not known, as of the paper's single runs.

    Raises:
        UserError: there is no superposition, or no recovery, or a quantity is not positive.
    """

    params: float
    latents: float
    bag_size: int
    ratio: float
    weighting: BagWeighting
    gain: float
    source: str
    setup: str = OWN
    error: float = 0.0

    def __post_init__(self) -> None:
        check_setting(self.bag_size, self.ratio, self.weighting)
        if self.bag_size == 1 or self.ratio == 0:
            raise UserError(
                f"{self.source} has no superposition (s {self.bag_size}, r {self.ratio:g}): no gain to learn"
            )
        if not (self.params > 0 and self.latents > 0 and self.error >= 0 and math.isfinite(self.gain)):
            raise UserError(f"{self.source}: parameters and latents have to be positive, gain and error finite")


def check_setting(bag_size: int, ratio: float, weighting: str) -> None:
    """
    Raises:
        UserError: nothing published or measured says what such a setting brings.
    """
    if bag_size < 1:
        raise UserError(f"bag size {bag_size}: expected a whole number of tokens, 1 or more")
    if not 0 <= ratio < 1:
        raise UserError(
            f"ratio {ratio:g}: expected 0 or more and below 1, because without recovery the model predicts bags, "
            f"not tokens (the paper's runs at r 1 end 1 to 3 nats above ordinary training)"
        )
    if weighting not in ("uniform", "power"):
        raise UserError(
            f"weighting {weighting!r}: the paper has sweeps of 'uniform' and 'power' alone; choose one of them"
        )


def published_points() -> tuple[Point, ...]:
    """The gains of arXiv 2605.06546 that are at equal steps: its four sweeps (tables 4 to 7) and the 3B run (table 1).

    Left out are r 1.0 (no recovery: its loss is no next-token model's), the re-initialised run (table 2: another
    method), the runs of table 1 that are cells of a sweep too, and the 10B-A1B mixture of experts: its ordinary run has
    other steps, so it has no gain at equal steps, only `published_bound`.
    """
    points = [
        Point(
            _PARAMS[sweep.params],
            sweep.steps * LATENTS_PER_STEP,
            bag_size,
            ratio,
            sweep.weighting,
            gain,
            name,
            PUBLISHED,
        )
        for name, sweep in published_sweeps().items()
        for (bag_size, ratio), gain in sweep.gains.items()
        if ratio < 1
    ]
    swept = {(point.params, point.latents) for point in points}
    runs = published_runs()
    for run in runs:
        if run.bag_size is None or run.params not in _PARAMS:
            continue
        params, latents = _PARAMS[run.params], run.steps * LATENTS_PER_STEP
        ordinary = [r.loss for r in runs if (r.params, r.steps, r.bag_size) == (run.params, run.steps, None)]
        if ordinary and (params, latents) not in swept:
            ratio, gain = run.tst_steps / run.steps, round(ordinary[0] - run.loss, 4)
            source = f"{run.params.lower()}_{run.steps // 1000}k"
            points.append(Point(params, latents, run.bag_size, ratio, "uniform", gain, source, PUBLISHED))
    return tuple(points)


def points_of(comparison: Comparison, name: str = "comparison") -> tuple[Point, ...]:
    """The gains of a comparison of one's own at each budget both arms were trained for.

    Args:
        comparison: such as `Comparison.load(directory)`.
        name: of its source, for messages.

    Raises:
        UserError: its superposition is not of the kind the paper's sweeps have.
    """
    settings = comparison.recipe.superposition
    s, r, weighting = settings.bag_size, settings.ratio, settings.weighting
    if not isinstance(s, int) or not isinstance(r, float) or settings.mode != "full" or settings.variant != "mce":
        raise UserError(f"{name}: only comparisons of one stage, mode 'full' and variant 'mce' can be added to the fit")
    if weighting not in ("uniform", "power"):
        raise UserError(f"{name}: only comparisons of weighting 'uniform' or 'power' can be added to the fit")
    params = float(parameters(comparison.recipe, comparison.store["vocab_size"]))
    differences = [(steps, comparison.equal_flops(steps)) for steps in comparison.budgets(TST)]
    return tuple(
        Point(
            params,
            float(steps * comparison.recipe.latents_per_step),
            s,
            r,
            weighting,
            -difference.value,
            name,
            OWN,
            _error(difference),
        )
        for steps, difference in differences
        if difference is not None
    )


def _error(difference: Difference) -> float:
    """Standard error of a mean difference, widened as far as Student's t at 90 % is wider than the normal."""
    if difference.deviation is None:
        return ONE_SEED
    wider = float(stats.t.ppf(0.95, difference.seeds - 1) / stats.norm.ppf(0.95))
    return wider * difference.deviation / math.sqrt(difference.seeds)


def parameters(recipe: Recipe, vocabulary: int) -> int:
    """Of a recipe's model with a vocabulary of so many entries; only its shapes are made."""
    model = build_model(build_config(recipe.model, vocabulary, recipe.train.latents, 0), "meta")
    return sum(parameter.numel() for parameter in model.parameters())


def published_bound() -> tuple[float, float, int, float, float]:
    """What the 10B-A1B mixture of experts says: (parameters, latents, s, r, nats its gain is above).

    Its TST run of 49,983 steps ends below an ordinary run of 125,000, which itself ends below any shorter one.
    """
    moe = [run for run in published_runs() if run.params == "10B-A1B"]
    (ordinary,) = (run for run in moe if run.bag_size is None)
    (tst,) = (run for run in moe if run.bag_size is not None)
    assert tst.bag_size is not None
    latents = tst.steps * 4.0 * LATENTS_PER_STEP  # its batch is 8 million latents, the dense models' 2 million
    return 10e9, latents, tst.bag_size, round(tst.tst_steps / tst.steps, 3), round(ordinary.loss - tst.loss, 4)
