"""What several seeds say, and how sure it is."""

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import FiniteFloat
from scipy import optimize, stats

from superpose.results.intervals import Interval

_RESAMPLES = 5_000
_LEVEL = 0.95


@dataclass(frozen=True)
class Difference(Interval):
    """Mean of paired differences (TST minus ordinary, seed by seed) and its 95 % interval by Student's t.

    Attributes:
        value: the mean; negative is a lower loss for TST.
        seeds: pairs.
        deviation: standard deviation of the differences; None for a single seed.
        bootstrap: 95 % interval of the mean over resampled seeds, widened for their number.
    """

    seeds: int = 1
    deviation: float | None = None
    bootstrap: tuple[float, float] | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in comparison.json and tuning.json."""
        saved = asdict(self)
        return {"mean": saved.pop("value"), **saved}


def paired_difference(ordinary: Sequence[float], tst: Sequence[float]) -> Difference:
    """Compares two arms trained at the same seeds, given in the same order; a ValueError if their numbers differ."""
    if len(ordinary) != len(tst) or not tst:
        raise ValueError(f"{len(ordinary)} ordinary and {len(tst)} TST results; give one of each for every seed")
    differences = [after - before for before, after in zip(ordinary, tst, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Difference(mean)
    deviation = statistics.stdev(differences)
    half = half_width(deviation, count, count - 1)
    low, high = np.quantile(np.array(differences)[_resampled(count)].mean(axis=1), tails(count))
    return Difference(mean, mean - half, mean + half, count, deviation, (float(low), float(high)))


@dataclass(frozen=True)
class Corrected(Interval):
    """One of several differences that were looked at together.

    Attributes:
        low, high: interval at 1 - 0.05 / `tried` (Bonferroni): those of all together hold the truth in 95 % of cases.
        p: by Student's t, corrected by Holm; None for a single seed. Where there is no difference at all, one of them
            or more is below 0.05 in 5 % of cases at most, however they depend on each other.
        tried: how many were looked at.
    """

    p: FiniteFloat | None = None
    tried: int = 1
    seeds: int = 1

    @property
    def decided(self) -> bool:
        """Whether it is told apart from none; Holm decides so wherever the interval excludes 0, and in some cases more.

        Holm's steps have no intervals of their own: at the levels of its steps they hold the truth too rarely.
        """
        return self.p is not None and self.p <= 1 - _LEVEL


def corrected(differences: Mapping[str, Difference], tried: int | None = None) -> dict[str, Corrected]:
    """Corrects differences for their number.

    Args:
        tried: how many were looked at, if some came to nothing and are missing here; they count.
    """
    tried = len(differences) if tried is None else tried
    found = holm({name: p for name, one in differences.items() if (p := _p_value(one)) is not None}, tried)
    answers = {}
    for name, one in differences.items():
        low = high = None
        if one.deviation is not None:
            half = half_width(one.deviation, one.seeds, one.seeds - 1, tried)
            low, high = one.value - half, one.value + half
        answers[name] = Corrected(one.value, low, high, found.get(name), tried, one.seeds)
    return answers


def holm(values: Mapping[str, float], tried: int) -> dict[str, float]:
    """Values of p, corrected for how many were tried (Holm, 1979); of some of these there may be none."""
    found, largest = dict[str, float](), 0.0
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        largest = found[name] = max(largest, min(1.0, (tried - place) * values[name]))
    return found


def _p_value(difference: Difference) -> float | None:
    """Two-sided, of no difference; None for a single seed."""
    if difference.deviation is None:
        return None
    return p_value(difference.value, difference.deviation / math.sqrt(difference.seeds), difference.seeds - 1)


def p_value(value: float, error: float, freedom: float) -> float:
    """Two-sided, of no difference, by Student's t; `error` is the standard error of `value`."""
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, freedom))


def half_width(deviation: float, count: int, freedom: float, tried: int = 1) -> float:
    """Half of a mean's 95 % interval, by Student's t; where several were tried, they hold together (Bonferroni)."""
    level = 1 - (1 - _LEVEL) / tried
    return float(stats.t.ppf((1 + level) / 2, freedom)) * deviation / math.sqrt(count)


def seeds_needed(deviation: float, precision: float, most: int = 10_000, paired: bool = True) -> int | None:
    """Fewest seeds whose 95 % interval is expected to be `precision` to either side; None if more than `most`.

    Args:
        deviation: standard deviation of paired differences, from the seeds there are; without pairs, the root of the
            sum of both arms' variances.
        precision: half the width of the interval, in the same unit.
        paired: whether both arms are trained at the same seeds; else each has as many of its own.
    """
    counts, degrees = range(2, most + 1), 1 if paired else 2
    place = bisect.bisect_left(
        counts, True, key=lambda count: half_width(deviation, count, degrees * (count - 1)) <= precision
    )
    return counts[place] if place < len(counts) else None


