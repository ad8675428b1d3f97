"""Checks the response model of `superpose plan` on sweeps it has not seen, and gathers the evidence on few steps.

    python benchmarks/response.py

It writes src/superpose/plan/measured.json (our own gains by steps, from benchmarks/results), all figures into
benchmarks/results/response.json, and the tables of docs/planning-response.md.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from superpose.compare.comparison import Comparison
from superpose.files import write_json, write_text
from superpose.plan import steps as few
from superpose.plan.evidence import PUBLISHED, Point, points_of, published_bound, published_points
from superpose.plan.limits import short
from superpose.plan.response import Response, fit
from superpose.plan.shape import FORM, Array, Coefficients, Form, Prior, Settings, benefit, penalty
from superpose.plan.validation import Held, leave_out, scale_of
from superpose.reproduce.reproduction import Reproduction
from superpose.results.tables import Row, Table, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "planning-response.md"
MEASURED = ROOT / "src" / "superpose" / "plan" / "measured.json"

COMPARISONS = ("english", "python", "python-16000", "python-32000")
WANTED = {
    "270M, 20B latents": (270e6, 20e9),
    "270M, 42B latents": (270e6, 42e9),
    "600M, 42B latents": (600e6, 42e9),
    "3B, 42B latents": (3e9, 42e9),
    "3B, 105B latents": (3e9, 105e9),
    "10B-A1B, 420B latents": (10e9, 420e9),
    "124M, 2.5B latents": (124e6, 2.5e9),
    "0.1M, 16M latents": (0.1e6, 16e6),
}


def main() -> None:
    write_json(MEASURED, {"source": "benchmarks/results", "points": measured()})
    points = published_points()
    response = fit(points)
    by_sweep, by_scale = leave_out(points), leave_out(points, scale_of)
    tables = {
        "coefficients": coefficients(response),
        "sweeps": validation(by_sweep),
        "scales": validation(by_scale),
        "regrets": regrets(by_sweep),
        "forms": forms(points),
        "ours": ours(response),
        "steps": by_steps(),
        "wanted": wanted(response),
    }
    params, latents, s, r, bound = published_bound()
    moe = response.predict(params, latents, s, r, setup=PUBLISHED)
    write_json(
        RESULTS / "response.json",
        {
            "coefficients": response.coefficients,
            "leave_one_sweep_out": [asdict(held) for held in by_sweep],
            "leave_one_scale_out": [asdict(held) for held in by_scale],
            "tables": tables,
            "mixture_of_experts": {"published_gain_above": bound, "predicted": asdict(moe)},
        },
    )
    for name, table in tables.items():
        print(f"{name}\n{markdown([table], '')}")
    print(f"10B-A1B, s {s}, r {r}: predicted {moe.gain:.4f} ({moe.low:.4f} to {moe.high:.4f}); published above {bound}")
    if PAGE.exists():
        text = PAGE.read_text(encoding="utf-8")
        marked = r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)"
        write_text(PAGE, re.sub(marked, lambda place: filled(place, tables), text, flags=re.DOTALL))


def filled(place: re.Match[str], tables: Mapping[str, Table]) -> str:
    """A marked place of the page with its table."""
    _, header, rows = tables[place[2]]
    return f"{place[1]}\n{markdown([('', header, rows)], '').strip()}\n\n{place[3]}"


def measured() -> list[dict[str, Any]]:
    """Gains by steps: of each comparison at each budget, those of the same runs once, and of the sweep at 2,000."""
    entries: dict[tuple[str, int], dict[str, Any]] = {}
    for name in COMPARISONS:
        comparison = Comparison.load(RESULTS / name)
        for point in points_of(comparison, name.split("-")[0]):
            steps = round(point.latents / comparison.recipe.latents_per_step)
            difference = comparison.equal_flops(steps)
            assert difference is not None
            entries.setdefault(
                (point.source, steps), {"point": asdict(point), "steps": steps, "seeds": difference.seeds}
            )
    params = next(iter(entries.values()))["point"]["params"]
    return [*entries.values(), *swept(params)]


def swept(params: float) -> list[dict[str, Any]]:
    """The cells of figure 4 that were trained at 2,000 steps; without s 4, r 0.1, which the comparisons have."""
    (figure,) = (e for e in Reproduction.load(RESULTS / "reproduce-tiny" / "reproduction.json") if e.name == "figure4")
    losses = {arm.name: arm.losses for arm in figure.arms}
    cells = []
    for name, found in losses.items():
        cell = re.fullmatch(r"s(\d+)-r([\d.]+)", name)
        if cell is None or cell.groups() == ("4", "0.1"):
            continue
        seeds = sorted(found.keys() & losses["ordinary"].keys())
        gains = [losses["ordinary"][seed] - found[seed] for seed in seeds]
        # As of comparisons: widened as far as Student's t is wider at 90 %, here of three seeds (2.920 for 1.645).
        error = statistics.stdev(gains) / len(gains) ** 0.5 * 2.920 / 1.645
        latents = float(figure.recipe.train.steps * figure.recipe.latents_per_step)
        point = Point(
            params, latents, int(cell[1]), float(cell[2]), "uniform", statistics.fmean(gains), "sweep", error=error
        )
        cells.append({"point": asdict(point), "steps": figure.recipe.train.steps, "seeds": len(seeds)})
    return cells


def coefficients(response: Response) -> Table:
    rows: list[Row] = [(name, *(f"{value:.3f}" for value in values)) for name, values in response.coefficients.items()]
    return "Coefficients, 90 % intervals", ("coefficient", "value", "from", "to"), rows


def validation(held: Sequence[Held]) -> Table:
    rows: list[Row] = [
        (
            sweep.name,
            str(sweep.points),
            f"{sweep.rmse:.4f}",
            f"{sweep.bias:+.4f}",
            f"{sweep.coverage:.0%}",
            f"{sweep.practical_rmse:.4f}",
            f"{sweep.practical_bias:+.4f}",
            f"{sweep.flat_rmse:.4f}",
        )
        for sweep in held
    ]
    header = ("left out", "cells", "RMSE", "bias", "within", "RMSE, practical", "bias, practical", "RMSE of the mean")
    return "Sweeps that were left out", header, rows


def regrets(held: Sequence[Held]) -> Table:
    sweeps = [sweep for sweep in held if sweep.chosen is not None]
    names = [f"s {rule.setting.bag_size}, r {rule.setting.ratio:g}" for rule in sweeps[0].rules]
    rows: list[Row] = []
    costs = []
    for sweep in sweeps:
        assert sweep.chosen is not None
        costs.append([sweep.chosen.nats, *(rule.nats for rule in sweep.rules)])
        rows.append((sweep.name, str(sweep.chosen.setting), *(f"{cost:.4f}" for cost in costs[-1])))
    rows.append(("mean", "", *(f"{statistics.fmean(column):.4f}" for column in zip(*costs, strict=True))))
    return "Regrets, nats", ("left out", "recommended", "its regret", *names), rows


def forms(points: Sequence[Point]) -> Table:
    """Each form's RMSE: of the points it was fitted to; where a scale was left out, mean of the five, and each."""
    rows: list[Row] = []
    for name, form in candidates().items():
        held = leave_out(points, scale_of, form)
        errors = [sweep.practical_rmse for sweep in held]
        everywhere = statistics.fmean(sweep.rmse for sweep in held)
        figures = (fitted_rmse(fit(points, form)), statistics.fmean(errors), everywhere, *errors)
        rows.append((name, str(len(form.priors)), *(f"{figure:.4f}" for figure in figures)))
    names = list(dict.fromkeys(point.source for point in points))
    return "Forms", ("form", "coefficients", "fitted", "practical", "all cells", *names), rows


