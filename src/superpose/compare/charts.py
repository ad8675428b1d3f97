"""The charts of a comparison: curves, seeds, budgets, gains."""

import statistics

from superpose.compare.comparison import Comparison
from superpose.compare.experiment import ORDINARY, TST
from superpose.results.charts import AXES, Chart, Role, Series, mean_series, read_series, read_validations

_FINAL = "final validation loss, nats per token"
_ROLES: dict[str, Role] = {ORDINARY: "ordinary", TST: "tst"}
_STEPS = {"step": "optimizer steps of the whole run"}


def curves(comparison: Comparison) -> Chart:
    """Validation loss of all arms at the main budget: each seed of ordinary training and TST thinly, and the means."""
    series: list[Series] = []
    at_main = [
        run
        for run in comparison.runs
        if run.steps == comparison.steps_of(run.arm, comparison.steps) and run.seed in comparison.seeds
    ]
    for arm, role, label in _arms(comparison):
        of_arm = [
            read_series(run.directory, f"{label}, seed {run.seed}", role, thin=True)
            for run in at_main
            if run.arm == arm
        ]
        if role == "other":  # whose seeds would hide the rest
            series += [mean_series(of_arm, label)] if of_arm else []
            continue
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


def _arms(comparison: Comparison) -> list[tuple[str, Role, str]]:
    """Name, colour and label of what is drawn."""
    arms: list[tuple[str, Role, str]] = [(ORDINARY, "ordinary", "ordinary"), (TST, "tst", comparison.tst_label)]
    return [*arms, *((name, "other", name) for name in comparison.variants if comparison.budgets(name))]


def seeds(comparison: Comparison) -> Chart:
    """Final loss of each seed in all arms."""
    series = []
    for arm, role, label in _arms(comparison):
        known = comparison.seeds_of((ORDINARY, comparison.steps), (TST, comparison.steps), (arm, comparison.steps))
        losses = comparison.values(arm, "val_loss", seeds=known)
        series.append(Series(label, {"seed": [*map(float, known)]}, losses, role, points=True))
    caption = "All arms share a seed's initial weights and order of text."
    return Chart("Spread of the seeds", _FINAL, {"seed": "seed"}, tuple(series), caption=caption)


def budgets(comparison: Comparison) -> Chart:
    """Final loss against the budget: what the question of equal loss is read off."""
    series = []
    for arm, role, label in _arms(comparison):
        steps = comparison.budgets(arm)
        losses = [comparison.values(arm, "val_loss", budget, comparison.seeds_of((arm, budget))) for budget in steps]
        means = [statistics.fmean(of_budget) for of_budget in losses]
        low, high = [*map(min, losses)], [*map(max, losses)]
        series.append(Series(label, {"step": [*map(float, steps)]}, means, role, [*low], [*high]))
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
    """TST, and each variant, minus ordinary at each budget both have."""
    series = []
    for arm, role, label in _arms(comparison)[1:]:
        known = {float(n): gain for n in comparison.budgets(arm) if (gain := comparison.equal_flops(n, arm=arm))}
        values, low, high = ([getattr(gain, end) for gain in known.values()] for end in ("value", "low", "high"))
        name = label if comparison.variants else "difference and its 95 % interval"
        series.append(Series(name, {"step": [*known]}, values, role, low, high))
    return Chart(
        "Gain against budget, at equal FLOPs",
        "TST minus ordinary, nats per token",
        _STEPS,
        tuple(series),
        level=0.0,
        log_x=True,
        caption="Below the line TST is better."
        + (" Bars are 95 % intervals, each taken for itself." if comparison.variants else ""),
    )


def variants(comparison: Comparison) -> Chart:
    """Differences of the variants to both arms, with intervals that hold together."""
    series, roles = [], {ORDINARY: "minus ordinary", TST: "minus TST"}
    for place, (other, label) in enumerate(roles.items()):
        found = comparison.variants_against(other)
        rows = {2 * n + place + 1.0: found[name] for n, name in enumerate(comparison.variants) if name in found}
        values, low, high = ([getattr(one, end) for one in rows.values()] for end in ("value", "low", "high"))
        series.append(Series(label, {"row": [*rows]}, values, _ROLES[other], low, high, points=True))
    names = "; ".join(f"{2 * n + 1} and {2 * n + 2}: {name}" for n, name in enumerate(comparison.variants))
    return Chart(
        "Variants, at equal FLOPs",
        "nats per token",
        {"row": "number of the difference"},
        tuple(series),
        level=0.0,
        caption=f"{names}. Below the line the variant is better. Bars are 95 % intervals of all together.",
    )


def all_charts(comparison: Comparison) -> list[Chart]:
    """Those that have something to show."""
    of_several = {
        seeds: comparison.seeds,
        budgets: comparison.budgets(ORDINARY),
        gains: comparison.budgets(TST),
    }
    first = [curves(comparison), *([variants(comparison)] if comparison.variants else [])]
    return [*first, *(chart(comparison) for chart, what in of_several.items() if len(what) > 1)]
