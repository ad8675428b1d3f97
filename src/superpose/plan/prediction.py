"""What the evidence says about a run that is planned: a gain with its interval, or that there is no evidence.

There are two bodies of evidence, far apart, and each has a line of its own:

    the paper (270M to 3B parameters, 20,000 to 100,000 steps), tau = latents / parameters
        gain = A tau^-b x shape(s, r)          falls with tau: a longer run has less left to gain
    our own (0.09M parameters, 1,000 to 32,000 steps, s 4, r 0.1)
        gain = c + d ln(steps)                 rises with steps: recovery needs a number of steps, not a share of them

Outside of both, and away from comparisons of the user's own, there is no number but the nearest evidence. All
intervals are 95 % ones; benchmarks/evidence.py holds them against points that were left out (docs/planning.md).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import stats
from scipy.interpolate import LinearNDInterpolator

from superpose.plan.evidence import NORMAL, SMALL_RULE, Point, Setting, measured_points, published_points, short

Cell = tuple[int, float]
"""Bag size and ratio."""
LUCK = 0.005
"""Nats by which the paper's single runs differ for no reason: s 7 is 0.003 better than its neighbours, twice."""
_EDGE = 1.25
"""Factor by which a run may lie outside of the smallest and the largest that were measured."""
_NEAR = 1.02 * math.sqrt(5)
"""Factor to the nearest measured run: the paper's scales are up to 5 apart, so half of that."""
_CORE = set(itertools.product(range(4, 9), (0.1, 0.2, 0.3, 0.4)))
"""Cells that all sweeps have, whose mean is a sweep's height."""


@dataclass(frozen=True)
class Prediction:
    """The gain of a run over an ordinary one of equal FLOPs, nats per token; None where there is no evidence.

    Attributes:
        low, high: the gain's 95 % interval.
        speedup: how many times the steps ordinary training would take for the same loss: low, expected, high.
        basis: what it rests on, in a sentence.
        why: without a gain, what is missing, in sentences.
        nearest: the nearest evidence.
    """

    gain: float | None = None
    low: float | None = None
    high: float | None = None
    speedup: tuple[float, float, float] | None = None
    basis: str = "no evidence here"
    why: tuple[str, ...] = ()
    nearest: Point | None = None


@dataclass(frozen=True)
class Law:
    """gain = exp(intercept) tau^slope x shape(s, r), fitted to the paper's points; tau = latents / parameters.

    Attributes:
        shape: gain of a cell (s, r) in units of the mean over s 4 to 8 and r 0.1 to 0.4; of the sweeps together,
            whatever their weighting, which matters little.
        error: of a gain, in the same unit: what a scale that was left out of the fit missed by, root mean square.
        scales: fitted to. They are few, so intervals are Student's with one degree of freedom less.
    """

    intercept: float
    slope: float
    shape: dict[Cell, float]
    scales: int
    error: float = 0.0

    def height(self, params: float, latents: float) -> float:
        """The mean gain over s 4 to 8 and r 0.1 to 0.4, nats."""
        return math.exp(self.intercept + self.slope * math.log(latents / params))

    def shape_of(self, setting: Setting) -> float | None:
        """The gain of a setting in the unit of `shape`; None for a bag size or a ratio that no sweep has."""
        ratios = sorted(ratio for size, ratio in self.shape if size == setting.bag_size)
        if not ratios or not ratios[0] <= setting.ratio <= ratios[-1]:
            return None
        return float(np.interp(setting.ratio, ratios, [self.shape[setting.bag_size, ratio] for ratio in ratios]))

    def at(self, params: float, latents: float, setting: Setting) -> tuple[float, float] | None:
        """The gain, and half its 95 % interval; None where no sweep has the setting."""
        shape, height = self.shape_of(setting), self.height(params, latents)
        half = float(stats.t.ppf(0.975, self.scales - 1)) * self.error * height
        return None if shape is None else (height * shape, half)


