"""What `superpose compare` does: trains both arms, answers the three questions, writes the results.

Design -> settings of each arm, where some are tuned -> runs in RUNS/pool -> Comparison -> files in RUNS/NAME
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from superpose.compare.charts import curves
from superpose.compare.comparison import Comparison
from superpose.compare.experiment import Design, found_tunings, plan_runs, plan_tuning
from superpose.compare.tuned import Tuning
from superpose.data.config import prepare
from superpose.data.store import TokenStore
from superpose.engine.jobs import Engine
from superpose.engine.local import Local
from superpose.results.charts import draw
from superpose.results.progress import Display
from superpose.runs.pool import POOL, Outcome, Run, link, named_directory, settled, train_all
from superpose.train.loop import announce, check_recipe

_SECONDS_BETWEEN_SUMMARIES = 20.0


def compare(
    design: Design,
    *,
    runs: Path = Path("runs"),
    name: str = "demo",
    jobs: int = 0,
    engine: Engine | None = None,
    display: Display | None = None,
) -> Comparison:
    """Trains ordinarily and with TST, and answers at equal FLOPs, equal loss and equal data.

    Variants of the design stand beside both. Writes comparison.json, summary.md and loss.png into RUNS/NAME, where a
    seed finished both arms, and links to the runs; summary.md also while runs are at work. A run is trained once,
    whatever asks for it: called again with more seeds, budgets or variants, this trains just what is missing. Runs that
    fail are left out and named in `Comparison.failures`.

    Args:
        design: recipe, seeds, budgets, and settings to tune.
        runs: directory for results, and for the pool of all runs.
        name: of the comparison.
        jobs: runs at a time; 0 for one on each core, or on each GPU.
        engine: where runs are trained, see `superpose.engine.open_engine`; by default in processes of this machine.
        display: shows the work; by default on standard output.

    Raises:
        UserError: a budget is too short for the recipe, its model cannot be built, its text cannot be read, or all
            runs that tune an arm failed.
    """
    display = display or Display()
    plan_runs(design)  # says what is wrong before any work
    check_recipe(design.recipe)
    directory = named_directory(runs, name)
    with display, engine or Local() as machines:
        design = replace(design, recipe=settled(design.recipe, machines))
        store = prepare(design.recipe.data, display.prepare)
        tuning, later = plan_tuning(design), plan_runs(design)
        tunings = found_tunings(design, train_all(tuning, store, runs / POOL, jobs, display, machines, later))
        planned = plan_runs(design, tunings)
        for run in {run.arm: run for run in reversed(planned)}.values():
            display.say(f"{run.arm}: {announce(run.recipe, store)}")
        page = _Page(design, planned, tunings, store, runs / POOL, directory, display.so_far)
        outcomes = train_all(planned, store, runs / POOL, jobs, display, machines, (), page.hear)
    link(outcomes, directory)
    comparison = Comparison.of(design, outcomes, tunings, store)
    if comparison.seeds:
        comparison.write(directory)
        draw(curves(comparison), ("flops", "raw_tokens"), directory / "loss.png")
    return comparison


class _Page:
    """summary.md while runs are at work: of what has finished, in the process that trains nothing."""

    def __init__(
        self,
        design: Design,
        planned: Sequence[Run],
        tunings: Sequence[Tuning],
        store: TokenStore,
        pool: Path,
        to: Path,
        so_far: Callable[[], str],
    ) -> None:
        self._so_far = so_far
        self._design, self._tunings, self._store, self._pool, self._to = design, tunings, store, pool, to
        self._all = {run.key(store) for run in planned}
        self._outcomes: dict[str, Outcome] = {}
        self._written = -_SECONDS_BETWEEN_SUMMARIES

    def hear(self, run: Run, record: dict[str, Any]) -> None:
        if record["kind"] not in ("result", "failure"):
            return
        key = run.key(self._store)
        self._outcomes[key] = Outcome(run, self._pool / key, record.get("result"), record.get("message"))
        known = [*self._outcomes.values()]
        if len(known) == len(self._all) or time.monotonic() - self._written < _SECONDS_BETWEEN_SUMMARIES:
            return
        comparison = Comparison.of(self._design, known, self._tunings, self._store)
        if comparison.seeds:
            self._written = time.monotonic()
            state = f"{datetime.now():%Y-%m-%d %H:%M}: {self._so_far()}; this is of those that are done."
            comparison.write_summary(self._to, state)