def fitted_rmse(response: Response) -> float:
    """Root mean square of what is left of the points a model was fitted to, nats."""
    predictions = response.predict_points(response.points)
    left = [point.gain - prediction.gain for point, prediction in zip(response.points, predictions, strict=True)]
    return math.sqrt(statistics.fmean(error**2 for error in left))


def candidates() -> dict[str, Form]:
    """The form that was chosen, and those it was chosen from: each differs from it in one respect."""

    def form(without: Sequence[str] = (), more: Mapping[str, Prior] | None = None, **parts: Any) -> Form:
        priors = {name: prior for name, prior in FORM.priors.items() if name not in without}
        return replace(FORM, priors={**priors, **(more or {})}, **parts)

    def tall(power: Callable[[Coefficients, Settings], Array]) -> Callable[[Coefficients, Settings], Array]:
        return lambda at, x: at["A"] * power(at, x)

    def apart(at: Coefficients, x: Settings) -> Array:
        grown: Array = (x.latents / 42e9) ** -at["beta"] * (x.params / 600e6) ** at["alpha"]
        return grown

    def by_latents(at: Coefficients, x: Settings) -> Array:
        grown: Array = (x.latents / 42e9) ** -at["beta"]
        return grown

    def by_size(at: Coefficients, x: Settings) -> Array:
        grown: Array = (x.params / 600e6) ** at["alpha"]
        return grown

    def of_data(at: Coefficients, x: Settings) -> Array:
        read: Array = 1 - np.exp(-(x.ratio ** at["nu"]) * (x.effective - 1) / at["sigma"])
        return read

    def slow(at: Coefficients, x: Settings) -> Array:
        first = 1 - x.effective ** (-1 / at["sigma"])
        second: Array = 1 - np.exp(-x.ratio * (x.bag_size - 1) ** at["nu"] / at["rho"])
        return first * second

    def logarithmic(at: Coefficients, x: Settings) -> Array:
        lost: Array = at["c"] * (x.bag_size - 1) ** at["q"] * (-np.log(1 - x.ratio)) ** at["p"]
        return lost

    def unweighted(part: Callable[[Coefficients, Settings], Array]) -> Callable[[Coefficients, Settings], Array]:
        return lambda at, x: part(at, replace(x, effective=x.bag_size))

    scales, alpha = ("beta", "gamma"), {"alpha": Prior(0.0, 0.3, positive=False)}
    return {
        "chosen": FORM,
        "height the same at all scales": form(scales, height=tall(lambda at, x: np.ones_like(x.params))),
        "height by latents": form(("gamma",), height=tall(by_latents)),
        "height by parameters": form(scales, alpha, height=tall(by_size)),
        "height by both, apart": form(("gamma",), alpha, height=tall(apart)),
        "beta's prior ten times as wide": form(more={"beta": Prior(0.0, 1.5, positive=False)}),
        "benefit of s and r apart (nu 0)": form(("nu",), benefit=lambda at, x: benefit({**at, "nu": 0.0}, x)),
        "benefit of the data read alone": form(("rho",), benefit=of_data),
        "benefit as a power of s": form(benefit=slow),
        "penalty by the logarithm of 1 - r": form(more={"p": Prior(2.0, 0.5)}, penalty=logarithmic),
        "penalty by the weighted bag too": form(penalty=lambda at, x: penalty(at, replace(x, bag_size=x.effective))),
        "weighting ignored": form(benefit=unweighted(benefit)),
    }