def fit_law(points: Sequence[Point]) -> Law:
    """The law of some of the paper's points, with its error; they need three scales or more."""
    squares = []
    for scale in dict.fromkeys(point.scale for point in points):
        others = fit([point for point in points if point.scale != scale])
        pairs = [(others.at(*scale, point.setting), point.gain) for point in points if point.scale == scale]
        missed = [(found[0] - gain) / others.height(*scale) for found, gain in pairs if found is not None]
        squares.append(np.mean(np.square(missed)))
    return replace(fit(points), error=math.sqrt(float(np.mean(squares))))


def fit(points: Sequence[Point]) -> Law:
    """The law of some of the paper's points, without its error."""
    sweeps = defaultdict[str, dict[Cell, Point]](dict)
    for point in points:
        sweeps[point.source][point.setting.bag_size, point.setting.ratio] = point
    heights, gains, units = {}, defaultdict[Cell, float](float), defaultdict[Cell, float](float)
    for name, cells in sweeps.items():
        if len(cells) > 1:
            heights[name] = float(np.mean([point.gain for cell, point in cells.items() if cell in _CORE]))
            for cell, point in cells.items():
                gains[cell] += point.gain
                units[cell] += heights[name]
    shape = {cell: gains[cell] / units[cell] for cell in gains}
    scales = defaultdict[tuple[float, float], list[float]](list)
    for name, cells in sweeps.items():
        cell, point = next(iter(cells.items()))
        scales[point.scale].append(heights[name] if name in heights else point.gain / shape[cell])  # of a single run
    tau = [latents / params for params, latents in scales]
    slope, intercept = np.polyfit(np.log(tau), np.log([np.mean(found) for found in scales.values()]), 1)
    return Law(float(intercept), float(slope), shape, len(scales))


@cache
def published_law() -> Law:
    return fit_law(published_points())


def predict(params: float, latents: float, steps: int, setting: Setting, own: Sequence[Point] = ()) -> Prediction:
    """The gain of a run by the user's own comparisons where they are near, else by the paper's or our measurements.

    Args:
        params: of the model, embeddings included, and of a mixture of experts all of them.
        latents: positions computed in both phases together.
        own: comparisons of the user's own; they count within a factor 1.5 in parameters, latents and steps, s within
            a third and r within 0.1.
    """
    if setting.ordinary:
        return Prediction(0.0, 0.0, 0.0, (1.0, 1.0, 1.0), "without superposition the run is the ordinary one")
    near = [point for point in own if _beside(point, params, latents, steps, setting)]
    if near:
        return _of_own(near)
    nearest = min(
        (*own, *published_points(), *measured_points()),
        key=lambda p: (round(_distance(p, params, latents), 6), _apart(p.setting, setting)),
    )
    missing = missing_evidence(params, latents, steps, setting)
    if not missing:
        found = _of_paper(params, latents, setting)
    elif abs(math.log(params / measured_points()[0].params)) <= math.log(1.5):
        found = of_small(measured_points(), steps, setting)
    else:
        found = Prediction(why=missing)
    return replace(found, nearest=nearest)


def missing_evidence(params: float, latents: float, steps: int, setting: Setting) -> tuple[str, ...]:
    """One sentence for each way in which a run is outside of the paper's points; none if it is among them."""
    points, found = published_points(), []
    for what, value, known in (
        ("parameters", params, [point.params for point in points]),
        ("latents", latents, [point.latents for point in points]),
        ("steps", steps, [float(point.steps) for point in points]),
    ):
        if not min(known) / _EDGE <= value <= max(known) * _EDGE:
            found.append(f"{short(value)} {what}: the paper has {short(min(known))} to {short(max(known))}")
    if not found and min(_distance(point, params, latents) for point in points) > math.log(_NEAR):
        here = f"{short(params)} parameters at {short(latents)} latents"
        found.append(f"{here}: no run of the paper is within a factor of {_NEAR:.1f} in both")
    if published_law().shape_of(setting) is None:
        sizes, ratios = zip(*published_law().shape, strict=True)
        in_sweeps = f"s {min(sizes)} to {max(sizes)} and r {min(ratios):g} to {max(ratios):g}"
        found.append(f"{setting}: the paper's sweeps have {in_sweeps}")
    return tuple(found)


