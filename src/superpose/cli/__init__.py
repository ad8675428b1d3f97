"""The command line: a thin shell over the package, loading each part when a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from superpose import __version__
from superpose.cli import compare, conform, data, evaluate, export, plan, recipes, report, reproduce, runs, tune
from superpose.cli.options import A_RECIPE, Overrides, load_settings, prepared_store

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
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command()(compare.compare)
app.command()(tune.tune)
app.command()(reproduce.reproduce)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(conform.conform)
app.command()(plan.plan)
app.command()(recipes.recipes)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help=f"{A_RECIPE}, or the config.json of a run.")],
    out: Annotated[Path, typer.Option(help="Directory of the run.")],
    corpus: Annotated[
        str | None, typer.Option(help="Text, tokens or a prepared store, in place of the recipe's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest good checkpoint in --out, to the bit.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="An ordinary run's directory, to say when this run passes it.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write profiler traces of a few steps of each phase.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train one model from a recipe and write it as a Hugging Face directory.

    On several devices: torchrun --nproc-per-node N -m superpose train ...
    """
    import os
    from contextlib import nullcontext

    from rich.console import Console

    from superpose.files import one_at_a_time
    from superpose.results.progress import Display, summarize
    from superpose.train.loop import announce
    from superpose.train.loop import train as train_run
    from superpose.train.stopping import StoppedError

    # Of the ranks torchrun starts, the first speaks for all.
    first = os.environ.get("RANK", "0") == "0"
    console = Console(markup=False, highlight=False, quiet=not first)
    settings = load_settings(recipe, {"data.corpus": corpus}, None, overrides)
    busy = f"{out} is being trained by another process; wait for it to end, or give a new directory"
    with Display(console) as display:
        store = prepared_store(settings, display)
        console.print(announce(settings, store))
        try:
            with one_at_a_time(out.resolve(), busy) if first else nullcontext():
                result = train_run(
                    settings,
                    store,
                    out,
                    resume,
                    lambda record: display.record(out.name, settings.train.steps, record),
                    baseline,
                    profile,
                )
        except StoppedError as stopped:
            console.print(f"{stopped}; the same command with --resume goes on")
            raise typer.Exit(stopped.exit_code) from None
    for line in summarize(result):
        console.print(line)
    if result["ends_in_superposition"]:
        console.print(
            "It ended inside superposition, so no model was exported: it predicts bags and cannot generate text."
        )
    else:
        console.print(f"model: {out / 'model'}")


@app.command()
def generate(
    place: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="A finished run, or a Hugging Face directory.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="By default as many as the context has room for.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the probability to sample from.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Continue a text with the model of a finished run or of a Hugging Face directory, streamed as it comes."""
    from superpose.share.generate import generate as generate_text
    from superpose.share.generate import load_model

    def stream(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    model, tokenizer = load_model(place)
    generate_text(model, tokenizer, prompt, max_new_tokens, temperature, top_p, seed, stream)
    stream("\n")


app.command()(export.export)
app.command("import")(export.import_model)
app.add_typer(runs.app, name="runs")
app.command()(data.prepare)
app.add_typer(data.tokenizer_app, name="tokenizer")
app.add_typer(data.data_app, name="data")
