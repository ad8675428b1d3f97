"""`superpose recipes`."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument

from superpose.errors import UserError
from superpose.recipes import FOLDER, NAMES


def recipes(
    name: Annotated[str | None, Argument(help="Print this one, to begin one of your own with.")] = None,
) -> None:
    """List the recipes that superpose brings, or print one."""
    if name is not None and name not in NAMES:
        raise UserError(f"superpose has no recipe {name}; choose of {', '.join(NAMES)}")
    texts = {own: (FOLDER / f"{own}.toml").read_text(encoding="utf-8") for own in ([name] if name else NAMES)}
    if name is not None:
        typer.echo(texts[name], nl=False)
        return
    for own, text in texts.items():
        typer.echo(f"{own:15} {text.splitlines()[0].removeprefix('# ')}")
