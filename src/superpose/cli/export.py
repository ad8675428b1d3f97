"""`superpose export` and `superpose import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superpose.cli.options import A_RECIPE


def export(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write; it must not exist.")],
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="Its checkpoint of this step, in place of the final model.")
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="The moving average of the weights, of a run with train.average.")
    ] = False,
    bags: Annotated[
        bool, typer.Option("--bags", help="Export a model that predicts bags, marked as one that cannot generate.")
    ] = False,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of a file of weights, such as 100MB.")] = "5GB",
    license_id: Annotated[
        str, typer.Option("--license", metavar="ID", help="For the card, such as apache-2.0; unknown if not given.")
    ] = "",
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Of the text, for the card, such as en; repeatable.")
    ] = None,
) -> None:
    """Write a run's model as a Hugging Face directory with a model card of the run's facts."""
    from superpose.share.export import export as write

    facts = write(run, directory, checkpoint, average, bags, max_shard_size, license_id, language or [])
    typer.echo(f"{directory}: {facts.parameters:,} parameters of step {facts.step:,}; the card is README.md")
    if facts.bag_size > 1:
        typer.echo(f"It predicts {facts.predicts} and cannot generate text; its card says so.")


def import_model(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face directory of a causal LM.")],
    out: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The recipe to write.")],
    recipe: Annotated[
        Path | None, typer.Option(help=f"{A_RECIPE}, with the other settings; by default all, without superposition.")
    ] = None,
) -> None:
    """Check a Hugging Face directory, and write a recipe that trains its model on."""
    from superpose.share.import_model import import_model as write

    taken = write(directory, out, recipe)
    typer.echo(
        f"{out}: {taken.train.latents} latents, peak learning rate {taken.train.lr:g}, {taken.train.steps:,} steps. "
        f"Set data.corpus and train.lr there, lower than for a fresh model, then: superpose train {out} --out RUN"
    )
