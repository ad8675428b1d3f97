"""What `superpose compare` does: trains both arms, answers the three questions, writes the results.

Design -> learning rates, where some are tried -> runs in RUNS/pool -> Comparison -> files in RUNS/NAME
"""

from pathlib import Path

from superpose.compare.charts import curves
from superpose.compare.comparison import Comparison
from superpose.compare.experiment import Design, best_rates, plan_runs, plan_tuning, with_precision
from superpose.data.config import prepare
from superpose.results.charts import draw
from superpose.results.progress import Display
from superpose.runs.pool import POOL, link, named_directory, train_all
from superpose.train.loop import announce, check_recipe


def compare(
    design: Design,
    *,
    runs: Path = Path("runs"),
    name: str = "demo",
    jobs: int = 0,
    display: Display | None = None,
) -> Comparison:
    """Trains ordinarily and with TST, and answers at equal FLOPs, equal loss and equal data.

    Variants of the design stand beside both. Writes comparison.json, summary.md and loss.png into RUNS/NAME, where a
    seed finished both arms, and links to the runs. A run is trained once, whatever asks for it: called again with more
    seeds, budgets or variants, this trains just what is missing. Runs that fail are left out and named in
    `Comparison.failures`.

    Args:
        design: recipe, seeds, budgets and learning rates.
        runs: directory for results, and for the pool of all runs.
        name: of the comparison.
        jobs: runs at a time; 0 for one on each core, and one after the other on a GPU.
        display: shows the work; by default on standard output.

    Raises:
        UserError: a budget is too short for the recipe, its model cannot be built, its text cannot be read, or all
            learning rates of an arm failed.
    """
    display = display or Display()
    plan_runs(design, {})  # says what is wrong before any work
    check_recipe(design.recipe)
    directory = named_directory(runs, name)
    with display:
        store = prepare(design.recipe.data, display.prepare)
        design = with_precision(design)
        tunings = best_rates(design, train_all(plan_tuning(design), store, runs / POOL, jobs, display))
        planned = plan_runs(design, tunings)
        for run in {run.arm: run for run in reversed(planned)}.values():
            display.say(f"{run.arm}: {announce(run.recipe, store)}")
        outcomes = train_all(planned, store, runs / POOL, jobs, display)
    link(outcomes, directory)
    comparison = Comparison.of(design, outcomes, tunings, store)
    if comparison.seeds:
        comparison.write(directory)
        draw(curves(comparison), ("flops", "raw_tokens"), directory / "loss.png")
    return comparison
