"""`superpose conform`."""

from typing import Annotated

import typer
from typer import Argument, Option

from superpose.cli.options import AsJson, console, named, print_json
from superpose.errors import UserError

_COLORS = {"right": "green", "wrong": "red", "not checked": "yellow"}


def conform(
    source: Annotated[
        str, Argument(metavar="FILE.py|MODULE", help="The file or module with your step. Its code is run.")
    ],
    ordinary: Annotated[bool, Option("--ordinary", help="Judge ordinary training, without bags.")] = False,
    role: Annotated[
        list[str] | None,
        Option(metavar="ROLE=NAME", help="Your name for a role, such as step=compute_loss; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check your own training step, with its own model, for the twelve usual errors, and show the evidence.

    The file has a function 'step', or 'fold' and 'loss'; see docs/conform.md. Exit codes: 0 everything it promises was
    shown to be right, 1 something is wrong, 2 nothing can be judged, 3 something it promises could not be shown.
    """
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from superpose.conform import conform as judge
    from superpose.conform import load, passes
    from superpose.conform.subject import ROLES

    expected = f"ROLE=NAME with one of {', '.join(ROLES)}"
    names = dict(named("--role", text, expected) for text in role or [])
    if unknown := [name for name in names if name not in ROLES]:
        raise UserError(f"--role {unknown[0]}={names[unknown[0]]}: expected {expected}")
    subject = load(source, names)
    try:
        verdicts = judge(subject, ordinary)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if as_json:
        print_json([asdict(verdict) for verdict in verdicts])
    else:
        for cause in dict.fromkeys(verdict.cause for verdict in verdicts if verdict.cause):
            of = dict.fromkeys(str(verdict.error) for verdict in verdicts if verdict.cause == cause)
            console().print(f"Cause of error {', '.join(of)}: {cause}")
        table = Table("", "check", "verdict", "", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for one in (verdict for verdict in verdicts if verdict.promised):
            table.add_row(str(one.error), one.check, Text(one.state, _COLORS[one.state]), one.reason)
        console().print(table)
        states: list[str] = [verdict.state for verdict in verdicts if verdict.promised]
        console().print(", ".join(f"{states.count(state)} {state}" for state in _COLORS) + ".")
        if missing := [verdict for verdict in verdicts if not verdict.promised]:
            listed = "; ".join(f"{one.check} ({one.reason.removeprefix('because ')})" for one in missing)
            console().print(f"Not asked for: {listed}.")
    if not passes(verdicts):
        raise typer.Exit(1 if any(verdict.state == "wrong" for verdict in verdicts) else 3)
