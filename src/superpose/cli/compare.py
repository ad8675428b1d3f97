"""`superpose compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superpose.cli.options import A_RECIPE, Jobs, Overrides, Runs, load_settings, numbers, prepared_store
from superpose.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from superpose.data.store import TokenStore
    from superpose.results.progress import Display
    from superpose.runs.pool import Outcome, Run

_Steps = typer.Option(metavar="N,N,...", help="Further numbers of steps at which both arms are trained.")


def compare(
    recipe: Annotated[Path | None, typer.Argument(help=f"{A_RECIPE}; by default cpu-tiny.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Text, tokens or a prepared store, as 'superpose prepare' takes them."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each run: the main budget.")] = None,
    bag_size: Annotated[int | None, typer.Option(help="Tokens in a bag (s).")] = None,
    ratio: Annotated[float | None, typer.Option(help="Share of the steps in superposition (r).")] = None,
    stages: Annotated[
        str | None,
        typer.Option(metavar="S:R,S:R,...", help="Several stages of superposition instead, such as 8:0.1,4:0.2."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of both arms.")] = None,
    lrs: Annotated[
        str | None,
        typer.Option(metavar="LR,LR,...", help="Learning rates to try in each arm first; each then takes its best."),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Both arms are trained once with each seed.")] = "1",
    budgets: Annotated[str | None, _Steps] = None,
    ordinary_budgets: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Further numbers of steps of the ordinary arm, for the question of equal loss; "
            "'auto' among them stands for those that read as much text as TST.",
        ),
    ] = None,
    context_control: Annotated[
        bool, typer.Option("--context-control", help="Also train TST with no more context than an ordinary row.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Of the comparison; by default the recipe's, or 'demo'.")] = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = 0,
    overrides: Overrides = None,
) -> None:
    """Train ordinarily and with TST, and answer at equal FLOPs, equal loss and equal data.

    Both arms share recipe, seeds, text and its order. A run is trained once, whatever asks for it, so a comparison
    started again, with more seeds or with more budgets, goes on from what there is.
    """
    from rich.console import Console

    from superpose.compare.charts import curves
    from superpose.compare.comparison import Comparison
    from superpose.compare.experiment import Design, plan_runs, plan_tuning, tune, with_precision
    from superpose.results.draw import draw
    from superpose.results.progress import Display, print_table
    from superpose.runs.pool import POOL, link
    from superpose.train.loop import announce

    # What is printed holds names from outside, which are text and not markup.
    console = Console(markup=False, highlight=False)
    shortcuts = {
        "data.corpus": corpus,
        "train.steps": steps,
        "superposition.bag_size": bag_size,
        "superposition.ratio": ratio,
        "train.lr": lr,
    }
    further = [budget for budget in (ordinary_budgets or "").split(",") if budget != "auto"]
    design = Design(
        load_settings(recipe, shortcuts, stages, overrides),
        numbers("--seeds", seeds, int),
        numbers("--budgets", budgets or "", int),
        numbers("--ordinary-budgets", ",".join(further), int),
        "auto" in (ordinary_budgets or "").split(","),
        numbers("--lrs", lrs or "", float),
        context_control,
    )
    plan_runs(design, {})  # says what is wrong before any work
    pool = runs / POOL
    directory = named(runs, name or (recipe.stem if recipe else "demo"))
    with Display(console) as display:
        store = prepared_store(design.recipe, display)
        design = with_precision(design)
        tuning = train_all(plan_tuning(design), store, pool, jobs, console, display)
        tunings = tune(design, tuning)
        planned = plan_runs(design, tunings)
        for run in {run.arm: run for run in reversed(planned)}.values():
            console.print(f"{run.arm}: {announce(run.recipe, store)}")
        outcomes = train_all(planned, store, pool, jobs, console, display)
    link(outcomes, directory)
    comparison = Comparison.of(design.recipe, outcomes, tunings, store)
    if comparison.seeds:
        comparison.write(directory)
        draw(curves(comparison), ("flops", "raw_tokens"), directory / "loss.png")
        for title, header, rows in comparison.tables():
            console.print(f"\n{title}", style="bold")
            print_table(console, header, rows)
        console.print(f"\n{comparison.verdict()}\n")
        console.print(f"Tables, curves, metrics and models: {directory}/")
    failed = [outcome.run.name for outcome in (*tuning, *outcomes) if outcome.result is None]
    if failed:
        raise UserError(
            f"{', '.join(failed)} failed, see above; what finished is kept, and the same command tries the rest again"
        )


def named(runs: Path, name: str) -> Path:
    """The folder of a comparison or a reproduction.

    Raises:
        UserError: the name is that of the folder all runs share.
    """
    from superpose.runs.pool import POOL

    if name == POOL:
        raise UserError(f"--name {name} is where runs are kept; choose another name")
    return runs / name


def train_all(
    runs: Sequence[Run], store: TokenStore, pool: Path, jobs: int, console: Console, display: Display
) -> list[Outcome]:
    """Trains runs on all cores, or as many at a time as `jobs` says, and shows them at work."""
    from superpose.data.workers import available_cores
    from superpose.runs.pool import execute

    finished = sum((pool / run.key(store) / "result.json").exists() for run in runs)
    if finished:
        console.print(f"{finished} of {len(runs)} runs are finished already; their results are in {pool}")
    on_cpu = all(run.recipe.train.device == "cpu" for run in runs)
    at_a_time = jobs or (available_cores() if on_cpu else 1)
    try:
        return execute(
            runs,
            store,
            pool,
            min(at_a_time, max(1, len(runs))),
            lambda run, record: display.record(run.name, run.steps, record),
        )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoints")
        raise
