"""Is the difference real? What `superpose compare` says of runs that were trained and logged elsewhere.

curves of each arm -> their values where all have come -> differences to the first arm, paired by seed where seeds
are known, and the spread of an arm's own runs -> tables, verdict, chart -> RUNS/NAME/logged.json, summary.md, loss.png
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import TypeAdapter
from scipy import stats

from superpose.compare.logs import STEPS, Curve, read_arms
from superpose.errors import UserError
from superpose.files import read_json, write_json, write_text
from superpose.results.charts import Chart, Role, Series, draw
from superpose.results.curves import captioned
from superpose.results.intervals import Interval, ends, spoken
from superpose.results.statistics import Speedup, half_width, holm, loss_at, losses_at, p_value, seeds_needed, speedup
from superpose.results.tables import Row, Table, markdown

_FORMAT = "superpose logged runs 1"
_SAME = 0.01
"""Runs whose ends differ by no more than this share are of one length."""


@dataclass(frozen=True)
class LoggedDifference(Interval):
    """An arm minus the first, and how sure it is.

    Attributes:
        value, low, high: mean and interval, together 95 % for all arms that were compared with the first (Bonferroni).
        p: two-sided, by Student's t for pairs and by Welch's for the rest, corrected by Holm; None where a run of
            each is all there is.
        paired: whether runs of one seed were compared.
        runs: pairs; or the runs of both arms.
        needed: runs of each arm for a 95 % interval of half the difference to either side; None if unknown or over
            10,000.
    """

    p: float | None = None
    paired: bool = False
    runs: int = 1
    needed: int | None = None


@dataclass(frozen=True)
class Logged:
    """Runs of several arms that were logged elsewhere.

    Attributes:
        metric: what is compared; lower is better.
        x: name of what it is compared over.
        arms: the runs of each; all others are compared with the first.
    """

    metric: str
    x: str
    arms: dict[str, tuple[Curve, ...]]

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads logged.json back; a UserError if it was altered or is of another version."""
        path = directory / "logged.json"
        saved = read_json(path)
        try:
            if saved.pop("format") != _FORMAT:
                raise ValueError
            return TypeAdapter(cls).validate_python({name: saved[name] for name in ("metric", "x", "arms")})
        except (KeyError, ValueError):
            raise UserError(f"{path} was altered, or is of another version; compare the logs again") from None

    @property
    def first(self) -> str:
        return next(iter(self.arms))

    @property
    def others(self) -> list[str]:
        return [*self.arms][1:]

    @cached_property
    def longest(self) -> dict[str, list[Curve]]:
        """The runs of each arm that are compared: those of its greatest length, in their order."""
        return {arm: _longest(curves) for arm, curves in self.arms.items()}

    @cached_property
    def at(self) -> float:
        """Where values are compared: the furthest x that every arm's longest runs have all come to."""
        return min(curve.end for curves in self.longest.values() for curve in curves)

    def values(self, arm: str) -> list[tuple[int | None, float]]:
        """Seed and value at `at` of each of an arm's longest runs."""
        values = [(curve.seed, loss_at(curve.points, self.at)) for curve in self.longest[arm]]
        return [(seed, value) for seed, value in values if value is not None]

    @cached_property
    def differences(self) -> dict[str, LoggedDifference]:
        """Of each other arm to the first."""
        found = {arm: _difference(self.values(self.first), self.values(arm), len(self.others)) for arm in self.others}
        p = holm({arm: one.p for arm, one in found.items() if one.p is not None}, len(self.others))
        return {arm: replace(one, p=p.get(arm)) for arm, one in found.items()}

    @cached_property
    def noise(self) -> tuple[float, int] | None:
        """Standard deviation of an arm's runs around their mean, of all arms together, and its degrees of freedom.

        None where no arm has two runs.
        """
        groups = [[value for _, value in self.values(arm)] for arm in self.arms]
        freedom = sum(len(group) - 1 for group in groups)
        if not freedom:
            return None
        squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
        return math.sqrt(squares / freedom), freedom

    @cached_property
    def speedups(self) -> dict[str, Speedup | None]:
        """How many times an arm's x the first arm needs for its value at `at`; None where they cannot be set together.

        From the ends of the first arm's runs, if they have several lengths; else from their curves, see `cautions`.
        """
        return {arm: self._speedup(arm) for arm in self.others}

    def _speedup(self, arm: str) -> Speedup | None:
        values, first = self.values(arm), self.arms[self.first]
        lengths = _lengths(first)
        if len(lengths) > 1:
            by_length = [{curve.seed: curve.points[-1][1] for curve in of_length} for of_length in lengths.values()]
            seeds = sorted(set.intersection(*map(_known, by_length), _known(dict(values))))
            if not seeds:
                return None
            ordinary = {end: [losses[seed] for seed in seeds] for end, losses in zip(lengths, by_length, strict=True)}
            return speedup(ordinary, [dict(values)[seed] for seed in seeds], self.at)
        pairs = _pairs(self.values(self.first), values)
        curves = {curve.seed: curve for curve in first}
        if pairs:
            chosen, reached = [curves[seed] for seed in pairs], [b for _, b in pairs.values()]
        else:
            fewest = min(len(first), len(values))
            chosen, reached = list(first[:fewest]), [value for _, value in values[:fewest]]
        losses = _together(chosen)
        return speedup(losses, reached, self.at) if len(losses) > 1 else None

    def rows(self) -> list[Row]:
        """Each arm: runs, mean, its difference, p, equal loss."""
        rows: list[Row] = []
        for arm in self.arms:
            values = [value for _, value in self.values(arm)]
            answers = ("", "", "")
            if arm != self.first:
                one, faster = self.differences[arm], self.speedups[arm]
                p = "-" if one.p is None else f"{one.p:.2g}"
                answers = (spoken(one), p, faster.spoken() if faster else "-")
            rows.append((arm, str(len(values)), f"{statistics.fmean(values):.4f}", *answers))
        return rows

    def tables(self) -> list[Table]:
        header = ("", "runs", "mean", f"minus {self.first}", "p", f"equal {self.metric}, {self.x}")
        rows: list[Row] = []
        for arm, curve in ((arm, curve) for arm, curves in self.arms.items() for curve in curves):
            seed, (last, value) = "-" if curve.seed is None else str(curve.seed), curve.points[-1]
            rows.append((arm, seed, f"{last:,.6g}", f"{value:.4f}", curve.run))
        return [
            (f"{self.metric} at {self.x} {self.at:,.6g}", header, self.rows()),
            ("Runs", ("", "seed", f"last {self.x}", f"last {self.metric}", "file"), rows),
        ]

    def verdict(self) -> str:
        """What came out, in words; the first other arm first."""
        return " ".join([*(self._on(arm) for arm in self.others), *self.cautions()])

    def _on(self, arm: str) -> str:
        one, metric = self.differences[arm], self.metric
        side = "lower" if one.value < 0 else "higher"
        amount = f"{metric} of {arm} is {abs(one.value):.4f} {side} than that of {self.first}"
        if one.low is None:
            return f"{amount}: a run of each is an anecdote, since runs differ by their seed alone. Log more seeds."
        how = f"{one.runs} pairs of a seed" if one.paired else f"{one.runs} runs, not paired"
        interval = f"95 % interval {ends(one)}, p {one.p:.2g}; {how}"
        if one.p is not None and one.p <= 0.05:
            return f"Real: {amount} ({interval})."
        needed = f"about {one.needed} of each" if one.needed else "more than 10,000 of each"
        return (
            f"Undecided: {amount}, but that may be the seeds ({interval}). For an interval of half this difference "
            f"to either side, log {needed}."
        )

    def cautions(self) -> list[str]:
        """What keeps the result from meaning more."""
        notes, of_one_length = [], len(_lengths(self.arms[self.first])) < 2
        if self.noise is not None:
            deviation, freedom = self.noise
            apart = float(stats.t.ppf(0.975, freedom)) * math.sqrt(2) * deviation
            notes.append(
                f"Noise: runs of one arm have a standard deviation of {deviation:.4f}; two single runs of one arm are "
                f"up to {apart:.4f} apart in 95 of 100 cases."
            )
        if len(self.others) > 1:
            notes.append(f"{len(self.others)} arms were tried; intervals and p are corrected for that.")
        for arm in self.others:
            one = self.differences[arm]
            left = len(self.values(self.first)) + len(self.values(arm)) - 2 * one.runs
            if one.paired and left:
                notes.append(f"{left} runs of {self.first} and {arm} have no partner of their seed and are left out.")
        shorter = sum(
            curve.end < longest[0].end * (1 - _SAME)
            for arm, longest in self.longest.items()
            for curve in self.arms[arm]
        )
        if shorter and of_one_length:
            notes.append(f"{shorter} runs are shorter than the longest of their arm and are not compared.")
        if any(longest[0].end > self.at * (1 + _SAME) for longest in self.longest.values()):
            notes.append(
                f"Not all arms end at {self.x} {self.at:,.6g}: a run that goes on has not let its learning rate fall "
                f"there, which makes its value higher than that of a run that ends."
            )
        if of_one_length and any(self.speedups.values()):
            notes.append(
                f"Equal {self.metric} is read off the curves of {self.first} themselves, not off runs that end there: "
                f"with a learning rate that falls, those would be lower, and the factor smaller."
            )
        return notes

    def chart(self) -> Chart:
        """All runs thinly, and the mean of each arm as far as all of it have come."""
        series: list[Series] = []
        for number, (arm, longest) in enumerate(self.longest.items()):
            role: Role = "ordinary" if number == 0 else "tst" if number == 1 else "other"
            means = {place: statistics.fmean(losses) for place, losses in _together(longest).items()}
            if len(longest) > 1 and role != "other":
                for curve in longest:
                    x, y = zip(*curve.points, strict=True)
                    series.append(Series(f"{arm}: {curve.run}", {"x": [*x]}, [*y], role, thin=True))
            series.append(Series(arm, {"x": [*means]}, [*means.values()], role))
        values = [value for one in series for value in one.y]
        low, high = min(values), max([float(np.quantile(values, 0.9)), *(one.y[-1] for one in series if one.y)])
        margin = 0.08 * (high - low)
        shown = (low - margin, high + margin) if margin > 0 else None
        thin = any(one.thin for one in series)
        return captioned(
            Chart(self.metric, self.metric, {"x": self.x}, tuple(series), y_range=shown),
            "Thin lines are runs, thick ones the mean of an arm's longest runs." if thin else "Each line is a run.",
        )

    def write(self, directory: Path) -> None:
        """Writes logged.json, which holds all curves, summary.md and loss.png."""
        answers: dict[str, Any] = {
            arm: {
                "difference": asdict(self.differences[arm]),
                "speedup": asdict(faster) if (faster := self.speedups[arm]) else None,
            }
            for arm in self.others
        }
        noise = None if self.noise is None else {"deviation": self.noise[0], "freedom": self.noise[1]}
        saved = {"format": _FORMAT, **asdict(self), "at": self.at, "noise": noise, "answers": answers}
        write_json(directory / "logged.json", saved)
        write_text(directory / "summary.md", markdown(self.tables(), self.verdict()))
        draw(self.chart(), ("x",), directory / "loss.png")