def ours(response: Response) -> Table:
    """Our own comparisons beside what the paper's points alone predict for them."""
    rows: list[Row] = []
    for entry in few.measured():
        point = entry.point
        if point.source == "sweep":
            continue
        prediction = response.predict(point.params, point.latents, point.bag_size, point.ratio)
        rows.append(
            (
                point.source,
                f"{entry.steps:,}",
                f"{point.latents / point.params:.0f}",
                f"{point.gain:+.4f}",
                f"{prediction.gain:+.4f}",
                f"{prediction.low:+.4f} to {prediction.high:+.4f}",
            )
        )
    return "Ours", ("text", "steps", "latents per parameter", "measured", "predicted", "90 % interval"), rows


def by_steps() -> Table:
    rows: list[Row] = [
        (f"{row.steps:,}", str(row.comparisons), f"{row.gain:+.4f}", f"{row.low:+.4f} to {row.high:+.4f}")
        for row in few.gain_by_steps()
    ]
    return "Gain by steps", ("steps", "texts", "gain, nats", "90 % interval"), rows


def wanted(response: Response) -> Table:
    rows: list[Row] = []
    for name, (params, latents) in WANTED.items():
        advice = response.best(params, latents)
        prediction = advice.prediction
        rows.append(
            (
                name,
                short(latents / params),
                str(advice.setting),
                f"{prediction.gain:.3f}",
                f"{prediction.low:.3f} to {prediction.high:.3f}",
                "yes" if prediction.in_range else "no",
            )
        )
    header = ("model and budget", "latents per parameter", "recommended", "gain, nats", "90 % interval", "in range")
    return "Recommendations", header, rows


if __name__ == "__main__":
    main()