def level_settings(
    params: float, latents: float, bag_sizes: Sequence[int], ratios: Sequence[float]
) -> tuple[Setting, ...]:
    """Of these bag sizes and ratios those that the paper's law puts less than `LUCK` below the best, best first."""
    settings = itertools.starmap(Setting, itertools.product(bag_sizes, ratios))
    gains = {s: found[0] for s in settings if (found := published_law().at(params, latents, s)) is not None}
    level = [setting for setting, gain in gains.items() if max(gains.values()) - gain < LUCK]
    return tuple(sorted(level, key=lambda setting: -gains[setting]))


def _of_paper(params: float, latents: float, setting: Setting) -> Prediction:
    found = published_law().at(params, latents, setting)
    assert found is not None  # see missing_evidence
    pairs = sorted((math.log(p.latents / p.params), p.speedup) for p in published_points() if p.speedup is not None)
    taus, times = zip(*pairs, strict=True)
    expected = float(np.interp(math.log(latents / params), taus, times))
    basis = f"a power law through the paper's {published_law().scales} scales, for its text and recipe"
    return _within(*found, (min(times), expected, max(times)), basis)


def of_small(points: Sequence[Point], steps: int, setting: Setting) -> Prediction:
    """By comparisons of one small model: a line in ln(steps) at their usual setting; at the steps of a sweep over other
    settings, what lies between its cells."""
    usual, at = _usual(points), math.log(steps)
    value, half = line_at([math.log(p.steps) for p in usual], [p.gain for p in usual], at)
    size = f"our models of {short(points[0].params)} parameters"
    fewest, most = min(point.steps for point in usual), max(point.steps for point in usual)
    within = fewest / _EDGE <= steps <= most * _EDGE
    if within and 3 <= setting.bag_size <= 5 and abs(setting.ratio - SMALL_RULE.ratio) <= 0.05 + 1e-9:
        times = [(math.log(p.steps), math.log(p.speedup)) for p in usual if p.speedup is not None]
        log, wide = line_at([log for log, _ in times], [log for _, log in times], at)
        speedups = (math.exp(log - wide), math.exp(log), math.exp(log + wide))
        return _within(value, half, speedups, f"{size}, {len(usual)} comparisons at {fewest:,} to {most:,} steps")
    level = [point for point in points if 1 / _EDGE <= point.steps / steps <= _EDGE]
    if len({point.setting.bag_size for point in level}) > 2:
        cells = defaultdict[tuple[float, float], list[float]](list)
        for point in level:
            cells[math.log(point.setting.bag_size), point.setting.ratio].append(point.gain)
        between = LinearNDInterpolator(list(cells), [float(np.mean(gains)) for gains in cells.values()])
        gain = float(between(math.log(setting.bag_size), setting.ratio))
        if math.isfinite(gain):
            return _within(gain, half, None, f"{size}, a sweep of s and r at {level[0].steps:,} steps")
    missing = f"{size} were trained with {SMALL_RULE} for {fewest:,} to {most:,} steps, and with others for 2,000"
    return Prediction(why=(missing,))


def line_at(xs: Sequence[float], ys: Sequence[float], x: float) -> tuple[float, float]:
    """The value at x of a line through points by least squares, and half the 95 % interval of a new point by Student's
    t."""
    count, away = len(xs), np.array(xs) - np.mean(xs)
    slope, intercept = np.polyfit(xs, ys, 1)
    left = np.array(ys) - intercept - slope * np.array(xs)
    spread = 1 + 1 / count + (x - np.mean(xs)) ** 2 / (away**2).sum()
    half = stats.t.ppf(0.975, count - 2) * math.sqrt(float((left**2).sum()) / (count - 2) * spread)
    return float(intercept + slope * x), float(half)


