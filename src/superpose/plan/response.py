"""A response model of TST: the gain a setting will bring, how sure that is, and which setting to take.

    points (evidence.py) -> fit -> Response -> predict: gain and interval      -> best: a setting, and those as good

The form is `superpose.plan.shape`'s. Around it, each scale has two deviations of its own: of the benefit and of the
penalty, in shares of theirs. Scales that are near each other (in log parameters and log latents) have like deviations,
and a setup of one's own (text, tokenizer, recipe) has further ones, which the paper's points say nothing about. So an
interval is narrow where there are points, wide where there are none, and a point of one's own moves the predictions
around it. Coefficients and deviations are found together: the posterior's maximum, and a normal distribution around it
(Laplace's approximation).

What it does not know: the number of steps (the paper's runs have 20,000 and more; see `superpose.plan.steps`), the
learning rate, the kind of text, mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import least_squares
from scipy.stats import norm

from superpose.errors import UserError
from superpose.plan.evidence import OWN, BagWeighting, Point, check_setting, published_points
from superpose.plan.limits import beyond
from superpose.plan.shape import FORM, Array, Form, Settings

LEVEL = 0.9
"""Of every interval."""
RULE = (6, 0.3)
"""The constant rule: the s and r the paper takes for its runs, whatever the scale."""

# Standard deviations; benchmarks/response.py shows that held-out sweeps agree with them.
_SCALE = (0.15, 0.20)
"""Of a scale's own benefit and penalty, as shares of the form's: the paper's four scales."""
_SETUP = 0.35
"""Of a setup's own, beyond that: two corpora of ours, and ours against the paper's line (docs/results.md)."""
_NEAR = 2.0
"""Factor in parameters or latents, as a logarithm, at which likeness has fallen to 1/e."""
_OTHER_WEIGHTING = 0.9
"""Correlation of two weightings' deviations at one scale."""
_CELL, _COLUMN = 0.0015, 0.003
"""Nats: of a run, and of all runs of a bag size in a sweep, which share their superposition phase."""
_AS_GOOD = 0.0005
"""Nats that are no reason to read more data."""


class Group(NamedTuple):
    """Runs that share deviations."""

    setup: str
    params: float
    latents: float
    weighting: str


@dataclass(frozen=True)
class Setting:
    """What to train with."""

    bag_size: int
    ratio: float
    weighting: BagWeighting = "uniform"

    def __str__(self) -> str:
        return f"s {self.bag_size}, r {self.ratio:g}" + ("" if self.weighting == "uniform" else f", {self.weighting}")


@dataclass(frozen=True)
class Prediction:
    """The gain of one run over an ordinary one of equal FLOPs, in nats per token, positive where TST ends lower.

    Attributes:
        low, high: 90 % interval of a run's gain.
        in_range: whether there are points around it; if not, `why` says what is missing, in sentences.
    """

    gain: float
    low: float
    high: float
    in_range: bool = True
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """A setting to take.

    Attributes:
        setting: of the settings that are as good as the best within half a thousandth of a nat, the one that reads the
            least data; uniform weights unless others are better beyond doubt.
        prediction: of its gain.
        region: all settings that cannot be told from the best: they are predicted to end less above it than two runs
            differ (one-sided, 95 %). Ordered by predicted gain.
        why: in sentences.
    """

    setting: Setting
    prediction: Prediction
    region: tuple[Setting, ...]
    why: tuple[str, ...]


@dataclass(frozen=True)
class _Wanted:
    """A run to predict."""

    setup: str
    params: float
    latents: float
    bag_size: int
    ratio: float
    weighting: BagWeighting


def fit(points: Sequence[Point], form: Form = FORM) -> Response:
    """Fits coefficients and deviations to points; the more of them and the more scales, the narrower the intervals.

    Args:
        points: such as `published_points()`, with or without one's own.

    Raises:
        UserError: there are none, or they are so unlike the form that the fit finds no end.
    """
    if not points:
        raise UserError("there are no points to fit; give those of the paper, published_points(), or of a comparison")
    groups = tuple(dict.fromkeys(Group(p.setup, p.params, p.latents, p.weighting) for p in points))
    place = np.array([groups.index(Group(p.setup, p.params, p.latents, p.weighting)) for p in points])
    settings, gains = Settings.of(points), np.array([point.gain for point in points])
    factors = _factors(groups)
    whiten = _whitening(points)
    count = len(form.priors)

    def residuals(standard: Array) -> Array:
        own = factors @ standard[count:].reshape(2, -1, 1)  # [2, groups, 1]
        return np.concatenate([whiten @ (gains - _gain(form, standard[:count], settings, own[:, place, 0])), standard])

    found = least_squares(residuals, np.zeros(count + 2 * len(groups)), x_scale="jac", max_nfev=500)
    if not found.success:
        raise UserError("no response fits these points; check that gains are positive where TST ended lower")
    return Response(form, tuple(points), groups, found.x, np.linalg.inv(found.jac.T @ found.jac))


@cache
def published_response() -> Response:
    """Fitted to the paper's points alone."""
    return fit(published_points())


