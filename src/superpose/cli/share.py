"""`superpose export`, `superpose import` and `superpose generate`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from superpose.cli.options import A_RECIPE, say_next


def export(
    run: Annotated[Path, Argument(help="Directory of a run.")],
    directory: Annotated[
        str,
        Argument(metavar="DIR", help="Directory to write, or a place such as s3://bucket/model; it must not exist."),
    ],
    checkpoint: Annotated[
        int | None, Option(metavar="STEP", help="Export the checkpoint of this step, not the final model.")
    ] = None,
    average: Annotated[
        bool, Option("--average", help="Export the moving average of the weights, if the run has train.average.")
    ] = False,
    bags: Annotated[
        bool, Option("--bags", help="Export a model that predicts bags, marked as one that cannot generate.")
    ] = False,
    max_shard_size: Annotated[str, Option(metavar="SIZE", help="Largest file of weights, such as 100MB.")] = "5GB",
    license_id: Annotated[
        str,
        Option("--license", metavar="ID", help="License for the model card, such as apache-2.0; by default unknown."),
    ] = "",
    language: Annotated[
        list[str] | None,
        Option(metavar="CODE", help="Language of the text, for the model card, such as en; repeatable."),
    ] = None,
) -> None:
    """Write a run's model as a Hugging Face directory, with a model card that states the run's facts."""
    from superpose.share import exporting

    facts = exporting.export(run, directory, checkpoint, average, bags, max_shard_size, license_id, language or [])
    typer.echo(f"{directory}: {facts.parameters:,} parameters of step {facts.step:,}; the card is README.md")
    if facts.bag_size > 1:
        typer.echo(f"It predicts {facts.predicts} and cannot generate text; its card says so.")
    if facts.tokenizer:
        typer.echo(f"Load its tokenizer with PreTrainedTokenizerFast, as its card shows: {facts.tokenizer}.")
    if facts.bag_size == 1:
        say_next("generate", directory)


def import_model(
    directory: Annotated[
        str,
        Argument(metavar="DIR", help="A Hugging Face directory of a causal LM, or a place such as s3://bucket/model."),
    ],
    out: Annotated[Path, Argument(metavar="RECIPE.toml", help="The recipe to write.")],
    recipe: Annotated[
        Path | None, Option(help=f"{A_RECIPE}, with the other settings; by default all, without superposition.")
    ] = None,
) -> None:
    """Check a Hugging Face directory, and write a recipe that trains its model on."""
    from superpose.share import importing

    taken = importing.import_model(directory, out, recipe)
    typer.echo(
        f"{out}: {taken.train.latents} latents, peak learning rate {taken.train.lr:g}, {taken.train.steps:,} steps. "
        f"Set data.corpus there, and train.lr lower than for a fresh model."
    )
    say_next("train", out, "--out", Path("runs", out.stem))


def generate(
    place: Annotated[
        str,
        Argument(
            metavar="RUN|DIR", help="A finished run, a Hugging Face directory, or a place such as s3://bucket/model."
        ),
    ],
    prompt: Annotated[str, Argument(help="Text to continue.")] = "",
    max_new_tokens: Annotated[
        int | None, Option(min=1, help="At most so many tokens; by default what the context has room for.")
    ] = None,
    temperature: Annotated[float, Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, Option(min=0.01, max=1, help="Share of the probability to sample from.")] = 0.95,
    seed: Annotated[int, Option(min=0)] = 0,
) -> None:
    """Continue a text with the model of a finished run or a Hugging Face directory, and print it as it comes."""
    from superpose.share import sampling

    sampling.generate(place, prompt, max_new_tokens, temperature, top_p, seed, partial(print, end="", flush=True))
    print()
