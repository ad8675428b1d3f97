"""The charts of a comparison: curves, seeds, budgets, gains, speedups. A caption says what these very runs did."""

import statistics
from collections.abc import Mapping, Sequence

from superpose.compare.comparison import Comparison, Trained
from superpose.compare.experiment import ORDINARY, TST
from superpose.results.charts import AXES, Chart, Mark, Role, Series
from superpose.results.curves import Losses, captioned, mean_series, read_series, switch_marks, training_charts, zoomed
from superpose.results.intervals import Interval

_FINAL = "final validation loss, nats per token"
_ROLES: dict[str, Role] = {ORDINARY: "ordinary", TST: "tst"}
_STEPS = {"step": "optimizer steps of the whole run"}


def curves(comparison: Comparison) -> Chart:
    """Validation loss of all arms at the main budget: each seed of ordinary training and TST thinly, and the means."""
    series: list[Series] = []
    for arm, role, label in _arms(comparison):
        of_arm = [
            read_series(run.directory, f"{label}, seed {run.seed}", role, thin=True)
            for run in _at_main(comparison)
            if run.arm == arm
        ]
        if role != "other" and len(of_arm) > 1:  # the seeds of variants would hide the rest
            series += of_arm
        series += [mean_series(of_arm, label)] if of_arm else []
    marks = _switch(comparison)
    chart = Chart(
        "Validation loss",
        "next-token validation loss, nats per token",
        {name: AXES[name] for name in ("flops", "raw_tokens", "latents", "seconds")},
        tuple(series),
        tuple(marks),
        y_range=zoomed(series),
    )
    thin = "Thin lines are seeds, thick ones their mean." if any(one.thin for one in series) else ""
    return captioned(chart, thin, "Both phases are validated on the next token.", _at_the_switch(series, marks))


def _at_the_switch(series: Sequence[Series], marks: Sequence[Mark]) -> str:
    """What TST's mean did when bags ended, as far as it was validated."""
    (tst,) = (one for one in series if one.role == "tst" and not one.thin)
    steps, switch = tst.x["step"], marks[-1][0]["step"] if marks else None
    if switch not in steps[:-1]:
        return ""
    place = steps.index(switch)
    after, (before, healed) = steps[place + 1] - switch, tst.y[place : place + 2]
    return f"TST came out of its bags at {before:.2f} nats and was at {healed:.2f} after {after:,.0f} more steps."


def training(comparison: Comparison) -> list[Chart]:
    """Training loss at the main budget, of one seed: of single tokens, and of bags apart."""
    seed = comparison.seeds[0]
    runs = {run.arm: run for run in _at_main(comparison) if run.seed == seed}
    losses = [Losses(runs[arm].directory, label, role) for arm, role, label in _arms(comparison) if arm in runs]
    whose = f"These are the runs of seed {seed}." if len(comparison.seeds) > 1 else ""
    return training_charts(losses, _switch(comparison), whose)


def _at_main(comparison: Comparison) -> list[Trained]:
    """The runs at the main budget, and at seeds that both arms finished."""
    return [
        run
        for run in comparison.runs
        if run.steps == comparison.steps_of(run.arm, comparison.steps) and run.seed in comparison.seeds
    ]


def _switch(comparison: Comparison) -> list[Mark]:
    tst = next(run for run in _at_main(comparison) if run.arm == TST)
    return switch_marks(tst.directory, comparison.recipe.schedule)


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
    pairs = zip(comparison.values(ORDINARY, "val_loss"), comparison.values(TST, "val_loss"), strict=True)
    chart = Chart("Spread of the seeds", _FINAL, {"seed": "seed"}, tuple(series))
    return captioned(
        chart,
        "All arms share a seed's initial weights and order of text.",
        f"TST ended lower on {sum(b < a for a, b in pairs)} of {len(comparison.seeds)} seeds.",
    )


def budgets(comparison: Comparison) -> Chart:
    """Final loss against the budget: what the question of equal loss is read off."""
    series = []
    for arm, role, label in _arms(comparison):
        losses = {
            n: comparison.values(arm, "val_loss", n, comparison.seeds_of((arm, n))) for n in comparison.budgets(arm)
        }
        means = {n: Interval(statistics.fmean(known), min(known), max(known)) for n, known in losses.items()}
        series.append(_with_intervals(label, means, role))
    several = any(low != high for one in series for low, high in zip(one.low, one.high, strict=True))
    return captioned(
        Chart("Final loss at each budget", _FINAL, _STEPS, tuple(series), log_x=True),
        f"Each point is {'the mean of runs' if several else 'a run'} whose learning rate fell to the end there.",
        "Bars reach from the lowest to the highest seed." if several else "",
        "The speedup is how far to the right of a TST point the ordinary line comes down to the same loss.",
    )


