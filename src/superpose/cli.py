"""The command line: a thin shell over the package, loading each part when a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from superpose import __version__
from superpose.errors import UserError

if TYPE_CHECKING:
    from superpose.data.readers import Source
    from superpose.display import Display
    from superpose.train.config import Recipe

_Number = TypeVar("_Number", int, float)

app = typer.Typer(
    help="Token-superposition training: language-model pre-training for less.",
    epilog="A recipe is a TOML file; recipes/cpu-tiny.toml shows all settings with their defaults.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Change a setting of the recipe; may be repeated."),
]


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


@app.command()
def compare(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; by default recipes/cpu-tiny.toml.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Text, tokens or a prepared store, as 'superpose prepare' takes them."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each run.")] = None,
    bag_size: Annotated[int | None, typer.Option(help="Tokens in a bag (s).")] = None,
    ratio: Annotated[float | None, typer.Option(help="Share of the steps in superposition (r).")] = None,
    stages: Annotated[
        str | None,
        typer.Option(metavar="S:R,S:R,...", help="Several stages of superposition instead, such as 8:0.1,4:0.2."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of both arms.")] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Both arms are trained once with each seed.")] = "1",
    name: Annotated[str | None, typer.Option(help="Of the comparison; by default the recipe's, or 'demo'.")] = None,
    runs: Annotated[Path, typer.Option(help="Directory for comparisons.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time; 0 for one on each core.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Train ordinarily and with TST at equal FLOPs, and show the difference.

    Both arms share recipe, seeds, steps and order of data. Started again, a comparison goes on where it stopped.
    """
    from rich.console import Console

    from superpose.compare.experiment import execute, plan_runs
    from superpose.compare.report import Comparison
    from superpose.data.workers import available_cores
    from superpose.display import Display, print_table
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
    settings = _load(recipe, shortcuts, stages, overrides)
    planned = plan_runs(settings, _seeds(seeds))
    directory = runs / (name or (recipe.stem if recipe else "demo"))
    with Display(console) as display:
        store = _prepare(settings, display)
        for run in planned[:2]:
            console.print(f"{run.arm}: {announce(run.recipe, store)}")
        finished = sum((directory / run.name / "result.json").exists() for run in planned)
        if finished:
            console.print(
                f"{finished} of {len(planned)} runs in {directory} are finished; remove it to train them again"
            )
        try:
            outcomes = execute(
                planned,
                store,
                directory,
                min(jobs or available_cores(), len(planned)),
                lambda run, record: display.record(run.name, settings.train.steps, record),
            )
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from the last checkpoints")
            raise
    comparison = Comparison(settings, outcomes)
    if comparison.seeds:
        comparison.write(directory, store)
        console.print()
        print_table(console, ("", "ordinary", comparison.tst_label, "difference"), comparison.rows())
        if len(comparison.seeds) > 1:
            console.print()
            print_table(console, ("seed", "ordinary", "TST", "difference"), comparison.seed_rows())
        console.print(f"\n{comparison.verdict()}\n")
        console.print(f"Table, curves, metrics and both models: {directory}/")
    failed = [outcome.run.name for outcome in outcomes if outcome.result is None]
    if failed:
        raise UserError(
            f"{', '.join(failed)} failed, see above; what finished is kept in {directory}, "
            f"and the same command tries the rest again"
        )


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, or the config.json of a run.")],
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

    from rich.console import Console

    from superpose.display import Display, summarize
    from superpose.train.loop import announce
    from superpose.train.loop import train as train_run
    from superpose.train.stopping import StoppedError

    # Of the ranks torchrun starts, the first speaks for all.
    console = Console(markup=False, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    settings = _load(recipe, {"data.corpus": corpus}, None, overrides)
    with Display(console) as display:
        store = _prepare(settings, display)
        console.print(announce(settings, store))
        try:
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


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="A file, folder or pattern of text, JSON lines (.gz, .zst), Parquet or tokens (.bin); a saved dataset; "
        "or 'python' for the Python sources of this machine.",
    ),
]
Field = Annotated[str, typer.Option(help="Of JSON lines, Parquet and datasets: where a record keeps its text.")]
Encoding = Annotated[str, typer.Option(help="Of text files.")]
Dtype = Literal["auto", "uint16", "uint32"]
Processes = Annotated[int, typer.Option(min=0, help="At a time; 0 for one on each core.")]


