"""The command line: a thin shell over the package, loading each part when a command needs it."""

from typing import Annotated

import typer
from typer import Argument, Option

from superpose import __version__
from superpose.cli import compare, conform, data, evaluate, plan, report, reproduce, runs, share, train, tune
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
    name: Annotated[str | None, Argument(help="The recipe to print, to start your own from.")] = None,
) -> None:
    """List the recipes that superpose brings, or print one."""
    if name is not None and name not in NAMES:
        raise UserError(f"superpose has no recipe {name}; choose one of {', '.join(NAMES)}")
    for own in [name] if name else NAMES:
        text = (FOLDER / f"{own}.toml").read_text(encoding="utf-8")
        typer.echo(text if name else f"{own:15} {text.splitlines()[0].removeprefix('# ')}", nl=not name)


app.command()(train.train)
app.command()(share.generate)
app.command()(share.export)
app.command("import")(share.import_model)
app.add_typer(runs.app, name="runs")
app.command()(data.prepare)
app.add_typer(data.tokenizer_app, name="tokenizer")
app.add_typer(data.data_app, name="data")
