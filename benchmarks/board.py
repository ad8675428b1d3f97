"""Checks the entries of the board and writes docs/board.md from them.

    python benchmarks/board.py --check benchmarks/results/mine    # one entry, or several
    python benchmarks/board.py                                    # all, and the page

An entry is a folder of benchmarks/results with a comparison's `comparison.json` and an `entry.toml`:

    command = "superpose compare cpu-small --corpus mine.jsonl --seeds 1,2,3,4,5 --lrs 1e-3,2e-3,4e-3 --name mine"
    text = "What the corpus is, and where others get it."
    machine = "What it was trained on."
    by = "Whose runs these are."

Nothing that comparison.json concludes is taken over: answers are computed again from its runs. A check compares the
runs with the recipe, and the recipe with what the command asks for.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from superpose.cli import app
from superpose.compare.comparison import Comparison
from superpose.compare.experiment import CONTEXT, ORDINARY, TST, Design
from superpose.errors import UserError
from superpose.files import write_text
from superpose.results.statistics import corrected
from superpose.results.tables import Row, describe, markdown
from superpose.train.config import Recipe
from superpose.train.recipe_file import with_settings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "board.md"
PLACE = re.compile(r"(<!-- board -->\n).*?(<!-- end -->)", re.DOTALL)
LEAST_SEEDS = 3
"""So many keep a variant on the board; 5 are asked for to claim a gain."""


class Facts(BaseModel, extra="forbid"):
    """What entry.toml says beside the results."""

    command: str
    text: str
    machine: str
    by: str


@dataclass(frozen=True)
class Entry:
    name: str
    facts: Facts
    comparison: Comparison


def read_entry(folder: Path) -> Entry:
    """An entry whose parts fit each other.

    Raises:
        UserError: they do not; it says which part, and what was expected.
    """
    file = folder / "entry.toml"
    try:
        facts = Facts.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        wanted = ", ".join(Facts.model_fields)
        raise UserError(
            f"{file} cannot be read; expected {wanted}, each a text ({str(error).splitlines()[0]})"
        ) from None
    entry = Entry(folder.name, facts, Comparison.load(folder))
    check_runs(folder, entry.comparison)
    check_command(file, facts.command, entry.comparison)
    return entry


def check_runs(folder: Path, comparison: Comparison) -> None:
    """Whether runs read and computed what their recipe makes them, in every arm and at every budget."""
    if len(comparison.seeds) < LEAST_SEEDS:
        raise UserError(f"{folder}: {len(comparison.seeds)} seeds; expected {LEAST_SEEDS} or more, 5 to claim a gain")
    recipes = {
        (arm, budget): recipe for arm, of_arm in comparison.variants.items() for budget, recipe in of_arm.items()
    }
    by_steps = {(arm, recipe.train.steps): recipe for (arm, _), recipe in recipes.items()}
    for run in comparison.runs:
        recipe = by_steps.get((run.arm, run.steps)) or _arm(comparison.recipe, run.arm, run.steps)
        wanted = {
            "steps": run.steps,
            "latents": run.steps * recipe.latents_per_step,
            "raw_tokens": recipe.schedule.raw_tokens(recipe.latents_per_step),
        }
        for what, value in wanted.items():
            if run.result[what] != value:
                raise UserError(
                    f"{folder}: {run.arm} at {run.steps} steps, seed {run.seed}, has {run.result[what]} {what}, and "
                    f"its recipe makes {value}; give what `superpose compare` wrote"
                )
        if not math.isfinite(run.result["val_loss"]):
            raise UserError(f"{folder}: {run.arm}, seed {run.seed}: its loss is not finite; leave the run out")
    for arm in (TST, *comparison.variants):
        seeds = comparison.seeds_of((ORDINARY, comparison.steps), (arm, comparison.steps))
        spent = [flops for of in (ORDINARY, arm) for flops in comparison.values(of, "flops", seeds=seeds)]
        if seeds and max(spent) > 1.01 * min(spent):
            raise UserError(f"{folder}: {arm} and ordinary training spend different FLOPs; compare them at equal ones")


def _arm(recipe: Recipe, arm: str, steps: int) -> Recipe:
    recipe = with_settings(recipe, "train", steps=steps)
    if arm == CONTEXT:
        return with_settings(recipe, "superposition", expand="batch")
    return recipe.ordinary() if arm == ORDINARY else recipe


def check_command(file: Path, command: str, comparison: Comparison) -> None:
    """Whether the command asks for this recipe, these seeds and these variants."""
    design = design_of(command)
    if design is None:
        raise UserError(f"{file}: {command!r} is no `superpose compare` that trains; give the one that was run")
    differing = [place for place in design.recipe.changes(comparison.recipe) if place != "train.precision"]
    differing += ["seeds"] if not set(comparison.seeds) <= set(design.seeds) else []
    differing += ["variants"] if set(design.variants) != set(comparison.variants) else []
    theirs, ours = comparison.recipe.data.model_dump(), design.recipe.data.model_dump()
    differing += [f"data.{name}" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise UserError(
            f"{file}: the command and comparison.json differ in {', '.join(differing)}; give the one that was run"
        )


def design_of(command: str) -> Design | None:
    """What a command would train; None if it is another command, or would train nothing."""
    words = shlex.split(command)
    if words[:2] != ["superpose", "compare"]:
        return None
    with mock.patch("superpose.compare.compare", side_effect=KeyboardInterrupt) as compare:
        CliRunner().invoke(app, words[1:])
    return compare.call_args.args[0] if compare.call_args else None


def rows(entry: Entry) -> list[Row]:
    """A row for TST and for each variant at the main budget, all against ordinary training."""
    comparison, found = entry.comparison, list[Row]()
    flops = comparison.equal_flops()
    assert flops is not None
    against = {TST: corrected({TST: flops})[TST], **comparison.variants_against(ORDINARY)}
    for arm, one in against.items():
        recipe = comparison.variants[arm][comparison.steps] if arm in comparison.variants else comparison.recipe
        seeds = comparison.seeds_of((ORDINARY, comparison.steps), (arm, comparison.steps))
        pairs = zip(*(comparison.values(of, "val_loss", seeds=seeds) for of in (ORDINARY, arm)), strict=True)
        lower, loss = sum(ours < ordinary for ordinary, ours in pairs), comparison.equal_loss(arm=arm)
        parameters = next(run.result["parameters"] for run in comparison.runs)
        found.append(
            (
                f"[{entry.name}](#{entry.name})" + (f", {arm}" if arm != TST else ""),
                f"{parameters / 1e6:.2f} M",
                f"{comparison.steps:,}",
                describe(recipe.schedule),
                f"{lower} of {one.seeds}",
                f"{one.value:+.4f}" if one.low is None else f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f})",
                "-" if one.p is None else f"{one.p:.1g}",
                loss.spoken() if loss else "-",
                "yes" if comparison.tunings else "no",
            )
        )
    return found


HEADER = (
    "entry",
    "model",
    "steps",
    "schedule",
    "lower at",
    "nats at equal FLOPs",
    "p",
    "speedup at equal loss",
    "tuned",
)


def page(entries: list[Entry]) -> str:
    """What stands between the marks of docs/board.md."""
    table = [row for entry in entries for row in rows(entry)]
    parts = [markdown([("", HEADER, table)], "").strip()]
    for entry in entries:
        facts, cautions = entry.facts, " ".join(entry.comparison.cautions())
        parts.append(
            f"### {entry.name}\n\n    {facts.command}\n\n{facts.text} {facts.machine} {facts.by} {cautions}".strip()
        )
    return "\n\n".join(parts) + "\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Checks the board's entries, and writes docs/board.md from all of them."
    )
    parser.add_argument("--check", nargs="+", type=Path, metavar="FOLDER", help="check these and write nothing")
    chosen = parser.parse_args().check
    folders = chosen or sorted(file.parent for file in RESULTS.glob("*/entry.toml"))
    try:
        entries = [read_entry(folder) for folder in folders]
    except UserError as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"{entry.name}: {entry.comparison.verdict()}" for entry in entries))
    if not chosen:
        write_text(PAGE, PLACE.sub(lambda found: found[1] + page(entries) + found[2], PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