def _gain(form: Form, standard: Array, settings: Settings, own: Array) -> Array:
    """Gains [settings] at standardised coefficients and deviations [2, settings] of benefit and penalty."""
    at = {name: prior.value(float(z)) for (name, prior), z in zip(form.priors.items(), standard, strict=True)}
    gain: Array = form.height(at, settings) * (
        (1 + own[0]) * form.benefit(at, settings) - (1 + own[1]) * form.penalty(at, settings)
    )
    return gain


def _column(point: Point) -> tuple[str, int, str]:
    """Points that share it share luck."""
    return point.source, point.bag_size, point.weighting


def _noise(points: Sequence[Point]) -> Array:
    """Covariance [points, points] of what runs differ by that differ in nothing."""
    same = np.array([[_column(a) == _column(b) for b in points] for a in points])
    own = _CELL**2 + np.array([point.error for point in points]) ** 2
    covariance: Array = np.diag(own) + _COLUMN**2 * same
    return covariance


def _whitening(points: Sequence[Point]) -> Array:
    """Inverse [points, points] of the noise's triangular factor, column by column, as columns share nothing."""
    whiten = np.zeros((len(points), len(points)))
    columns: dict[tuple[str, int, str], list[int]] = {}
    for i, point in enumerate(points):
        columns.setdefault(_column(point), []).append(i)
    for rows in columns.values():
        whiten[np.ix_(rows, rows)] = np.linalg.inv(np.linalg.cholesky(_noise([points[i] for i in rows])))
    return whiten


def _covariance(rows: Sequence[Group], columns: Sequence[Group]) -> Array:
    """Of deviations of benefit and of penalty, [2, rows, columns]."""
    scale, other = (np.log([[group.params, group.latents] for group in side]) for side in (rows, columns))
    near = np.exp(-np.linalg.norm(scale[:, None] - other[None], axis=-1) / _NEAR)
    near *= np.array([[1 if a.weighting == b.weighting else _OTHER_WEIGHTING for b in columns] for a in rows])
    setup = np.array([[a.setup == b.setup == OWN for b in columns] for a in rows])
    covariance: Array = np.stack([near * (deviation**2 + _SETUP**2 * setup) for deviation in _SCALE])
    return covariance


