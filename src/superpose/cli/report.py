"""`superpose report`."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from superpose.errors import UserError


def report(
    places: Annotated[
        list[Path], Argument(metavar="RUN...", help="Directories of plans, comparisons, reproductions and runs.")
    ],
    out: Annotated[
        Path | None, Option(help="The page to write; by default report.html in the first directory.")
    ] = None,
) -> None:
    """Write one HTML page, which needs no network, and the same as Markdown with pictures."""
    from superpose.report.page import write_report

    page = out or places[0] / "report.html"
    if page.suffix != ".html":
        raise UserError(f"--out {page}: expected a name that ends in .html")
    for path in write_report(places, page):
        typer.echo(path)
    typer.echo(f"Open {page} in a browser.")
