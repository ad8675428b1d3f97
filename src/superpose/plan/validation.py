"""How well the response model predicts sweeps it has not seen, and what its recommendation costs beside the rule's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from superpose.plan.evidence import Point
from superpose.plan.response import RULE, Setting, fit
from superpose.plan.shape import FORM, Form


@dataclass(frozen=True)
class Regret:
    """What choosing a setting cost in a sweep: the sweep's largest gain minus the gain there, nats per token."""

    setting: Setting
    nats: float


@dataclass(frozen=True)
class Held:
    """A sweep that was left out of the fit and predicted. All errors are predicted minus measured gain, in nats.

    Attributes:
        points: cells.
        rmse, bias, coverage: root mean square error, mean error, share of cells within their 90 % intervals.
        practical_rmse, practical_bias: of the cells with s 3 to 10 and r 0.1 to 0.5.
        flat_rmse: of the practical cells, had the gain been predicted as the mean of the fitted points that have the
            same s and r (of all fitted points where none has).
        chosen: what the model recommends, seen with the sweep; None for a single run.
        rules: what constant rules cost there.
    """

    name: str
    points: int
    rmse: float
    bias: float
    coverage: float
    practical_rmse: float
    practical_bias: float
    flat_rmse: float
    chosen: Regret | None
    rules: tuple[Regret, ...]


RULES = (RULE, (6, 0.2), (8, 0.2), (4, 0.3))
"""Constant rules to hold the model against; the first is the paper's own setting."""


def scale_of(point: Point) -> str:
    """A key for `leave_out`: all points of a model size and budget."""
    return f"{point.params:.3g} parameters, {point.latents:.3g} latents"


def leave_out(
    points: Sequence[Point], key: Callable[[Point], str] = lambda point: point.source, form: Form = FORM
) -> tuple[Held, ...]:
    """Leaves out all points of one key at a time, fits the others, and predicts what was left out.

    Args:
        key: what is left out together; by default a sweep. The two sweeps at 600M share their scale and their ordinary
            run, so leaving out one of them is an easier question than leaving out `scale_of`.
    """
    return tuple(
        held
        for name in dict.fromkeys(map(key, points))
        for held in _predicted([p for p in points if key(p) != name], [p for p in points if key(p) == name], form)
    )


def _predicted(known: Sequence[Point], unseen: Sequence[Point], form: Form) -> list[Held]:
    response = fit(known, form)
    held = []
    for source in dict.fromkeys(point.source for point in unseen):
        sweep = [point for point in unseen if point.source == source]
        predictions = response.predict_points(sweep)
        errors = np.array([q.gain - p.gain for p, q in zip(sweep, predictions, strict=True)])
        practical = np.array([3 <= p.bag_size <= 10 and p.ratio < 0.55 for p in sweep])
        flat = np.array([_mean_gain(known, p) - p.gain for p in sweep])
        chosen: Regret | None = None
        rules: tuple[Regret, ...] = ()
        if len(sweep) > 1:
            gains = {(p.bag_size, p.ratio): p.gain for p in sweep}
            first = sweep[0]
            sizes, ratios = ([*dict.fromkeys(cell[i] for cell in gains)] for i in (0, 1))
            advice = response.best(
                first.params, first.latents, [int(s) for s in sizes], ratios, [first.weighting], setup=first.setup
            )
            best = max(gains.values())
            chosen = Regret(advice.setting, best - gains[advice.setting.bag_size, advice.setting.ratio])
            rules = tuple(
                Regret(Setting(*rule, first.weighting), best - gains[rule]) for rule in RULES if rule in gains
            )
        held.append(
            Held(
                source,
                len(sweep),
                _rms(errors),
                float(errors.mean()),
                float(np.mean([q.low <= p.gain <= q.high for p, q in zip(sweep, predictions, strict=True)])),
                _rms(errors[practical]),
                float(errors[practical].mean()),
                _rms(flat[practical]),
                chosen,
                rules,
            )
        )
    return held


def _mean_gain(known: Sequence[Point], point: Point) -> float:
    same = [p.gain for p in known if (p.bag_size, p.ratio) == (point.bag_size, point.ratio)]
    return float(np.mean(same or [p.gain for p in known]))


def _rms(errors: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return math.sqrt(float(np.mean(errors**2)))
