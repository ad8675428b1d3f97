"""`superpose compare`."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from superpose.cli.options import (
    A_RECIPE,
    BagSize,
    CoresPerRun,
    Corpus,
    EngineName,
    GpusPerRun,
    Jobs,
    Overrides,
    Rate,
    Ratio,
    Runs,
    Stages,
    Steps,
    Variants,
    expect_all,
    load_settings,
    numbers,
    say_next,
)
from superpose.errors import UserError
from superpose.recipes import FOLDER

_Steps = Option(metavar="N,N,...", help="Train both arms for these numbers of steps too.")


def compare(
    context: Context,
    recipe: Annotated[
        list[str] | None,
        Argument(metavar="[RECIPE]", help=f"{A_RECIPE}; by default demo. With --logs, further NAME=FILES."),
    ] = None,
    corpus: Corpus = None,
    steps: Steps = None,
    bag_size: BagSize = None,
    ratio: Ratio = None,
    stages: Stages = None,
    lr: Rate = None,
    lrs: Annotated[
        str | None, Option(metavar="LR,LR,...", help="Learning rates to try first; each arm takes its best.")
    ] = None,
    seeds: Annotated[str, Option(metavar="N,N,...", help="Train both arms once with each seed.")] = "1",
    budgets: Annotated[str | None, _Steps] = None,
    ordinary_budgets: Annotated[
        str | None,
        Option(
            metavar="N,N,...",
            help="Train the ordinary arm for these numbers of steps too, to compare at equal loss; 'auto' adds those "
            "that read as much text as TST.",
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        Option(
            metavar="SETTING=V,V,...",
            help="Settings of train to tune together, such as train.lr=1e-3,2e-3,train.decay_ratio=0.1,0.4. Each arm "
            "tries every combination and takes its best.",
        ),
    ] = None,
    tune_at: Annotated[
        str | None,
        Option(
            metavar="N,N,...", help="Numbers of steps at which to try --lrs and --tune; by default the main budget."
        ),
    ] = None,
    context_control: Annotated[
        bool, Option("--context-control", help="Train TST also with no more context than an ordinary row has.")
    ] = False,
    variant: Variants = None,
    logs: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=FILES",
            help="Train nothing: compare runs that were logged elsewhere (CSV, JSON lines, TensorBoard, W&B). "
            "Give one for each arm, the ordinary one first.",
        ),
    ] = None,
    metric: Annotated[str | None, Option(help="With --logs: the metric to compare; by default val_loss.")] = None,
    x: Annotated[str | None, Option(help="With --logs: the axis to compare over; by default steps.")] = None,
    name: Annotated[str | None, Option(help="Name of the comparison; by default the recipe's, or 'logs'.")] = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = 0,
    engine: EngineName = "local",
    cores_per_run: CoresPerRun = 0,
    gpus_per_run: GpusPerRun = 0,
    overrides: Overrides = None,
) -> None:
    """Train a model ordinarily and with TST, and compare the two at equal FLOPs, equal loss and equal data.

    Both arms have the same recipe, seeds and text, in the same order. Nothing is trained twice: start the command
    again with more seeds, budgets or variants, and it trains only what is missing.
    """
    from superpose import compare as workflow
    from superpose.compare.variants import parse_variants
    from superpose.engine import open_engine
    from superpose.plan.short_runs import too_short
    from superpose.results.progress import Display, print_results

    if logs:
        _refuse_training(context)
        _compare_logs([*logs, *(recipe or [])], metric or "val_loss", x, runs, name or "logs")
        return
    if metric or x:
        raise UserError("--metric and --x are of runs logged elsewhere; give these with --logs")
    if recipe and len(recipe) > 1:
        raise UserError(f"{' '.join(recipe)}: one recipe is compared; give one, and change its settings with --set")
    file = Path(recipe[0]) if recipe else FOLDER / "demo.toml"
    settings = load_settings(
        file, overrides, corpus=corpus, steps=steps, bag_size=bag_size, ratio=ratio, stages=stages, lr=lr
    )
    ordinary = (ordinary_budgets or "").split(",")
    design = workflow.Design(
        settings,
        numbers("--seeds", seeds, int),
        numbers("--budgets", budgets or "", int),
        numbers("--ordinary-budgets", ",".join(budget for budget in ordinary if budget != "auto"), int),
        "auto" in ordinary,
        _tried(lrs, tune),
        numbers("--tune-at", tune_at or "", int),
        context_control,
        parse_variants(variant or []),
    )
    name, display = name or file.stem, Display()
    if few := too_short(settings, max(design.tst_budgets)):
        display.say(few, style="yellow")
    comparison = workflow.compare(
        design,
        runs=runs,
        name=name,
        jobs=jobs,
        engine=open_engine(engine, cores_per_run, gpus_per_run),
        display=display,
    )
    if comparison.seeds:
        print_results(display.console, comparison.tables(), comparison.verdict())
        display.say(f"Tables, curves, metrics and models: {runs / name}/")
    expect_all(display)
    say_next("report", runs / name)


def _tried(lrs: str | None, tune: list[str] | None) -> dict[str, tuple[Any, ...]]:
    """What --lrs and --tune ask for."""
    from superpose.compare.tuned import LR, parse_tried

    tried, rates = parse_tried(tune or []), numbers("--lrs", lrs or "", float)
    if rates and LR in tried:
        raise UserError("--lrs and --tune train.lr=... say the same; leave one out")
    return {LR: rates, **tried} if rates else tried


def _refuse_training(context: Context) -> None:
    """A UserError if options were given that would be ignored, because nothing is trained."""
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        given = source is not None and source.name == "COMMANDLINE"
        if given and option.name not in ("logs", "recipe", "metric", "x", "name", "runs"):
            raise UserError(f"{option.opts[0]}: with --logs nothing is trained; leave it out")


def _compare_logs(arms: list[str], metric: str, x: str | None, runs: Path, name: str) -> None:
    from superpose.compare import compare_logs
    from superpose.results.progress import Display, print_results

    logged, display = compare_logs(arms, metric, x, runs=runs, name=name), Display()
    print_results(display.console, logged.tables(), logged.verdict())
    display.say(f"Tables, curve and all values: {runs / name}/")
    say_next("report", runs / name)
