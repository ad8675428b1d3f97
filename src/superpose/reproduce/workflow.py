"""What `superpose reproduce` does: trains the paper's experiments one after the other, and writes what came out.

experiments -> runs in RUNS/pool -> a Reproduction each -> files in RUNS/NAME
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from superpose.compare.experiment import Design, best_rates, plan_tuning, with_precision
from superpose.data.config import prepare
from superpose.errors import UserError
from superpose.reproduce.experiments import EXPERIMENTS
from superpose.reproduce.reproduction import Reproduction, data_bound, experiment_runs, reproduction, save
from superpose.results.progress import Display
from superpose.runs.pool import POOL, named_directory, train_all
from superpose.train.config import Recipe, load_recipe
from superpose.train.loop import check_recipe

Scale = Literal["tiny", "small", "paper"]


def scale_recipe(scale: Scale, recipe: Path | None = None, changes: Sequence[str] = ()) -> Recipe:
    """The TST recipe of a scale, before an experiment changes it.

    Both scales of our own train 0.09 million parameters, in minutes an experiment on a laptop (2,000 steps, 25 s a run
    on a core) and in an hour (the recipe cpu-small: 8,000 steps, 100 s).

    Args:
        scale: "paper" takes its settings from `recipe`.
        recipe: settings instead of the scale's own.
        changes: further settings, as `section.name=value`.

    Raises:
        UserError: the scale needs a recipe, or one of the settings is wrong.
    """
    if recipe is None and scale == "paper":
        raise UserError("--scale paper trains the recipe that is given; add --recipe, such as paper-270m")
    shorter = ["train.steps=2000", "train.eval_every=250"] if recipe is None and scale == "tiny" else []
    return load_recipe(recipe or "cpu-small", [*shorter, *changes])


def reproduce(
    experiments: Sequence[str] = tuple(EXPERIMENTS),
    *,
    scale: Scale = "tiny",
    recipe: Recipe | None = None,
    seeds: tuple[int, ...] = (1, 2, 3),
    rates: tuple[float, ...] = (),
    runs: Path = Path("runs"),
    name: str | None = None,
    jobs: int = 0,
    display: Display | None = None,
    command: str = "superpose.reproduce.reproduce",
    listener: Callable[[Reproduction], None] = lambda done: None,
) -> list[Reproduction]:
    """Runs the paper's experiments again, and says which of its findings hold here.

    Writes reproduction.json and summary.md into RUNS/NAME after each experiment. Called again, it goes on where it
    stopped. Runs that fail are left out, and named in `display.failed`.

    Args:
        experiments: keys of `superpose.reproduce.EXPERIMENTS`.
        scale: its TST recipe is trained, before an experiment changes it.
        recipe: in place of the scale's own; "paper" has none.
        seeds: each arm is trained once with each.
        rates: learning rates to try first, ordinarily and with the TST recipe; arms take the best.
        runs: directory for results, and for the pool of all runs.
        name: of the results; by default reproduce-SCALE.
        jobs: runs at a time; 0 for one on each core, and one after the other on a GPU.
        display: shows the work; by default on standard output.
        command: what reproduction.json says it was made with.
        listener: called with each experiment when it is done.

    Raises:
        UserError: there is no such experiment, the scale needs a recipe, its model cannot be built, its text cannot be
            read, or all learning rates failed.
    """
    if unknown := [key for key in experiments if key not in EXPERIMENTS]:
        raise UserError(f"there is no experiment {unknown[0]!r}; choose of {', '.join(EXPERIMENTS)}")
    design = Design(recipe or scale_recipe(scale), seeds, rates=rates)
    check_recipe(design.recipe)
    directory, display = named_directory(runs, name or f"reproduce-{scale}"), display or Display()
    with display:
        store = prepare(design.recipe.data, display.prepare)
        design = with_precision(design)
        tunings = best_rates(design, train_all(plan_tuning(design), store, runs / POOL, jobs, display))
        tuned = {arm: tuning.best for arm, tuning in tunings.items()}
    done: list[Reproduction] = []
    for key in dict.fromkeys(experiments):
        experiment = EXPERIMENTS[key]
        with display:
            arms = data_bound(design.recipe, store) if experiment.data_bound else design.recipe
            text = prepare(arms.data, display.prepare) if experiment.data_bound else store
            planned, law = experiment_runs(experiment, arms, text, seeds, tuned)
            display.say(f"{experiment.title}: {len(planned)} runs")
            outcomes = train_all(planned, text, runs / POOL, jobs, display)
        done.append(reproduction(key, scale, arms, text, outcomes, law, tuned))
        save(done, command, directory)
        listener(done[-1])
    return done