@dataclass(frozen=True)
class Speedup:
    """How many times the steps ordinary training needs for the loss that TST reached.

    Attributes:
        ratio: of steps, and so of FLOPs; None where TST's loss is outside of the ordinary curve, because a curve is
            not extrapolated.
        beyond: the end of the curve it is outside of.
        low, high: 95 % interval over resampled seeds, widened for their number; None where it runs beyond the curve's
            end, or for one seed.
        advice: what is missing, if anything is.
        curve: steps and mean loss of the ordinary budgets, the loss made non-increasing.
    """

    ratio: float | None
    beyond: Literal["first", "last"] | None
    low: float | None
    high: float | None
    advice: str | None
    curve: tuple[tuple[float, float], ...]

    def ends(self) -> str:
        """The interval in words."""
        low = "less than the first budget" if self.low is None else f"{self.low:.2f}"
        high = "beyond the last budget" if self.high is None else f"{self.high:.2f}"
        return f"{low} to {high}"

    def spoken(self) -> str:
        """The speedup and its interval, as in a table."""
        if self.ratio is None:
            return f"{'before the first' if self.beyond == 'first' else 'beyond the last'} budget"
        interval = "" if self.low is None and self.high is None else f" ({self.ends()})"
        return f"{self.ratio:.2f} x{interval}"


def speedup(
    ordinary: Mapping[int, Sequence[float]] | Mapping[float, Sequence[float]], tst: Sequence[float], steps: float
) -> Speedup:
    """Reads off an ordinary run's loss curve at how many steps it reaches TST's loss, in log steps between budgets.

    Args:
        ordinary: final losses by two budgets or more, in steps; each has those of the same seeds in the same order.
        tst: final losses at those seeds.
        steps: of the TST runs.
    """
    budgets = sorted(ordinary)
    losses = np.array([values for _, values in sorted(ordinary.items())], dtype=float)
    reached = np.array(tst, dtype=float)
    if len(budgets) < 2 or losses.shape[1:] != reached.shape:
        raise ValueError("give two or more ordinary budgets, and the same seeds for all of them and for TST")
    curve = _falling(losses.mean(axis=1))
    place = _steps_at(budgets, curve, float(reached.mean()))
    bounds: Any = (0.0, math.inf)
    if len(reached) > 1:
        places = [
            _steps_at(budgets, _falling(losses[:, seeds].mean(axis=1)), float(reached[seeds].mean()))
            for seeds in _resampled(len(reached))
        ]
        # A place beyond an end of the curve is infinitely far: what is not known to be nearer.
        bounds = np.quantile(places, tails(len(reached)), method="closest_observation") / steps
    low, high = (float(bound) if math.isfinite(bound) and bound > 0 else None for bound in bounds)
    points = tuple((budget, float(loss)) for budget, loss in zip(budgets, curve, strict=True))
    if math.isinf(place):
        return Speedup(None, "last", low, high, _missing_budget(points, float(reached.mean())), points)
    if place == 0:
        shorter = f"ordinary training is below TST's loss at the shortest budget already, {budgets[0]:,} steps"
        return Speedup(None, "first", low, high, f"{shorter}; add a shorter one", points)
    return Speedup(place / steps, None, low, high, None, points)


def loss_at(curve: Sequence[tuple[float, float]], steps: float) -> float | None:
    """The loss a curve has at a number of steps, in log steps between its budgets; None outside of them.

    Likewise of FLOPs or tokens: of any amount above 0 that rises along the curve.
    """
    return losses_at(curve, [steps]).get(steps)


def losses_at(curve: Sequence[tuple[float, float]], steps: Sequence[float]) -> dict[float, float]:
    """`loss_at` each of these that is not outside."""
    budgets, losses = zip(*curve, strict=True)
    within = [place for place in steps if budgets[0] <= place <= budgets[-1]]
    found = np.interp([math.log(place) for place in within], np.log(budgets), losses)
    return dict(zip(within, found.tolist(), strict=True))


def _resampled(count: int) -> npt.NDArray[np.int64]:
    """Seeds drawn with replacement [resamples, count], always the same ones."""
    return np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))


def tails(count: int) -> tuple[float, float]:
    """Which quantiles of resampled means are the ends of an interval.

    The usual 2.5 % make it too narrow for few seeds, by the factor that Student's t is wider than the normal
    distribution and by sqrt(count / (count - 1)); these make up for both (Hesterberg, arXiv 1411.5279).
    """
    tail = float(stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf((1 + _LEVEL) / 2, count - 1)))
    return tail, 1 - tail


def _falling(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest sequence that never rises (isotonic regression): more steps do not truly make a model worse."""
    falling: npt.NDArray[np.float64] = optimize.isotonic_regression(losses, increasing=False).x
    return falling


def _steps_at(budgets: Sequence[float], curve: npt.NDArray[np.float64], loss: float) -> float:
    """Where a falling curve first reaches a loss; 0 before its first point, infinity after its last."""
    places = np.log(budgets)[::-1]
    return float(np.exp(np.interp(loss, curve[::-1], places, left=math.inf, right=-math.inf)))


def _missing_budget(points: Sequence[tuple[float, float]], loss: float) -> str:
    """Which ordinary budget to add so that its curve reaches a loss."""
    (steps, last), (before, above) = points[-1], points[-2]
    slope = (above - last) / math.log(steps / before)
    wanted = steps * 2
    if slope > 0:
        # A guess for the user's next command, rounded up; no result is taken from it.
        guess = steps * math.exp(min((last - loss) / slope, math.log(100)) * 1.25)
        digits = 10 ** (len(str(int(guess))) - 2)
        wanted = max(math.ceil(guess / digits) * digits, round(steps * 1.25))
    return (
        f"ordinary training has not reached TST's loss after {steps:,} steps, its longest budget; "
        f"add a longer one, such as --ordinary-budgets {wanted}"
    )
