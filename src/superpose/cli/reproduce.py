"""`superpose reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from superpose.cli.compare import named, train_all
from superpose.cli.options import A_RECIPE, Jobs, Overrides, Runs, numbers, prepared_store
from superpose.errors import UserError


def reproduce(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EXPERIMENT]...", help="By default all; --list names them."),
    ] = None,
    scale: Annotated[
        Literal["tiny", "small", "paper"],
        typer.Option(help="tiny: minutes an experiment on a laptop; small: up to hours; paper: --recipe on GPUs."),
    ] = "tiny",
    recipe: Annotated[Path | None, typer.Option(help=f"{A_RECIPE}, in place of the scale's own.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Text, tokens or a prepared store; by default Python.")] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Each arm is trained once with each.")] = "1,2,3",
    lrs: Annotated[
        str | None,
        typer.Option(
            metavar="LR,LR,...",
            help="Learning rates to try first, ordinarily and with the scale's TST recipe; arms take the best.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the results; by default reproduce-SCALE.")] = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = 0,
    overrides: Overrides = None,
    show: Annotated[bool, typer.Option("--list", help="Name the experiments and stop.")] = False,
) -> None:
    """Run the paper's experiments again, and say which of its findings hold here.

    Results are written after each experiment; started again, it goes on where it stopped.
    """
    import json
    import shlex
    import sys

    from rich.console import Console

    from superpose.compare.experiment import Design, plan_tuning, tune, with_precision
    from superpose.files import write_text
    from superpose.reproduce.experiments import EXPERIMENTS
    from superpose.reproduce.reproduction import data_bound, experiment_named, plan, reproduction, save
    from superpose.reproduce.scales import scale_recipe
    from superpose.results.progress import Display, print_table
    from superpose.results.tables import markdown
    from superpose.runs.pool import POOL
    from superpose.train.loop import check_recipe

    if show:
        for key, experiment in EXPERIMENTS.items():
            typer.echo(f"{key:12} {experiment.title}")
        return
    console = Console(markup=False, highlight=False)
    chosen = {key: experiment_named(key) for key in experiments or EXPERIMENTS}
    changes = [*([f"data.corpus={json.dumps(corpus)}"] if corpus else []), *(overrides or [])]
    settings = scale_recipe(scale, recipe, changes)
    check_recipe(settings)
    trained_with = numbers("--seeds", seeds, int)
    directory = named(runs, name or f"reproduce-{scale}")
    design = Design(settings, trained_with, rates=numbers("--lrs", lrs or "", float))
    with Display(console) as display:
        store = prepared_store(settings, display)
        design = with_precision(design)
        tunings = tune(design, train_all(plan_tuning(design), store, runs / POOL, jobs, console, display))
    done, failed = [], []
    for key, experiment in chosen.items():
        with Display(console) as display:
            of_experiment = data_bound(design.recipe, store) if experiment.data_bound else design.recipe
            text = prepared_store(of_experiment, display) if experiment.data_bound else store
            planned, law = plan(experiment, of_experiment, text, trained_with, tunings)
            console.print(f"{experiment.title}: {len(planned)} runs")
            outcomes = train_all(planned, text, runs / POOL, jobs, console, display)
        failed += [outcome.run.name for outcome in outcomes if outcome.result is None]
        done.append(reproduction(key, scale, of_experiment, text, outcomes, law, tunings))
        tables = [table for entry in done for table in entry.tables()]
        save(done, shlex.join(["superpose", *sys.argv[1:]]), directory / "reproduction.json")
        write_text(directory / "summary.md", markdown(tables, "\n".join(entry.verdict() for entry in done)))
        for title, header, rows in done[-1].tables():
            console.print(f"\n{title}", style="bold")
            print_table(console, header, rows)
        console.print(f"\n{done[-1].verdict()}\n")
    console.print(f"Results: {directory}/reproduction.json and summary.md")
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above; the same command tries them again")