def compare_logs(
    arms: Sequence[str], metric: str, x: str | None = None, *, runs: Path = Path("runs"), name: str = "logs"
) -> Logged:
    """Compares runs that were trained elsewhere, and writes what came out into RUNS/NAME.

    Args:
        arms, metric, x: see `superpose.compare.logs.read_arms`; the first arm is what the others are compared with.
        runs: directory for results.
        name: of the comparison.

    Raises:
        UserError: files cannot be read, or do not hold what is asked for.
    """
    found = read_arms(arms, metric, x)
    logged = Logged(metric, x or STEPS[0], {arm: tuple(curves) for arm, curves in found.items()})
    short = next((curve for curves in found.values() for curve in curves if len(curve.points) < 2), None)
    if short is not None:
        raise UserError(f"{short.run} has one value of {metric}; a curve takes two or more")
    for arm in found:
        if len(logged.values(arm)) < len(logged.longest[arm]):
            raise UserError(
                f"--logs {arm}: a run begins behind {logged.x} {logged.at:g}, where another arm ends; leave it out"
            )
    logged.write(runs / name)
    return logged


def _lengths(curves: Sequence[Curve]) -> dict[float, list[Curve]]:
    """Runs by their length, ascending; lengths that differ by a hundredth or less are one."""
    lengths: dict[float, list[Curve]] = {}
    for curve in sorted(curves, key=lambda curve: curve.end):
        last = next(reversed(lengths), None)
        lengths.setdefault(curve.end if last is None or curve.end > last * (1 + _SAME) else last, []).append(curve)
    return lengths


