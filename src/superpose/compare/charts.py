"""The charts of a comparison: curves, seeds, budgets, gains."""

import statistics

from superpose.compare.comparison import Comparison
from superpose.compare.experiment import ORDINARY, TST
from superpose.results.charts import AXES, Chart, Role, Series, mean_series, read_series, read_validations

_FINAL = "final validation loss, nats per token"
_STEPS = {"step": "optimizer steps of the whole run"}


def curves(comparison: Comparison) -> Chart:
    """Validation loss of both arms at the main budget: each seed thinly, and the means."""
    series: list[Series] = []
    at_main = [run for run in comparison.runs if run.steps == comparison.steps and run.seed in comparison.seeds]
    for arm, label in _arms(comparison):
        of_arm = [
            read_series(run.directory, f"{label}, seed {run.seed}", arm, thin=True) for run in at_main if run.arm == arm
        ]
        series += [*(of_arm if len(of_arm) > 1 else []), mean_series(of_arm, label)]
    # Phases meet at the validation record of each boundary.
    records = {record.step: record for record in read_validations(next(r for r in at_main if r.arm == TST).directory)}
    schedule = comparison.recipe.schedule
    marks = [
        (
            {axis: float(getattr(records[boundary], axis)) for axis in AXES},
            "recovery begins" if boundary == schedule.recovers_at else "next stage",
        )
        for boundary in schedule.boundaries
        if boundary in records
    ]
    least, most = min(min(one.y) for one in series), max(max(one.y) for one in series if one.role == "ordinary")
    margin = 0.08 * (most - least)
    return Chart(
        "Validation loss",
        "next-token validation loss, nats per token",
        {name: AXES[name] for name in ("flops", "raw_tokens", "latents", "seconds")},
        tuple(series),
        tuple(marks),
        y_range=(least - margin, most + margin) if margin > 0 else None,
        caption="Thin lines are seeds, thick ones their mean. Validation is next-token in both phases, so TST's curve "
        "is far above the picture until recovery begins.",
    )


def _arms(comparison: Comparison) -> tuple[tuple[Role, str], ...]:
    return ("ordinary", "ordinary"), ("tst", comparison.tst_label)


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
        steps = comparison.budgets(arm)
        losses = [comparison.values(arm, "val_loss", budget, comparison.seeds_of((arm, budget))) for budget in steps]
        means = [statistics.fmean(of_budget) for of_budget in losses]
        low, high = [*map(min, losses)], [*map(max, losses)]
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
    of_several = {
        seeds: comparison.seeds,
        budgets: comparison.budgets(ORDINARY),
        gains: comparison.budgets(TST),
    }
    return [curves(comparison), *(chart(comparison) for chart, what in of_several.items() if len(what) > 1)]