@app.command()
def prepare(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Directory of the store.")],
    tokenizer: Annotated[
        str, typer.Option(help="A tokenizer.json, a directory that holds one, or 'bytes'.", show_default=False)
    ] = "",
    vocab_size: Annotated[
        int | None, typer.Option(min=257, help="Train a tokenizer of so many entries on the text instead.")
    ] = None,
    end_of_text: Annotated[
        str, typer.Option(help="The token that ends documents; by default the tokenizer's eos_token.")
    ] = "",
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="Share of the text each source is to have.")
    ] = None,
    field: Field = "text",
    encoding: Encoding = "utf-8",
    dtype: Annotated[Dtype, typer.Option(help="Of .bin files without a header.")] = "auto",
    max_megabytes: Annotated[float | None, typer.Option(help="Of text to train on; by default all.")] = None,
    val_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of the documents held out.")] = 0.005,
    val_megabytes: Annotated[float, typer.Option(help="Of held-out text that is kept.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the documents.")] = 0,
    processes: Processes = 0,
) -> None:
    """Turn text into a token store: shuffled, without repeats, some of it held out.

    Interrupted and started again, it goes on where it stopped. Train on the store with --corpus or data.corpus.
    """
    import time

    from rich.console import Console

    from superpose.data.prepare import Preparation, prepare_store
    from superpose.display import Display

    if bool(tokenizer) == (vocab_size is not None):
        raise UserError("give either --tokenizer, or --vocab-size to train one on the text")
    shares = None if weights is None else tuple(_numbers("--weights", weights, float))
    if shares is not None and (len(shares) != len(sources) or min(shares) <= 0):
        raise UserError(f"--weights {weights}: expected {len(sources)} numbers above 0, one for each source")
    preparation = Preparation(
        _sources(sources, field, encoding, dtype),
        shares,
        tokenizer,
        vocab_size or 0,
        end_of_text,
        float("inf") if max_megabytes is None else max_megabytes * 1e6,
        val_fraction,
        val_megabytes * 1e6,
        seed,
    )
    console = Console(markup=False, highlight=False)
    started = time.monotonic()
    with Display(console) as display:
        try:
            store = prepare_store(preparation, out, processes, display.prepare)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on where it was")
            raise
        display.prepared()
    seconds = time.monotonic() - started
    typer.echo(f"{store.describe()}\n{out}, in {seconds:.0f} s")


tokenizer_app = typer.Typer(help="Train tokenizers.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")


@tokenizer_app.command("train")
def train_a_tokenizer(
    sources: Sources,
    vocab_size: Annotated[int, typer.Option(min=257, help="Entries, bytes and special tokens included.")],
    out: Annotated[Path, typer.Option(help="Directory to write, as Hugging Face saves tokenizers.")],
    special_token: Annotated[
        list[str] | None, typer.Option(help="A further special token, which text never turns into; may be repeated.")
    ] = None,
    field: Field = "text",
    encoding: Encoding = "utf-8",
    processes: Processes = 0,
) -> None:
    """Train a byte-level BPE tokenizer on 16 MiB of text, taken from all over the sources."""
    from rich.console import Console

    from superpose.data.prepare import train_on_sources
    from superpose.data.tokenizer import END_OF_TEXT, save_tokenizer
    from superpose.display import Display
    from superpose.files import whole_directory

    if out.exists():
        raise UserError(f"{out} exists; give a new directory")
    console = Console(markup=False, highlight=False)
    with Display(console) as display:
        trained = train_on_sources(
            _sources(sources, field, encoding), vocab_size, tuple(special_token or ()), processes, display.prepare
        )
        display.prepared()
    with whole_directory(out) as aside:
        save_tokenizer(trained, aside)
    typer.echo(f"{trained.vocab_size:,} entries, documents end with {END_OF_TEXT}\n{out}")


data_app = typer.Typer(help="Look at token stores.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Store = Annotated[Path, typer.Argument(help="Directory of a store.")]


@data_app.command()
def show(store: Store) -> None:
    """What a store holds."""
    from superpose.data.store import TokenStore

    typer.echo(TokenStore.open(store).describe())


@data_app.command()
def verify(store: Store) -> None:
    """Compare a store's files with their checksums."""
    from superpose.data.store import TokenStore

    opened = TokenStore.open(store)
    problems = opened.verify()
    if problems:
        raise UserError("; ".join(problems) + f"; remove {store} and prepare it again")
    typer.echo(f"{opened.describe()}\nall files are as they were written")


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="By default as many as the context has room for.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the probability to sample from.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Continue a text with the model of a finished run."""
    from superpose.generate import generate as generate_text
    from superpose.generate import load_model

    def stream(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    model, tokenizer = load_model(run)
    generate_text(model, tokenizer, prompt, max_new_tokens, temperature, top_p, seed, stream)
    stream("\n")


def _load(recipe: Path | None, shortcuts: dict[str, Any], stages: str | None, overrides: list[str] | None) -> Recipe:
    """The recipe with the options' values and then the `--set` ones, checked as far as it can be before any work."""
    import json

    from superpose.core.schedule import Schedule
    from superpose.train.config import load_recipe
    from superpose.train.loop import check_recipe

    changes = [f"{name}={json.dumps(value)}" for name, value in shortcuts.items() if value is not None]
    if stages is not None:
        if shortcuts["superposition.bag_size"] is not None or shortcuts["superposition.ratio"] is not None:
            raise UserError("--stages gives bag sizes and ratios; leave out --bag-size and --ratio")
        try:
            # How many steps there are only the recipe knows; it checks the stages against them.
            parsed = Schedule.parse(stages, total_steps=2**40)
        except ValueError as error:
            raise UserError(f"--stages: {error}") from None
        changes += [f"superposition.{part}={json.dumps(getattr(parsed, part))}" for part in ("bag_size", "ratio")]
    settings = load_recipe(recipe, changes + (overrides or []))
    check_recipe(settings)
    return settings


def _prepare(settings: Recipe, display: Display) -> Any:
    from superpose.data.config import prepare

    store = prepare(settings.data, display.prepare)
    display.prepared()
    return store


def _sources(locations: list[str], field: str, encoding: str, dtype: Dtype = "auto") -> tuple[Source, ...]:
    from superpose.data.readers import Source

    return tuple(Source(location, field, encoding, dtype) for location in locations)


def _seeds(text: str) -> list[int]:
    return _numbers("--seeds", text, int)


def _numbers(option: str, text: str, kind: Callable[[str], _Number]) -> list[_Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole " if kind is int else ""
        raise UserError(f"{option} {text}: expected {whole}numbers with commas between, such as 1,2,3") from None