def _factors(groups: Sequence[Group]) -> Array:
    """Lower triangular factors of their covariance, [2, groups, groups]."""
    return np.linalg.cholesky(_covariance(groups, groups) + 1e-9 * np.eye(len(groups))).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Response:
    """A fitted model; `fit` makes it.

    Attributes:
        points: it was fitted to.
        groups: scales with deviations of their own.
        mode: posterior's maximum of standardised coefficients, then of deviations [2, groups].
        covariance: of the posterior.
    """

    form: Form
    points: tuple[Point, ...]
    groups: tuple[Group, ...]
    mode: Array
    covariance: Array

    @property
    def coefficients(self) -> dict[str, tuple[float, float, float]]:
        """Value and 90 % interval of each coefficient, by its name in `superpose.plan.shape`."""
        half: Array = norm.ppf((1 + LEVEL) / 2) * np.sqrt(np.diag(self.covariance))
        return {
            name: (prior.value(float(z)), prior.value(float(z - width)), prior.value(float(z + width)))
            for (name, prior), z, width in zip(self.form.priors.items(), self.mode, half, strict=False)
        }

    def predict(
        self,
        params: float,
        latents: float,
        bag_size: int,
        ratio: float,
        weighting: BagWeighting = "uniform",
        *,
        steps: int | None = None,
        setup: str = OWN,
    ) -> Prediction:
        """The gain of a run.

        Args:
            params: of the model, embeddings included, and of a mixture of experts all of them (which count matters
                there, the paper's one such run does not say).
            latents: budget, positions computed in both phases together.
            steps: of the run, if known; only to say whether the paper has such short ones.
            setup: `PUBLISHED` predicts a run of the paper's own text and recipe, whose deviations the points know.

        Raises:
            UserError: the setting is none, or has no recovery.
        """
        check_setting(bag_size, ratio, weighting)
        if bag_size == 1 or ratio == 0:
            return Prediction(0.0, 0.0, 0.0, True, ("without superposition the run is the ordinary one",))
        wanted = _Wanted(setup, params, latents, bag_size, ratio, weighting)
        return self._predictions([wanted], steps)[0]

    def predict_points(self, points: Sequence[Point]) -> list[Prediction]:
        """The gains of runs that were made: what to hold the measured ones against."""
        return self._predictions(
            [_Wanted(p.setup, p.params, p.latents, p.bag_size, p.ratio, p.weighting) for p in points], None
        )

    def _predictions(self, wanted: Sequence[_Wanted], steps: int | None) -> list[Prediction]:
        gains, covariance = self._joint(wanted)
        half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(np.diag(covariance) + _CELL**2 + _COLUMN**2)
        found = []
        for w, gain, width in zip(wanted, gains.tolist(), half.tolist(), strict=True):
            why = beyond(self.points, w.params, w.latents, w.bag_size, w.ratio, w.weighting, steps)
            found.append(Prediction(gain, gain - width, gain + width, not why, why))
        return found

    def best(
        self,
        params: float,
        latents: float,
        bag_sizes: Sequence[int] = tuple(range(2, 17)),
        ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        weightings: Sequence[BagWeighting] = ("uniform", "power"),
        *,
        steps: int | None = None,
        setup: str = OWN,
    ) -> Advice:
        """The setting to take of all combinations, and those that are as good.

        On sweeps it has not seen, this loses less than the constant rule s 6, r 0.3, but by no more than runs differ by
        luck (docs/planning-response.md). So take it as a small correction of the rule that reads less data, and any
        setting of the region where something else speaks for it.

        Raises:
            UserError: a setting has no superposition or no recovery.
        """
        settings = [Setting(s, r, w) for w in weightings for s in bag_sizes for r in ratios]
        for setting in settings:
            check_setting(setting.bag_size, setting.ratio, setting.weighting)
        settings = [setting for setting in settings if setting.bag_size > 1 and setting.ratio > 0]
        if not settings:
            raise UserError("no setting to choose from; give bag sizes above 1 and ratios between 0 and 1")
        wanted = [_Wanted(setup, params, latents, s.bag_size, s.ratio, s.weighting) for s in settings]
        gains, covariance = self._joint(wanted)
        top = int(np.argmax(gains))
        spread = np.diag(covariance) + covariance[top, top] - 2 * covariance[top]
        doubt = norm.ppf(0.95) * np.sqrt(spread + 2 * (_CELL**2 + _COLUMN**2))
        order = np.argsort(-gains, kind="stable")
        region = [int(i) for i in order if i == top or gains[top] - gains[i] < doubt[i]]
        plain = [i for i in region if settings[i].weighting == "uniform"] or region
        level = [i for i in plain if gains[plain[0]] - gains[i] < _AS_GOOD]
        chosen = min(level, key=lambda i: settings[i].ratio * (settings[i].bag_size - 1))
        setting = settings[chosen]
        prediction = self.predict(
            params, latents, setting.bag_size, setting.ratio, setting.weighting, steps=steps, setup=setup
        )
        sizes = [settings[i].bag_size for i in plain if settings[i].ratio == setting.ratio]
        shares = [settings[i].ratio for i in plain if settings[i].bag_size == setting.bag_size]
        why = [
            f"{setting} is predicted to gain most for the data it reads, but at r {setting.ratio:g} every s from "
            f"{min(sizes)} to {max(sizes)}, and at s {setting.bag_size} every r from {min(shares):g} to "
            f"{max(shares):g}, cannot be told from it"
        ]
        rule = Setting(*RULE, setting.weighting)
        if rule in settings and rule != setting:
            behind = gains[chosen] - gains[settings.index(rule)]
            told = "cannot be told from it" if settings.index(rule) in region else "is worse beyond doubt"
            why.append(f"the constant rule, {rule}, is predicted {behind:.4f} nats behind and {told}")
        if prediction.gain <= 0:
            why.append("no setting is predicted to gain: train ordinarily")
        elif prediction.low <= 0:
            why.append("the interval includes no gain at all, so compare on a small scale first")
        return Advice(setting, prediction, tuple(settings[i] for i in region), tuple(why))

    def _joint(self, wanted: Sequence[_Wanted]) -> tuple[Array, Array]:
        """Expected gains [wanted] and their covariance, without the luck of single runs."""
        if not all(w.params > 0 and w.latents > 0 for w in wanted):
            raise UserError("give the model's parameters and the budget in latents as numbers above 0")
        settings = Settings.of(wanted)
        kinds = tuple(dict.fromkeys(Group(w.setup, w.params, w.latents, w.weighting) for w in wanted))
        place = [kinds.index(Group(w.setup, w.params, w.latents, w.weighting)) for w in wanted]
        # A new scale's deviations, given those of the scales there are: a weighted mean, and what it leaves open.
        cross = _covariance(self.groups, kinds)
        weights = np.stack(
            [solve_triangular(f, c, lower=True) for f, c in zip(_factors(self.groups), cross, strict=True)]
        )
        left = _covariance(kinds, kinds) - weights.transpose(0, 2, 1) @ weights
        count = len(self.form.priors)

        def gain(standard: Array, more: tuple[float, float] = (0.0, 0.0)) -> Array:
            own = np.einsum("kgm,kg->km", weights, standard[count:].reshape(2, -1)) + np.array(more)[:, None]
            return _gain(self.form, standard[:count], settings, own[:, place])

        expected, small = gain(self.mode), 1e-5
        slopes = np.stack([(gain(self.mode + step) - expected) / small for step in small * np.eye(len(self.mode))], 1)
        covariance = slopes @ self.covariance @ slopes.T
        for which, more in enumerate(((1.0, 0.0), (0.0, 1.0))):
            share = gain(self.mode, more) - expected
            covariance += np.outer(share, share) * left[which][np.ix_(place, place)]
        return expected, covariance