def _longest(curves: Sequence[Curve]) -> list[Curve]:
    *_, longest = _lengths(curves).values()
    return [curve for curve in curves if curve in longest]


def _together(curves: Sequence[Curve]) -> dict[float, list[float]]:
    """The values of all these runs at each x that the first logged, where every one of them has come to it."""
    places = [place for place, _ in curves[0].points]
    found = [losses_at(curve.points, places) for curve in curves]
    return {place: [losses[place] for losses in found] for place in places if all(place in losses for losses in found)}


def _known(by_seed: dict[int | None, Any]) -> set[int]:
    return {seed for seed in by_seed if seed is not None}


def _pairs(
    first: Sequence[tuple[int | None, float]], other: Sequence[tuple[int | None, float]]
) -> dict[int, tuple[float, float]]:
    """The values of both arms by seed, where all runs of both have one; empty where they do not, or share none."""
    if any(seed is None for seed, _ in itertools.chain(first, other)):
        return {}
    a, b = dict(first), dict(other)
    return {seed: (a[seed], b[seed]) for seed in sorted(_known(a) & _known(b))}


def _difference(
    first: Sequence[tuple[int | None, float]], other: Sequence[tuple[int | None, float]], tried: int
) -> LoggedDifference:
    """Other minus first, not yet corrected by Holm."""
    pairs = _pairs(first, other)
    paired = len(pairs) > 1 or (bool(pairs) and len(first) == len(other) == 1)
    if paired:
        gaps = [b - a for a, b in pairs.values()]
        mean = statistics.fmean(gaps)
        if len(gaps) == 1:
            return LoggedDifference(mean, paired=True)
        deviation = statistics.stdev(gaps)
        error, freedom = deviation / math.sqrt(len(gaps)), float(len(gaps) - 1)
        runs, spread = len(gaps), deviation
    else:
        a, b = ([value for _, value in values] for values in (first, other))
        mean, runs = statistics.fmean(b) - statistics.fmean(a), len(a) + len(b)
        if len(a) < 2 or len(b) < 2:
            return LoggedDifference(mean, runs=runs)
        parts = [statistics.variance(values) / len(values) for values in (a, b)]
        error = math.sqrt(sum(parts))
        squares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
        freedom = sum(parts) ** 2 / squares if squares else float(runs - 2)  # Welch and Satterthwaite
        spread = math.sqrt(statistics.variance(a) + statistics.variance(b))
    half = half_width(error, 1, freedom, tried)
    needed = seeds_needed(spread, abs(mean) / 2, paired=paired)
    return LoggedDifference(mean, mean - half, mean + half, p_value(mean, error, freedom), paired, runs, needed)
