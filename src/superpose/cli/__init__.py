"""The command line: a thin shell over the package, loading each part when a command needs it."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from superpose import __version__
from superpose.cli import compare, conform, data, evaluate, plan, report, reproduce, runs, share, tune
from superpose.cli.options import A_RECIPE, Overrides, console, load_settings, prepared_store
from superpose.errors import UserError
from superpose.recipes import FOLDER, NAMES

app = typer.Typer(
    help="Token-superposition training: language-model pre-training for less.",
    epilog="A recipe is a TOML file; 'superpose recipes cpu-tiny' prints one with all settings at their defaults.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"superpose {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (compare.compare, tune.tune, reproduce.reproduce, evaluate.evaluate, report.report, conform.conform):
    app.command()(command)
app.command()(plan.plan)


@app.command()
def recipes(
    name: Annotated[str | None, Argument(help="Print this one, to begin one of your own with.")] = None,
) -> None:
    """List the recipes that superpose brings, or print one."""
    if name is not None and name not in NAMES:
        raise UserError(f"superpose has no recipe {name}; choose of {', '.join(NAMES)}")
    for own in [name] if name else NAMES:
        text = (FOLDER / f"{own}.toml").read_text(encoding="utf-8")
        typer.echo(text if name else f"{own:15} {text.splitlines()[0].removeprefix('# ')}", nl=not name)


@app.command()
def train(
    recipe: Annotated[Path, Argument(help=f"{A_RECIPE}, or the config.json of a run.")],
    out: Annotated[Path, Option(help="Directory of the run.")],
    corpus: Annotated[str | None, Option(help="Text, tokens or a prepared store, in place of the recipe's.")] = None,
    resume: Annotated[
        bool,
        Option("--resume", help="Go on from the newest good checkpoint in --out, to the bit; start if there is none."),
    ] = False,
    baseline: Annotated[
        Path | None, Option(help="An ordinary run's directory, to say when this run passes it.")
    ] = None,
    profile: Annotated[bool, Option("--profile", help="Write profiler traces of a few steps of each phase.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train one model from a recipe and write it as a Hugging Face directory.

    On several devices: torchrun --nproc-per-node N -m superpose train ...
    """
    import os
    from typing import Any

    from superpose.results.progress import Display, summarize
    from superpose.train.forecast import forecast
    from superpose.train.loop import announce, check_device
    from superpose.train.loop import train as train_run
    from superpose.train.records import Pace
    from superpose.train.running import StoppedError

    # Of the ranks torchrun starts, the first speaks for all.
    terminal = console(quiet=os.environ.get("RANK", "0") != "0")
    settings = load_settings(recipe, {"data.corpus": corpus}, None, overrides)
    check_device(settings.train.device)
    with Display(terminal) as display:
        store = prepared_store(settings, display)
        terminal.print(announce(settings, store))

        def told(record: dict[str, Any]) -> None:
            if resume and record["kind"] == "start":
                terminal.print(record["message"])
            if record["kind"] == "pace":
                terminal.print(forecast(settings, Pace.heard(record)))
            display.record(out.name, settings.train.steps, record)

        try:
            result = train_run(settings, store, out, resume, told, baseline, profile)
        except StoppedError as stopped:
            terminal.print(f"{stopped}; the same command{'' if resume else ' with --resume'} goes on")
            raise typer.Exit(stopped.exit_code) from None
    terminal.print("\n".join(summarize(result)))
    bags = "It ended inside superposition, so no model was exported: it predicts bags and cannot generate text."
    terminal.print(bags if result["ends_in_superposition"] else f"model: {out / 'model'}")


app.command()(share.generate)
app.command()(share.export)
app.command("import")(share.import_model)
app.add_typer(runs.app, name="runs")
app.command()(data.prepare)
app.add_typer(data.tokenizer_app, name="tokenizer")
app.add_typer(data.data_app, name="data")
