"""What `superpose tune` does: trains a search rung by rung, and writes the recipe that is best.

Search -> runs in RUNS/pool, rung by rung -> Tuned -> files in RUNS/NAME
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from superpose.data.config import prepare
from superpose.plan.evidence import Setting
from superpose.plan.prediction import few_steps
from superpose.results.progress import Display
from superpose.runs.pool import POOL, Outcome, Run, link, named_directory, train_all
from superpose.train.config import chosen_precision, recipe_toml
from superpose.train.loop import check_recipe
from superpose.tune.halving import Tuned, halve
from superpose.tune.search import Search


def tune(
    search: Search,
    *,
    runs: Path = Path("runs"),
    name: str = "tune-demo",
    jobs: int = 0,
    display: Display | None = None,
    command: str = "superpose.tune.tune",
) -> Tuned:
    """Searches bag size, ratio and learning rate within a budget, and writes the recipe that is best.

    Writes recipe.toml, tuning.json, summary.md and links to the runs into RUNS/NAME. Called again, it goes on where it
    stopped.

    Args:
        search: what is tried and for how long; `superpose.tune.plan_search` makes it.
        runs: directory for results, and for the pool of all runs.
        name: of the search.
        jobs: runs at a time; 0 for one on each core, and one after the other on a GPU.
        display: shows the work; by default on standard output.
        command: what the files say they were made with.

    Raises:
        UserError: the recipe cannot be written as TOML, its model cannot be built, its text cannot be read, or all runs
            of a rung failed.
    """
    recipe_toml(search.recipe)  # says what cannot be written before any work
    check_recipe(search.recipe)
    directory, display = named_directory(runs, name), display or Display()
    for line in search.spoken():
        display.say(line)
    first = search.trials[0]
    for line in few_steps(search.rungs[0].steps, Setting(first.bag_size, first.ratio))[:1]:
        display.say(f"{line}; so the shortest rung is little to go by", style="yellow")
    with display:
        store = prepare(search.recipe.data, display.prepare)

        def execute(planned: Sequence[Run]) -> list[Outcome]:
            outcomes = train_all(planned, store, runs / POOL, jobs, display)
            link(outcomes, directory)
            return outcomes

        # Once for all runs: what is compared must not differ in it. The recipe that is written keeps its own.
        precise = replace(search, recipe=chosen_precision(search.recipe, torch.device(search.recipe.train.device)))
        rankings = halve(precise, execute, lambda ranking: display.say(ranking.spoken())).rankings
    tuned = Tuned(search, rankings)
    tuned.write(directory, command, runs)
    return tuned
