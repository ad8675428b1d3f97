"""Holds what `superpose plan` says of gains against points that were left out, and gathers our own measurements.

    python benchmarks/evidence.py

It writes src/superpose/plan/measured.json (our gains, from the comparisons in benchmarks/results), all figures into
benchmarks/results/evidence.json, and the tables of docs/planning.md.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from measure import refuse_arguments
from superpose.compare.comparison import Comparison
from superpose.files import read_json, write_json, write_text
from superpose.plan.evidence import (
    NORMAL,
    RULE,
    SMALL_RULE,
    Point,
    Setting,
    measured_points,
    points_of,
    published_points,
)
from superpose.plan.prediction import fit, fit_law, of_small, published_law
from superpose.reproduce.reproduction import Reproduction
from superpose.results.tables import Row, Table, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "planning.md"
MEASURED = ROOT / "src" / "superpose" / "plan" / "measured.json"
COMPARISONS = ("english", "python", "python-16000", "python-32000")

Left = tuple[Point, float, float]
"""A point that was left out, the gain that was predicted for it, and half its 95 % interval."""
SPLITS: dict[str, Callable[[Point], Hashable]] = {
    "cell": lambda point: (point.source, point.steps, point.setting),
    "sweep": lambda point: point.source,
    "scale": lambda point: point.scale,
}
OWN_SPLITS: dict[str, Callable[[Point], Hashable]] = {
    "cell": SPLITS["cell"],
    "steps": lambda point: point.steps,
    "text": SPLITS["sweep"],
}


def main() -> None:
    refuse_arguments(__doc__)
    write_json(MEASURED, {"source": "benchmarks/results", "points": [entry(point) for point in gathered()]})
    measured_points.cache_clear()
    found = {
        "the paper": {name: paper_left_out(key) for name, key in SPLITS.items()},
        "ours": {name: own_left_out(key) for name, key in OWN_SPLITS.items()},
    }
    figures = {whose: {name: summary(*left) for name, left in splits.items()} for whose, splits in found.items()}
    law = published_law()
    write_json(
        RESULTS / "evidence.json",
        {
            "law": {"intercept": law.intercept, "slope": law.slope, "error": law.error, "scales": law.scales},
            "left_out": figures,
            "response_model": response_model(),
        },
    )
    tables = {"validation": validation(figures), "ours": ours(), "heights": heights(), "regrets": regrets()}
    for title, header, rows in tables.values():
        print(f"{title}\n{markdown([('', header, rows)], '').strip()}\n")
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), tables))


def filled(page: str, tables: dict[str, Table]) -> str:
    """The page with its marked places filled."""

    def place(found: re.Match[str]) -> str:
        if found[2] not in tables:
            return found[0]
        _, header, rows = tables[found[2]]
        return f"{found[1]}\n{markdown([('', header, rows)], '').strip()}\n\n{found[3]}"

    return re.sub(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", place, page, flags=re.DOTALL)


def gathered() -> list[Point]:
    """Gains by steps: of each comparison at each budget, those of the same runs once, and of the sweep at 2,000."""
    points: dict[tuple[str, int], Point] = {}
    for name in COMPARISONS:
        for point in points_of(Comparison.load(RESULTS / name), name.split("-")[0]):
            points.setdefault((point.source, point.steps), point)
    return [*points.values(), *swept(next(iter(points.values())).params)]


def swept(params: float) -> list[Point]:
    """The cells of figure 4 that were trained at 2,000 steps; without s 4, r 0.1, which the comparisons have."""
    (figure,) = (e for e in Reproduction.load(RESULTS / "reproduce-tiny" / "reproduction.json") if e.name == "figure4")
    losses = {arm.name: arm.losses for arm in figure.arms}
    steps, cells = figure.recipe.train.steps, []
    for name, found in losses.items():
        cell = re.fullmatch(r"s(\d+)-r([\d.]+)", name)
        if cell is None or (setting := Setting(int(cell[1]), float(cell[2]))) == SMALL_RULE:
            continue
        gains = [losses["ordinary"][seed] - found[seed] for seed in sorted(found.keys() & losses["ordinary"].keys())]
        half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains))
        latents = float(steps * figure.recipe.latents_per_step)
        cells.append(Point(params, latents, steps, setting, statistics.fmean(gains), "sweep", float(half) / NORMAL))
    return cells


def entry(point: Point) -> dict[str, Any]:
    setting = [point.setting.bag_size, point.setting.ratio]
    return {**asdict(point), "setting": setting}


def paper_left_out(key: Callable[[Point], Hashable]) -> tuple[list[Left], int]:
    """The paper's points predicted without those that share their key; and how many there was no evidence for."""
    points = published_points()
    left, nothing = [], 0
    for name in dict.fromkeys(map(key, points)):
        unseen = [point for point in points if key(point) == name]
        others = [point for point in points if key(point) != name]
        # A single cell changes nothing of the error, which takes a fit for each scale.
        law = (
            replace(fit(others), error=published_law().error)
            if len(unseen) == 1 < len(sweep(unseen[0]))
            else fit_law(others)
        )
        for point in unseen:
            found = law.at(*point.scale, point.setting)
            if found is None:
                nothing += 1
            else:
                left.append((point, *found))
    return left, nothing


