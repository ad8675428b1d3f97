"""`superpose conform`."""

from typing import Annotated

import typer
from typer import Argument, Option

from superpose.cli.options import AsJson, console, named, print_json
from superpose.errors import UserError

_COLORS = {"right": "green", "wrong": "red", "raised": "red", "not checked": "yellow"}


def conform(
    source: Annotated[str, Argument(metavar="FILE.py|MODULE", help="Where the implementation is; it is run.")],
    role: Annotated[
        list[str] | None,
        Option(metavar="ROLE=NAME", help="What a role is called there, such as step=compute_loss; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an implementation of token superposition, whoever wrote it, for the twelve errors, with evidence.

    It has a function 'step', or 'fold' and 'loss'; see docs/conform.md. Ends with exit code 1 if an error was found.
    """
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from superpose.conform import conform as check
    from superpose.conform.implementation import ROLES, load

    expected = f"ROLE=NAME with one of {', '.join(ROLES)}"
    names = dict(named("--role", text, expected) for text in role or [])
    if unknown := [name for name in names if name not in ROLES]:
        raise UserError(f"--role {unknown[0]}={names[unknown[0]]}: expected {expected}")
    findings = check(load(source, names))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "error", "verdict", "evidence", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for finding in findings:
            verdict = Text(finding.verdict, _COLORS[finding.verdict])
            table.add_row(str(finding.error), finding.title, verdict, finding.evidence)
        console().print(table)
    if any(finding.verdict in ("wrong", "raised") for finding in findings):
        raise typer.Exit(1)
