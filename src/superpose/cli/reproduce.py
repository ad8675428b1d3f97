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
        list[str] | None,
        Argument(metavar="[EXPERIMENT]...", help="The experiments to run; by default all. --list names them."),
    ] = None,
    scale: Annotated[
        Literal["tiny", "small", "paper"],
        Option(help="tiny: minutes an experiment on a laptop; small: up to hours; paper: --recipe on GPUs."),
    ] = "tiny",
    recipe: Annotated[Path | None, Option(help=f"{A_RECIPE}, in place of the scale's own.")] = None,
    corpus: Annotated[
        str | None,
        Option(
            help="The text to train on: whatever 'superpose prepare' reads, or a prepared store; by default Python."
        ),
    ] = None,
    seeds: Annotated[str, Option(metavar="N,N,...", help="Train each arm once with each seed.")] = "1,2,3",
    lrs: Annotated[
        str | None,
        Option(
            metavar="LR,LR,...",
            help="Learning rates to try first, without TST and with it; each arm takes the best.",
        ),
    ] = None,
    variant: Variants = None,
    name: Annotated[str | None, Option(help="Name of the results; by default reproduce-SCALE.")] = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = 0,
    engine: EngineName = "local",
    cores_per_run: CoresPerRun = 0,
    gpus_per_run: GpusPerRun = 0,
    overrides: Overrides = None,
    show: Annotated[bool, Option("--list", help="Name the experiments and stop.")] = False,
) -> None:
    """Run the paper's experiments again, and say which of its findings hold here.

    Variants are compared with ordinary training and the scale's TST recipe, as by 'superpose compare'.

    It writes its results after each experiment. If it is interrupted, the same command goes on where it stopped.
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
