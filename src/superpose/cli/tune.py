"""`superpose tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superpose.cli.compare import named, train_all
from superpose.cli.options import Jobs, Overrides, Runs, load_settings, numbers, prepared_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from superpose.runs.pool import Outcome, Run

_TRIALS = 12
"""Drawn where neither --trials nor --budget says how many."""


def tune(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; by default recipes/cpu-tiny.toml.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Text, tokens or a prepared store, as 'superpose prepare' takes them."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of a full run.")] = None,
    bag_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...", help="Bag sizes to try; by default those as good as the best in the paper's sweeps."
        ),
    ] = None,
    ratios: Annotated[str | None, typer.Option(metavar="R,R,...", help="Ratios to try; likewise.")] = None,
    lrs: Annotated[
        str | None,
        typer.Option(
            metavar="LR,LR,...", help="Peak learning rates to try, with TST and ordinarily; by default 1/2, 1 and 2 x."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Settings of TST to draw from all of these; by default 12.", show_default=False)
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="What the search may cost, in full runs; it decides the number of trials.")
    ] = None,
    eta: Annotated[int, typer.Option(help="1/eta of the trials are kept, and given eta times the steps.")] = 2,
    min_steps: Annotated[
        int | None, typer.Option(help="Of the shortest runs; by default a quarter of the steps.")
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Full runs are trained once with each, shorter ones with the first."),
    ] = "0",
    draw_seed: Annotated[int, typer.Option(help="Of the draw of the trials.")] = 0,
    name: Annotated[str | None, typer.Option(help="Of the results; by default tune- and the recipe's.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON, and all else to standard error.")
    ] = False,
    runs: Runs = Path("runs"),
    jobs: Jobs = 0,
    overrides: Overrides = None,
) -> None:
    """Search bag size, ratio and learning rate within a budget, and write the recipe that is best.

    By successive halving over complete short runs; ordinary training is searched beside it, and if it is best the
    recipe is ordinary. Started again, it goes on where it stopped.
    """
    import itertools
    import json
    import shlex
    import sys
    from dataclasses import replace

    import torch
    from rich.console import Console

    from superpose.data.config import vocabulary_size
    from superpose.plan.evidence import Setting
    from superpose.plan.prediction import few_steps
    from superpose.results.progress import Display, print_table
    from superpose.runs.pool import POOL, link
    from superpose.train.config import with_settings
    from superpose.train.hardware import chosen_precision
    from superpose.train.recipe_file import recipe_toml
    from superpose.tune import search as search_plan
    from superpose.tune.halving import RECIPE, Ranking
    from superpose.tune.halving import tune as search_for

    console = Console(markup=False, highlight=False, stderr=as_json)
    settings = load_settings(recipe, {"data.corpus": corpus, "train.steps": steps}, None, overrides)
    recipe_toml(settings)  # says what cannot be written before any work
    if bag_sizes is None and ratios is None:
        pairs = search_plan.likely_settings(settings, vocabulary_size(settings.data))
    else:
        sizes = search_plan.BAG_SIZES if bag_sizes is None else numbers("--bag-sizes", bag_sizes, int)
        shares = search_plan.RATIOS if ratios is None else numbers("--ratios", ratios, float)
        pairs = tuple(itertools.product(sizes, shares))
    rates = tuple(settings.train.lr * x for x in (0.5, 1, 2)) if lrs is None else numbers("--lrs", lrs, float)
    search = search_plan.plan_search(
        settings,
        search_plan.candidates(pairs, rates),
        rates,
        eta=eta,
        min_steps=min_steps,
        seeds=numbers("--seeds", seeds, int),
        count=_TRIALS if trials is None and budget is None else trials,
        budget=budget,
        draw_seed=draw_seed,
    )
    directory = named(runs, name or f"tune-{recipe.stem if recipe else 'demo'}")
    for line in search.plan():
        console.print(line)
    first = search.trials[0]
    for line in few_steps(search.rungs[0].steps, Setting(first.bag_size, first.ratio))[:1]:
        console.print(f"{line}; so the shortest rung is little to go by", style="yellow")

    def announce(ranking: Ranking) -> None:
        best, ordinary = ranking.tst[0], ranking.ordinary[0].loss
        kept = sum(standing.kept for standing in ranking.tst)
        beside = "failed" if ordinary is None else f"{ordinary:.4f}"
        console.print(
            f"{ranking.rung.steps:,} steps: {kept} of {len(ranking.tst)} trials kept; best {best.trial}, "
            f"validation loss {best.loss:.4f}; ordinary training {beside}"
        )

    with Display(console) as display:
        store = prepared_store(settings, display)
        # Once for all runs: what is compared must not differ in it. The recipe that is written keeps its own.
        precision = chosen_precision(settings, torch.device(settings.train.device)).train.precision

        def execute(planned: Sequence[Run]) -> list[Outcome]:
            fixed = [replace(run, recipe=with_settings(run.recipe, "train", precision=precision)) for run in planned]
            outcomes = train_all(fixed, store, runs / POOL, jobs, console, display)
            link(outcomes, directory)
            return outcomes

        tuned = search_for(search, execute, announce)
    command = shlex.join(["superpose", *sys.argv[1:]])
    then = tuned.next_command(directory / RECIPE, runs)
    tuned.write(directory, command, then)
    for title, header, rows in tuned.tables():
        console.print(f"\n{title}", style="bold")
        print_table(console, header, rows)
    console.print(f"\n{tuned.verdict()}\n")
    console.print(f"Compare: {then}", soft_wrap=True)
    console.print(f"Train:   superpose train {shlex.quote(str(directory / RECIPE))} --out RUN", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(tuned.facts(command, then), indent=1))