def sweep(point: Point) -> list[Point]:
    return [other for other in published_points() if other.source == point.source]


def own_left_out(key: Callable[[Point], Hashable]) -> tuple[list[Left], int]:
    """The same of ours, with the line through comparisons of the other steps and texts, and the sweep's other cells."""
    points = measured_points()
    left, nothing = [], 0
    for point in points:
        known = [other for other in points if key(other) != key(point)]
        found = of_small(known, point.steps, point.setting)
        if found.gain is None or found.high is None:
            nothing += 1
        else:
            left.append((point, found.gain, found.high - found.gain))
    return left, nothing


def summary(left: Sequence[Left], nothing: int) -> dict[str, Any]:
    errors = [predicted - point.gain for point, predicted, _ in left]
    within = [abs(predicted - point.gain) <= half for point, predicted, half in left]
    return {
        "points": len(left),
        "no_evidence": nothing,
        "rmse": math.sqrt(statistics.fmean(error**2 for error in errors)),
        "bias": statistics.fmean(errors),
        "coverage": statistics.fmean(within),
    }


def response_model() -> dict[str, Any]:
    """The errors of the model of nine coefficients that this replaced, under the same splits; kept as measured."""
    before = RESULTS / "evidence.json"
    kept: dict[str, Any] = read_json(before)["response_model"] if before.exists() else {}
    return kept


def validation(figures: dict[str, dict[str, dict[str, Any]]]) -> Table:
    before = response_model()
    rows: list[Row] = []
    for whose, splits in figures.items():
        for name, found in splits.items():
            rows.append(
                (
                    whose,
                    f"a {name}" if name != "steps" else "all of a budget",
                    str(found["points"]),
                    str(found["no_evidence"]),
                    f"{found['rmse']:.4f}",
                    f"{before[whose][name]['rmse']:.4f}",
                    f"{found['coverage']:.0%}",
                    f"{before[whose][name]['coverage']:.0%}",
                )
            )
    header = (
        "points of",
        "left out",
        "predicted",
        "no evidence",
        "RMSE, nats",
        "model before",
        "within",
        "model before",
    )
    return "Points that were left out", header, rows


def heights() -> Table:
    """The paper's scales beside the law, at s 6, r 0.3."""
    law = published_law()
    rows: list[Row] = []
    for point in published_points():
        if (point.setting.bag_size, point.setting.ratio) == (RULE.bag_size, RULE.ratio):
            gain, half = law.at(*point.scale, point.setting) or (0.0, 0.0)
            rows.append((point.source, f"{point.latents / point.params:.0f}", f"{point.gain:.3f}",
                         f"{gain:.3f} ({gain - half:.3f} to {gain + half:.3f})"))  # fmt: skip
    return "The paper's scales", ("run", "latents per parameter", "measured gain, nats", "law"), rows


def ours() -> Table:
    rows: list[Row] = []
    for point in measured_points():
        if point.setting != SMALL_RULE:
            continue
        found = of_small(measured_points(), point.steps, point.setting)
        assert found.speedup is not None
        times = found.speedup
        rows.append((point.source, f"{point.steps:,}", f"{point.gain:+.3f}",
                     f"{found.gain:+.3f} ({found.low:+.3f} to {found.high:+.3f})", f"{point.speedup or 0:.2f} x",
                     f"{times[1]:.2f} x ({times[0]:.2f} to {times[2]:.2f})"))  # fmt: skip
    header = ("text", "steps", "measured gain, nats", "line", "measured speedup", "line")
    return "Ours", header, rows


def regrets() -> Table:
    """What constant rules lose to the best cell of each sweep."""
    rules = (RULE, Setting(6, 0.2), Setting(8, 0.2), Setting(4, 0.3))
    sweeps: dict[str, dict[tuple[int, float], float]] = {}
    for point in published_points():
        sweeps.setdefault(point.source, {})[point.setting.bag_size, point.setting.ratio] = point.gain
    lost = {
        name: [max(cells.values()) - cells[rule.bag_size, rule.ratio] for rule in rules]
        for name, cells in sweeps.items()
        if len(cells) > 1
    }
    rows: list[Row] = [(name, *(f"{cost:.4f}" for cost in costs)) for name, costs in lost.items()]
    rows.append(("mean", *(f"{cost:.4f}" for cost in np.mean(list(lost.values()), axis=0))))
    return "Regrets, nats", ("sweep", *map(str, rules)), rows


if __name__ == "__main__":
    main()
