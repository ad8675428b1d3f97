"""`superpose tune`."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from superpose.cli.options import (
    A_RECIPE,
    AsJson,
    CoresPerRun,
    Corpus,
    EngineName,
    GpusPerRun,
    Jobs,
    Overrides,
    Runs,
    Steps,
    Variants,
    console,
    load_settings,
    numbers,
    say_next,
)

_TRIALS = 12
"""Drawn where neither --trials nor --budget says how many."""


def tune(
    recipe: Annotated[Path | None, Argument(help=f"{A_RECIPE}; by default cpu-tiny.")] = None,
    corpus: Corpus = None,
    steps: Steps = None,
    bag_sizes: Annotated[
        str | None,
        Option(
            metavar="S,S,...",
            help="Bag sizes to try; by default those that do as well as the best in the paper's sweeps.",
        ),
    ] = None,
    ratios: Annotated[
        str | None, Option(metavar="R,R,...", help="Ratios to try; by default chosen in the same way.")
    ] = None,
    lrs: Annotated[
        str | None,
        Option(
            metavar="LR,LR,...",
            help="Peak learning rates to try in both arms; by default half of the recipe's, the same and twice.",
        ),
    ] = None,
    variant: Variants = None,
    trials: Annotated[
        int | None, Option(help="How many TST settings to draw from all of these; by default 12.", show_default=False)
    ] = None,
    budget: Annotated[
        float | None, Option(help="What the search may cost, in full runs; it decides the number of trials.")
    ] = None,
    eta: Annotated[int, Option(help="Keep 1/eta of the trials at a time, and give them eta times the steps.")] = 2,
    min_steps: Annotated[
        int | None, Option(help="Steps of the shortest runs; by default a quarter of the steps.")
    ] = None,
    seeds: Annotated[
        str, Option(metavar="N,N,...", help="Train full runs once with each seed, shorter ones with the first.")
    ] = "0",
    draw_seed: Annotated[int, Option(help="Seed for drawing the trials.")] = 0,
    name: Annotated[str | None, Option(help="Name of the results; by default tune- and the recipe's.")] = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
    jobs: Jobs = 0,
    engine: EngineName = "local",
    cores_per_run: CoresPerRun = 0,
    gpus_per_run: GpusPerRun = 0,
    overrides: Overrides = None,
) -> None:
    """Search bag size, ratio, variants and learning rate within a budget, and write the best recipe.

    It uses successive halving over complete short runs. It searches ordinary training too, and if that is best, the
    recipe is ordinary. If it is interrupted, the same command goes on where it stopped.
    """
    import shlex
    import sys

    from superpose import tune as workflow
    from superpose.compare.variants import parse_variants
    from superpose.engine import open_engine
    from superpose.results.progress import Display, print_results
    from superpose.tune.halving import RECIPE
    from superpose.tune.search import candidates

    variants = parse_variants(variant or [])
    settings = load_settings(recipe, overrides, corpus=corpus, steps=steps)
    search = workflow.plan_search(
        settings,
        candidates(
            settings,
            None if bag_sizes is None else numbers("--bag-sizes", bag_sizes, int),
            None if ratios is None else numbers("--ratios", ratios, float),
            None if lrs is None else numbers("--lrs", lrs, float),
            variants,
        ),
        eta=eta,
        min_steps=min_steps,
        seeds=numbers("--seeds", seeds, int),
        count=_TRIALS if trials is None and budget is None else trials,
        budget=budget,
        draw_seed=draw_seed,
        variants=variants,
    )
    name, terminal = name or f"tune-{recipe.stem if recipe else 'cpu-tiny'}", console(stderr=as_json)
    command = shlex.join(["superpose", *sys.argv[1:]])
    tuned = workflow.tune(
        search,
        runs=runs,
        name=name,
        jobs=jobs,
        engine=open_engine(engine, cores_per_run, gpus_per_run),
        display=Display(terminal),
        command=command,
    )
    print_results(terminal, tuned.tables(), tuned.verdict())
    written = runs / name / RECIPE
    terminal.print(f"Next: {tuned.next_command(written, runs)}", soft_wrap=True)
    say_next("train", written, "--out", runs / f"{name}-best", err=as_json)
    if as_json:
        typer.echo((runs / name / "tuning.json").read_text(encoding="utf-8"), nl=False)
