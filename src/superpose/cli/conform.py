"""`superpose conform`."""

from __future__ import annotations

from typing import Annotated

import typer

from superpose.errors import UserError

_COLORS = {"right": "green", "wrong": "red", "raised": "red", "not checked": "yellow"}


def conform(
    source: Annotated[str, typer.Argument(metavar="FILE.py|MODULE", help="Where the implementation is; it is run.")],
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="What a role is called there, such as step=compute_loss; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check an implementation of token superposition, whoever wrote it, for the twelve errors, with evidence.

    It has a function 'step', or 'fold' and 'loss'; see docs/conform.md. Ends with exit code 1 if an error was found.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from superpose.conform.implementation import ROLES, load
    from superpose.conform.suite import conform as check

    names = {}
    for text in role or []:
        part, equals, name = text.partition("=")
        if not equals or part not in ROLES:
            raise UserError(f"--role {text}: expected ROLE=NAME with one of {', '.join(ROLES)}")
        names[part] = name
    findings = check(load(source, names))
    if as_json:
        typer.echo(json.dumps([{**asdict(finding), "title": finding.title} for finding in findings], indent=2))
    else:
        console = Console(markup=False, highlight=False)
        table = Table("", "error", "verdict", "evidence", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for finding in findings:
            verdict = Text(finding.verdict, _COLORS[finding.verdict])
            table.add_row(str(finding.error), finding.title, verdict, finding.evidence)
        console.print(table)
    if any(finding.verdict in ("wrong", "raised") for finding in findings):
        raise typer.Exit(1)