def gains(comparison: Comparison) -> Chart:
    """TST, and each variant, minus ordinary at each budget both have."""
    series = []
    for arm, role, label in _arms(comparison)[1:]:
        known = {n: gain for n in comparison.budgets(arm) if (gain := comparison.equal_flops(n, arm=arm))}
        series.append(_with_intervals(label if comparison.variants else "TST minus ordinary", known, role))
    tst = [gain for n in comparison.budgets(TST) if (gain := comparison.equal_flops(n))]
    title, y_title = "Gain against budget, at equal FLOPs", "TST minus ordinary, nats per token"
    return captioned(
        Chart(title, y_title, _STEPS, tuple(series), level=0.0, log_x=True),
        f"Below the line TST is better, as at {sum(gain.value < 0 for gain in tst)} of {len(tst)} budgets.",
        _bars(series, f"that of TST leaves out the line at {sum(gain.excludes_zero for gain in tst)} of {len(tst)}"),
    )


def speedups(comparison: Comparison) -> Chart:
    """How many times the steps ordinary training takes for the loss of TST, or of a variant, at each budget."""
    series, beyond = list[Series](), []
    for arm, role, label in _arms(comparison)[1:]:
        found = {n: speedup for n in comparison.budgets(arm) if (speedup := comparison.equal_loss(n, arm))}
        known = {n: Interval(one.ratio, one.low, one.high) for n, one in found.items() if one.ratio is not None}
        series += [_with_intervals(label, known, role)] if known else []
        beyond += [f"{label} at {n:,} steps ({one.spoken()})" for n, one in found.items() if one.ratio is None]
    pairs = [ends for one in series for ends in zip(one.low, one.high, strict=True)]
    half = any((low is None) != (high is None) for low, high in pairs)
    title, y_title = "Speedup against budget, at equal loss", "times the steps"
    return captioned(
        Chart(title, y_title, _STEPS, tuple(series), level=1.0, log_x=True),
        "How many times as many steps ordinary training takes for the same loss; above the line TST is faster.",
        _bars(series, "a side without an end runs beyond the ordinary budgets" if half else ""),
        f"Left out, because a curve is not extrapolated: {'; '.join(beyond)}." if beyond else "",
    )


def _with_intervals(name: str, known: Mapping[int, Interval], role: Role) -> Series:
    """Values by budget."""
    values, low, high = ([getattr(one, end) for one in known.values()] for end in ("value", "low", "high"))
    return Series(name, {"step": [*map(float, known)]}, values, role, low, high)


def _bars(series: Sequence[Series], more: str) -> str:
    """What the bars are, where there are any."""
    if all(end is None for one in series for end in (*one.low, *one.high)):
        return "There are no bars: an interval takes several seeds."
    each = ", each taken for itself" if len(series) > 1 else ""
    return f"Bars are 95 % intervals{each}{'; ' if more else ''}{more}."


def variants(comparison: Comparison) -> Chart:
    """Differences of the variants to both arms, with intervals that hold together."""
    series, roles = [], {ORDINARY: "minus ordinary", TST: "minus TST"}
    for place, (other, label) in enumerate(roles.items()):
        found = comparison.variants_against(other)
        rows = {2 * n + place + 1.0: found[name] for n, name in enumerate(comparison.variants) if name in found}
        values, low, high = ([getattr(one, end) for one in rows.values()] for end in ("value", "low", "high"))
        series.append(Series(label, {"row": [*rows]}, values, _ROLES[other], low, high, points=True))
    names = "; ".join(f"{2 * n + 1} and {2 * n + 2}: {name}" for n, name in enumerate(comparison.variants))
    axes, bars = {"row": "number of the difference"}, any(low is not None for one in series for low in one.low)
    return captioned(
        Chart("Variants, at equal FLOPs", "nats per token", axes, tuple(series), level=0.0),
        f"{names}. Below the line the variant is better.",
        "Bars are 95 % intervals of all together." if bars else "",
    )


def all_charts(comparison: Comparison) -> list[Chart]:
    """Those that have something to show: the claim first, then what it is read off."""
    of_several = {
        seeds: comparison.seeds,
        budgets: comparison.budgets(ORDINARY),
        gains: comparison.budgets(TST),
    }
    charts = [curves(comparison), *([variants(comparison)] if comparison.variants else [])]
    charts += [chart(comparison) for chart, what in of_several.items() if len(what) > 1]
    faster = speedups(comparison)
    return [*charts, *([faster] if faster.series else []), *training(comparison)]
