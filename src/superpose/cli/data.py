"""`superpose prepare`, `superpose tokenizer ...` and `superpose data ...`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from superpose.cli.options import EngineName, numbers, say_next
from superpose.errors import UserError

Sources = Annotated[
    list[str],
    Argument(
        metavar="SOURCE...",
        help="A file, folder or pattern of text, JSON lines (.gz, .zst), Parquet or tokens (.bin), here or "
        "in a place such as s3://bucket/texts; a saved dataset; datasets:NAME:CONFIG:SPLIT to stream one; or 'python' "
        "for the Python sources on this machine.",
    ),
]
Field = Annotated[str, Option(help="The field of a record that holds its text, in JSON lines, Parquet and datasets.")]
Encoding = Annotated[str, Option(help="Encoding of text and JSON lines.")]
Processes = Annotated[int, Option(min=0, help="How many processes to work with; 0 for one per core.")]


def prepare(
    sources: Sources,
    out: Annotated[str, Option(help="Directory to write the store to, or a place such as s3://bucket/store.")],
    tokenizer: Annotated[
        str, Option(help="A tokenizer.json, a directory that holds one, or 'bytes'.", show_default=False)
    ] = "",
    vocab_size: Annotated[
        int | None, Option(min=257, help="Train a tokenizer with so many entries on the text instead.")
    ] = None,
    end_of_text: Annotated[
        str, Option(help="The token that ends documents; by default the tokenizer's eos_token.")
    ] = "",
    weights: Annotated[
        str | None, Option(metavar="W,W,...", help="Shares of the text that the sources get, such as 3,1.")
    ] = None,
    names: Annotated[
        str | None,
        Option(
            metavar="NAME,NAME,...",
            help="Names of the sources for the mixture of a stage, such as code,web; sources of one name count as one.",
        ),
    ] = None,
    field: Field = "text",
    encoding: Encoding = "utf-8",
    dtype: Annotated[
        Literal["auto", "uint16", "uint32", "int32", "int64"],
        Option(help="Type of the numbers in .bin files without a header."),
    ] = "auto",
    max_megabytes: Annotated[float | None, Option(help="How much text to train on; by default all.")] = None,
    val_fraction: Annotated[float, Option(min=0, max=1, help="Share of the documents to hold out.")] = 0.005,
    val_megabytes: Annotated[float, Option(help="How much held-out text to keep.")] = 10,
    seed: Annotated[int, Option(min=0, help="Seed for the order of the documents.")] = 0,
    max_damaged: Annotated[float, Option(min=0, max=1, help="Stop if a larger share of a source is damaged.")] = 0.01,
    processes: Processes = 0,
    engine: EngineName = "local",
) -> None:
    """Turn text into a token store: shuffled, without repeats, some of it held out.

    If it is interrupted, the same command goes on where it stopped. Train on the store with --corpus or data.corpus.
    """
    import time
    from contextlib import nullcontext

    from superpose.data.prepare import Preparation, prepare_store
    from superpose.data.readers import Source
    from superpose.engine import open_engine
    from superpose.results.progress import Display

    if bool(tokenizer) == (vocab_size is not None):
        raise UserError("give either --tokenizer, or --vocab-size to train one on the text")
    shares = None if weights is None else numbers("--weights", weights, float)
    if shares is not None and (len(shares) != len(sources) or min(shares) <= 0):
        raise UserError(f"--weights {weights}: expected {len(sources)} numbers above 0, one for each source")
    called = [""] * len(sources) if names is None else [name.strip() for name in names.split(",")]
    if len(called) != len(sources) or (names is not None and not all(called)):
        raise UserError(f"--names {names}: expected {len(sources)} names, one for each source")
    places = zip(sources, called, strict=True)
    text, held_out = tuple(Source(place, field, encoding, dtype, name) for place, name in places), val_megabytes * 1e6
    limit = float("inf") if max_megabytes is None else max_megabytes * 1e6
    preparation = Preparation(
        text, shares, tokenizer, vocab_size or 0, end_of_text, limit, val_fraction, held_out, seed, max_damaged
    )
    started = time.monotonic()
    with Display() as display, open_engine(engine) if engine != "local" else nullcontext() as machines:
        try:
            store = prepare_store(preparation, out, processes, display.prepare, engine=machines)
        except KeyboardInterrupt:
            display.say("stopped; the same command goes on where it was")
            raise
    typer.echo(f"{store.describe()}\n{out}, in {time.monotonic() - started:.0f} s")
    say_next("compare", "--corpus", out)


tokenizer_app = typer.Typer(help="Train tokenizers.", no_args_is_help=True)


@tokenizer_app.command("train")
def train_a_tokenizer(
    sources: Sources,
    vocab_size: Annotated[int, Option(min=257, help="Number of entries, bytes and special tokens included.")],
    out: Annotated[Path, Option(help="Directory to write, as Hugging Face saves tokenizers.")],
    special_token: Annotated[
        list[str] | None, Option(help="A further special token, which no text turns into; repeatable.")
    ] = None,
    field: Field = "text",
    encoding: Encoding = "utf-8",
    processes: Processes = 0,
) -> None:
    """Train a byte-level BPE tokenizer on 16 MiB of text, taken from all over the sources."""
    from superpose.data.prepare import train_on_sources
    from superpose.data.readers import Source
    from superpose.data.tokenizer import END_OF_TEXT, save_tokenizer
    from superpose.files import whole_directory
    from superpose.results.progress import Display

    if out.exists():
        raise UserError(f"{out} exists; give a new directory")
    text, special = tuple(Source(place, field, encoding) for place in sources), tuple(special_token or ())
    with Display() as display:
        trained = train_on_sources(text, vocab_size, special, processes, display.prepare)
    with whole_directory(out) as aside:
        save_tokenizer(trained, aside)
    typer.echo(f"{trained.vocab_size:,} entries, documents end with {END_OF_TEXT}\n{out}")
    say_next("prepare", *sources, "--tokenizer", out, "--out", out.with_name(f"{out.name}-store"))


data_app = typer.Typer(help="Look at token stores.", no_args_is_help=True)
Store = Annotated[str, Argument(help="Directory of a store, or a place such as s3://bucket/store.")]


@data_app.command()
def show(store: Store) -> None:
    """Show what a store holds."""
    from superpose.data.store import TokenStore

    typer.echo(TokenStore.open(store).describe())


@data_app.command()
def verify(store: Store) -> None:
    """Compare a store's files with their checksums."""
    from superpose.data.store import TokenStore

    opened = TokenStore.open(store)
    if problems := opened.verify():
        raise UserError("; ".join(problems) + f"; remove {store} and prepare it again")
    typer.echo(f"{opened.describe()}\nall files are as they were written")
