"""`superpose runs ...`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from superpose.cli.options import AsJson, Runs, console, print_json

Run = Annotated[Path, Argument(help="Directory of a run.")]


class _ListByDefault(TyperGroup):
    """`superpose runs` and `superpose runs DIR` list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ListByDefault, help="List, show, compare and remove the runs on disk.")


@app.command("list")
def list_runs(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder of runs.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List the runs in a folder and in its subfolders, each once."""
    from superpose.results.progress import print_table
    from superpose.runs.disk import find_runs
    from superpose.runs.tables import listed, table_of

    runs, problems = find_runs(folder)
    if as_json:
        print_json([listed(run) for run in runs])
    elif runs:
        print_table(_wide(), *table_of(runs))
    else:
        typer.echo(f"{folder} holds no runs")
    for problem in problems:
        typer.echo(f"left out: {problem}", err=True)


@app.command()
def show(run: Run, as_json: AsJson = False) -> None:
    """Show a run: its state, results, checkpoints and settings."""
    from superpose.results.progress import print_table
    from superpose.runs.disk import open_run
    from superpose.runs.tables import shown, tables_of
    from superpose.train.recipe_file import recipe_toml

    found = open_run(run)
    if as_json:
        print_json(shown(found))
        return
    wide = _wide()
    for title, header, rows in tables_of(found):
        wide.print(title, style="bold")
        print_table(wide, header, rows)
        wide.print()
    wide.print("Settings that are not at their defaults", style="bold")
    wide.print(recipe_toml(found.recipe), soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN RUN...", help="Directories of runs.")],
    as_json: AsJson = False,
) -> None:
    """Compare runs: settings that differ, losses at equal steps and at equal FLOPs."""
    from dataclasses import asdict

    from superpose.results.progress import print_table
    from superpose.runs.disk import open_run
    from superpose.runs.tables import differences

    found = differences([open_run(run) for run in runs])
    if as_json:
        print_json(asdict(found))
        return
    wide = _wide()
    for remark in found.remarks():
        wide.print(remark)
    for title, header, rows in found.tables():
        wide.print(f"\n{title}", style="bold")
        print_table(wide, header, rows)


@app.command()
def remove(
    paths: Annotated[list[Path], Argument(metavar="RUN...", help="Runs, or links to them.")],
    checkpoints: Annotated[bool, Option("--checkpoints", help="Remove only their checkpoints.")] = False,
    yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be freed.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Remove runs inside of --runs, or only their checkpoints. It says first what goes; of a link, only itself."""
    from superpose.runs.remove import plan_removals
    from superpose.runs.remove import remove as remove_one
    from superpose.runs.tables import spoken_size

    planned = plan_removals(paths, runs, checkpoints)
    for removal in planned:
        typer.echo(removal.spoken())
        for remark in removal.remarks:
            typer.echo(f"          {remark}")
    freed = spoken_size(sum(removal.bytes for removal in planned))
    if dry_run:
        typer.echo(f"{freed} would be freed")
        return
    if not yes and not typer.confirm(f"Free {freed}?"):
        typer.echo("nothing was removed")
        raise typer.Exit(1)
    for removal in planned:
        remove_one(removal)
    typer.echo(f"{freed} freed")


def _wide() -> Any:
    """A pipe has no width to fit tables into."""
    return console() if console().is_terminal else console(width=200)
