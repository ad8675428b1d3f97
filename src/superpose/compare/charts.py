"""The charts of a comparison: curves, seeds, budgets, gains."""

import statistics

from superpose.compare.comparison import Comparison, Trained
from superpose.compare.experiment import ORDINARY, TST
from superpose.results.charts import AXES, Chart, Role, Series, mean_series, read_series, read_validations

_FINAL = "final validation loss, nats per token"
_STEPS = {"step": "optimizer steps of the whole run"}


def curves(comparison: Comparison) -> Chart:
    """Validation loss of both arms at the main budget: each seed thinly, and the means."""
    series: list[Series] = []
    for arm, label in _arms(comparison):
        of_arm = [
            read_series(run.directory, f"{label}, seed {run.seed}", arm, thin=True)
            for run in _main_runs(comparison, arm)
        ]
        series += [*(of_arm if len(of_arm) > 1 else []), mean_series(of_arm, label)]
    tst = _main_runs(comparison, TST)[0]
    least, most = min(min(one.y) for one in series), max(max(one.y) for one in series if one.role == "ordinary")
    margin = 0.08 * (most - least)
    return Chart(
        "Validation loss",
        "next-token validation loss, nats per token",
        {name: AXES[name] for name in ("flops", "raw_tokens", "latents", "seconds")},
        tuple(series),
        _switches(comparison, tst),
        y_range=(least - margin, most + margin) if margin > 0 else None,
        caption="Thin lines are seeds, thick ones their mean. Validation is next-token in both phases, so TST's curve "
        "is far above the picture until recovery begins.",
    )


def _arms(comparison: Comparison) -> tuple[tuple[Role, str], ...]:
    """The two arms and what they are called."""
    return ("ordinary", "ordinary"), ("tst", comparison.tst_label)


def _main_runs(comparison: Comparison, arm: str) -> list[Trained]:
    wanted = (arm, comparison.steps)
    return [run for run in comparison.runs if (run.arm, run.steps) == wanted and run.seed in comparison.seeds]


def _switches(comparison: Comparison, tst: Trained) -> tuple[tuple[dict[str, float], str], ...]:
    """Where phases meet on each axis: at the validation record of each boundary."""
    records = {record.step: record for record in read_validations(tst.directory)}
    boundaries = comparison.recipe.schedule.boundaries
    return tuple(
        (
            {axis: float(getattr(records[boundary], axis)) for axis in AXES},
            "recovery begins" if boundary == boundaries[-1] else "next stage",
        )
        for boundary in boundaries
        if boundary in records
    )


def seeds(comparison: Comparison) -> Chart:
    """Final loss of each seed in both arms."""
    numbers = [float(seed) for seed in comparison.seeds]
    series = tuple(
        Series(label, {"seed": numbers}, comparison.values(arm, "val_loss"), arm, points=True)
        for arm, label in _arms(comparison)
    )
    caption = "Both arms share a seed's initial weights and order of text."
    return Chart("Spread of the seeds", _FINAL, {"seed": "seed"}, series, caption=caption)


def budgets(comparison: Comparison) -> Chart:
    """Final loss against the budget: what the question of equal loss is read off."""
    series = []
    for arm, label in _arms(comparison):
        steps = [budget for budget in comparison.budgets(arm) if comparison.seeds_of((arm, budget))]
        losses = [comparison.values(arm, "val_loss", budget, comparison.seeds_of((arm, budget))) for budget in steps]
        means = [statistics.fmean(of_budget) for of_budget in losses]
        low, high = [min(of_budget) for of_budget in losses], [max(of_budget) for of_budget in losses]
        series.append(Series(label, {"step": [*map(float, steps)]}, means, arm, [*low], [*high]))
    return Chart(
        "Final loss at each budget",
        _FINAL,
        _STEPS,
        tuple(series),
        log_x=True,
        caption="Each point is the mean of runs that decayed their learning rate at that budget; bars reach from the "
        "lowest to the highest seed. How far the ordinary curve lies to the right of TST's point is the speedup.",
    )


def gains(comparison: Comparison) -> Chart:
    """TST minus ordinary at each budget both arms have."""
    known = {float(n): gain for n in comparison.budgets(TST) if (gain := comparison.equal_flops(n)) is not None}
    values, low, high = ([getattr(gain, end) for gain in known.values()] for end in ("value", "low", "high"))
    return Chart(
        "Gain against budget, at equal FLOPs",
        "TST minus ordinary, nats per token",
        _STEPS,
        (Series("difference and its 95 % interval", {"step": [*known]}, values, "tst", low, high),),
        level=0.0,
        log_x=True,
        caption="Below the line TST is better.",
    )


def all_charts(comparison: Comparison) -> list[Chart]:
    """Those that have something to show."""
    charts = [curves(comparison)]
    if len(comparison.seeds) > 1:
        charts.append(seeds(comparison))
    if len(comparison.budgets(ORDINARY)) > 1:
        charts.append(budgets(comparison))
    if len(comparison.budgets(TST)) > 1:
        charts.append(gains(comparison))
    return charts
