"""`superpose reproduce`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from superpose.cli.options import (
    A_RECIPE,
    CoresPerRun,
    EngineName,
    GpusPerRun,
    Jobs,
    Overrides,
    Runs,
    Variants,
    expect_all,
    numbers,
    say_next,
)


def reproduce(
    experiments: Annotated[
        list[str] | None, Argument(metavar="[EXPERIMENT]...", help="By default all; --list names them.")
    ] = None,
    scale: Annotated[
        Literal["tiny", "small", "paper"],
        Option(help="tiny: minutes an experiment on a laptop; small: up to hours; paper: --recipe on GPUs."),
    ] = "tiny",
    recipe: Annotated[Path | None, Option(help=f"{A_RECIPE}, in place of the scale's own.")] = None,
    corpus: Annotated[str | None, Option(help="Text, tokens or a prepared store; by default Python.")] = None,
    seeds: Annotated[str, Option(metavar="N,N,...", help="Each arm is trained once with each.")] = "1,2,3",
    lrs: Annotated[
        str | None,
        Option(
            metavar="LR,LR,...",
            help="Learning rates to try first, ordinarily and with the scale's TST recipe; arms take the best.",
        ),
    ] = None,
    variant: Variants = None,
    name: Annotated[str | None, Option(help="Of the results; by default reproduce-SCALE.")] = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = 0,
    engine: EngineName = "local",
    cores_per_run: CoresPerRun = 0,
    gpus_per_run: GpusPerRun = 0,
    overrides: Overrides = None,
    show: Annotated[bool, Option("--list", help="Name the experiments and stop.")] = False,
) -> None:
    """Run the paper's experiments again, and say which of its findings hold here.

    Variants are compared with ordinary training and TST of the scale's recipe, as 'superpose compare' does.

    Results are written after each experiment; started again, it goes on where it stopped.
    """
    import json
    import shlex
    import sys

    from superpose import reproduce as workflow
    from superpose.compare.variants import parse_variants
    from superpose.engine import open_engine
    from superpose.reproduce.reproduction import scale_recipe
    from superpose.results.progress import Display, print_results

    if show:
        for key, experiment in workflow.EXPERIMENTS.items():
            typer.echo(f"{key:12} {experiment.title}")
        return
    changes = [*([f"data.corpus={json.dumps(corpus)}"] if corpus else []), *(overrides or [])]
    name, display = name or f"reproduce-{scale}", Display()
    workflow.reproduce(
        experiments or tuple(workflow.EXPERIMENTS),
        scale=scale,
        recipe=scale_recipe(scale, recipe, changes),
        seeds=numbers("--seeds", seeds, int),
        rates=numbers("--lrs", lrs or "", float),
        runs=runs,
        name=name,
        jobs=jobs,
        engine=open_engine(engine, cores_per_run, gpus_per_run),
        display=display,
        command=shlex.join(["superpose", *sys.argv[1:]]),
        listener=lambda done: print_results(display.console, done.tables(), done.verdict()),
        variants=parse_variants(variant or []),
    )
    display.say(f"Results: {runs / name}/reproduction.json and summary.md")
    if variant:
        display.say(f"Variants: {runs / f'{name}-variants'}/comparison.json and summary.md")
    expect_all(display)
    say_next("report", runs / name)
