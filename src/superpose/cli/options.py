"""Options that several commands have, and what to make of them."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer import Option

from superpose.errors import UserError
from superpose.recipes import NAMES

if TYPE_CHECKING:
    from rich.console import Console

    from superpose.data.store import TokenStore
    from superpose.results.progress import Display
    from superpose.train.config import Recipe

_Number = TypeVar("_Number", int, float)

A_RECIPE = f"A recipe file, or one of {', '.join(NAMES)}"
Overrides = Annotated[
    list[str] | None,
    Option("--set", metavar="SECTION.NAME=VALUE", help="Change a setting of the recipe; repeatable."),
]
Variants = Annotated[
    list[str] | None,
    Option(
        "--variant",
        metavar="NAME=SETTINGS",
        help="Add an arm with these settings, written as for --set with commas between, or a TOML file; repeatable.",
    ),
]
Steps = Annotated[int | None, Option(help="Optimizer steps of a run, both phases together.")]
BagSize = Annotated[int | None, Option(help="Tokens in a bag (s).")]
Ratio = Annotated[float | None, Option(help="Share of the steps in superposition (r).")]
Stages = Annotated[
    str | None,
    Option(metavar="S:R,S:R,...", help="Several stages of superposition, such as 8:0.1,4:0.2, in place of one."),
]
Rate = Annotated[float | None, Option("--lr", help="Peak learning rate.")]
Corpus = Annotated[
    str | None, Option(help="The text to train on: whatever 'superpose prepare' reads, or a prepared store.")
]
Runs = Annotated[Path, Option(help="Folder for results and runs.")]
Jobs = Annotated[int, Option(min=0, help="How many runs to train at a time; 0 for one per core, or one per GPU.")]
EngineName = Annotated[
    str,
    Option(
        "--engine",
        metavar="local|ray|ray://HOST:PORT",
        help="Work on this machine, or on a Ray cluster whose nodes share files.",
    ),
]
CoresPerRun = Annotated[
    int, Option(min=0, help="CPU cores for each run; 0 for an equal share of this machine, or one on a cluster.")
]
GpusPerRun = Annotated[
    float,
    Option(min=0, help="GPUs for each run, with a rank on each, or a share of one such as 0.5; 0 for one."),
]
AsJson = Annotated[bool, Option("--json", help="Print everything as JSON.")]


def console(**settings: Any) -> "Console":
    """Prints names and paths from outside, which are text and not markup."""
    from rich.console import Console

    return Console(markup=False, highlight=False, **settings)


def print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))


def say_next(*command: object, err: bool = False) -> None:
    """Names the command that is useful after this one, on a line that can be copied."""
    typer.echo(f"Next: {shlex.join(['superpose', *map(str, command)])}", err=err)


def named(option: str, text: str, expected: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE, both of which have to be there; `expected` says so in the error."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise UserError(f"{option} {text}: expected {expected}")
    return name, value


def load_settings(
    recipe: Path | None,
    overrides: list[str] | None,
    *,
    corpus: str | None = None,
    steps: int | None = None,
    bag_size: int | None = None,
    ratio: float | None = None,
    stages: str | None = None,
    lr: float | None = None,
) -> "Recipe":
    """The recipe with the options' values and then the `--set` ones, checked as far as it can be before any work."""
    import json

    from superpose.core.schedule import Schedule
    from superpose.data.config import DataArgs
    from superpose.train.loop import check_recipe
    from superpose.train.recipe_file import load_recipe, override

    shortcuts = {
        "data.corpus": corpus,
        "train.steps": steps,
        "superposition.bag_size": bag_size,
        "superposition.ratio": ratio,
        "train.lr": lr,
    }
    changes = [f"{name}={json.dumps(value)}" for name, value in shortcuts.items() if value is not None]
    if stages is not None:
        if bag_size is not None or ratio is not None:
            raise UserError("--stages gives bag sizes and ratios; leave out --bag-size and --ratio")
        try:
            # How many steps there are only the recipe knows; it checks the stages against them.
            parsed = Schedule.parse(stages, total_steps=2**40)
        except ValueError as error:
            raise UserError(f"--stages: {error}") from None
        changes += [f"superposition.{part}={json.dumps(getattr(parsed, part))}" for part in ("bag_size", "ratio")]
    settings = load_recipe(recipe)
    if corpus is not None and DataArgs(corpus=corpus).store is not None:
        # How the recipe prepares its own text says nothing of a store; what --set says of one is refused.
        settings = settings.model_copy(update={"data": DataArgs()})
    settings = override(settings, changes + (overrides or []))
    check_recipe(settings)
    return settings


def prepared_store(settings: "Recipe", display: "Display") -> "TokenStore":
    """The recipe's text, prepared."""
    from superpose.data.config import prepare

    return prepare(settings.data, display.prepare)


def expect_all(display: "Display") -> None:
    """Raises a UserError if runs failed, which names them."""
    if display.failed:
        failed = ", ".join(display.failed)
        raise UserError(f"{failed} failed, see above; what finished is kept, and the same command tries the rest again")


def numbers(option: str, text: str, kind: Callable[[str], _Number]) -> tuple[_Number, ...]:
    """Numbers with commas between; of no text none."""
    try:
        return tuple(kind(part) for part in text.split(",") if text)
    except ValueError:
        whole = "whole " if kind is int else ""
        raise UserError(f"{option} {text}: expected {whole}numbers with commas between, such as 1,2,3") from None