def _of_own(near: Sequence[Point]) -> Prediction:
    """Comparisons of the user's own, weighed by their precision; where they disagree, the interval is the wider."""
    weights = np.array([1 / max(point.error, 1e-3) ** 2 for point in near])
    gains = np.array([point.gain for point in near])
    gain = float((weights * gains).sum() / weights.sum())
    between = float(gains.var(ddof=1)) if len(near) > 1 else 0.0
    half = NORMAL * math.sqrt(1 / float(weights.sum()) + between)
    times = [point.speedup for point in near if point.speedup is not None]
    saved = (min(times), float(np.mean(times)), max(times)) if times else None
    basis = f"your own comparisons ({', '.join(dict.fromkeys(point.source for point in near))})"
    return replace(_within(gain, half, saved, basis), nearest=near[0])


def _within(gain: float, half: float, times: tuple[float, float, float] | None, basis: str) -> Prediction:
    return Prediction(gain, gain - half, gain + half, times, basis)


def few_steps(steps: int, setting: Setting) -> tuple[str, ...]:
    """What our smallest models say against a run of so few steps, in sentences; nothing if they say nothing."""
    sentences, usual, (_, enough) = [], _usual(measured_points()), step_limits()
    if steps < enough:
        at = min((point.steps for point in usual), key=lambda known: abs(math.log(known / steps)))
        gains = " and ".join(f"{point.gain:+.3f}" for point in usual if point.steps == at)
        sentences.append(
            f"{steps:,} steps are few: models of {short(usual[0].params)} parameters gained {gains} nats at {at:,} "
            f"steps ({SMALL_RULE}), and on every text beyond doubt from {enough:,} steps on"
        )
    lost = [point for point in measured_points() if point.steps >= steps and point.gain + NORMAL * point.error < 0]
    lost.sort(key=lambda point: (point.setting.ratio, point.setting.bag_size))  # the mildest first
    for point in lost:
        if point.setting.bag_size <= setting.bag_size and point.setting.ratio <= setting.ratio:
            found = f"at {point.steps:,} steps they lost with {point.setting} already ({point.gain:+.3f} nats)"
            sentences.append(f"{found}: take a lower ratio, or smaller bags")
            break
    return tuple(sentences)


def step_limits() -> tuple[int, int]:
    """The most steps at which none of our comparisons gained beyond its 95 % interval, and the fewest from which on
    each did."""
    sure = defaultdict[int, list[bool]](list)
    for point in _usual(measured_points()):
        sure[point.steps].append(point.gain > NORMAL * point.error)
    unsure = max(steps for steps, found in sure.items() if not all(found))
    return max(steps for steps, found in sure.items() if not any(found)), min(n for n in sure if n > unsure)


def _usual(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.setting == SMALL_RULE]


def _distance(point: Point, params: float, latents: float) -> float:
    """The larger of the two factors that a run is away by, as a logarithm."""
    return max(abs(math.log(point.params / params)), abs(math.log(point.latents / latents)))


def _apart(a: Setting, b: Setting) -> float:
    return abs(math.log(a.bag_size / b.bag_size)) + abs(a.ratio - b.ratio) + (a.weighting != b.weighting)


def _beside(point: Point, params: float, latents: float, steps: int, setting: Setting) -> bool:
    other = point.setting
    return (
        max(_distance(point, params, latents), abs(math.log(point.steps / steps))) <= math.log(1.5)
        and abs(math.log(other.bag_size / setting.bag_size)) <= math.log(4 / 3) + 1e-9
        and abs(other.ratio - setting.ratio) <= 0.1 + 1e-9
        and other.weighting == setting.weighting
    )
