"""A comparison's results: its answers to the three questions, and the verdict in words.

RUNS/NAME/comparison.json  all results    RUNS/NAME/summary.md  tables and verdict    RUNS/NAME/loss.png  curves
RUNS/NAME/tst-3000-seed1/  and so on      the runs, see `superpose.train.run_directory`
"""

import itertools
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, FiniteFloat, TypeAdapter

from superpose.compare.experiment import CONTEXT, ORDINARY, TST, Design, steps_of_equal_data
from superpose.compare.tuned import LR, Trial, Tuning, label, same_effort, tunings_of_rates
from superpose.compare.tuned import spoken as settings_spoken
from superpose.compare.variant_tables import on_variants, variant_answers, variant_tables
from superpose.compare.variants import beside_bags
from superpose.data.store import TokenStore
from superpose.errors import UserError
from superpose.files import read_json, write_json, write_text
from superpose.results.intervals import ends, spoken
from superpose.results.statistics import (
    Corrected,
    Difference,
    Speedup,
    corrected,
    loss_at,
    paired_difference,
    seeds_needed,
    speedup,
)
from superpose.results.tables import Row, Table, describe, markdown
from superpose.runs.pool import POOL, Outcome
from superpose.train.config import Recipe
from superpose.train.recipe_file import with_settings
from superpose.train.records import Result, checked

_FORMAT = "superpose comparison 4"
_BEFORE: dict[str, dict[str, Any]] = {"superpose comparison 2": {"variants": {}}, "superpose comparison 3": {}}
"""Formats that are read, with what they lack. They tuned a learning rate at the main budget, and nothing else."""


@dataclass(frozen=True)
class Trained:
    """A finished run of a comparison; `result` is what its result.json holds."""

    arm: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    steps: Annotated[int, Field(ge=1, lt=2**63)]
    lr: FiniteFloat
    directory: Path
    result: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Finished runs of two arms or more, at the same seeds and budgets.

    Attributes:
        recipe: of the TST arm at the main budget.
        runs: those that finished.
        tunings: how each arm came by settings of its own; empty if all took the recipe's.
        store: the facts of its text that are in comparison.json.
        failures: name and reason of the runs that did not finish.
        variants: recipes of further arms, by name and budget. A budget is a number of ordinary steps; a variant whose
            steps cost more takes fewer for it.
    """

    recipe: Recipe
    runs: tuple[Trained, ...]
    tunings: tuple[Tuning, ...] = ()
    store: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    variants: dict[str, dict[int, Recipe]] = field(default_factory=dict)

    @classmethod
    def of(cls, design: Design, outcomes: Sequence[Outcome], tunings: Sequence[Tuning], store: TokenStore) -> Self:
        """What came of a design's runs."""
        runs = [
            Trained(o.run.arm, o.run.seed, o.run.steps, o.run.recipe.train.lr, o.directory, o.result)
            for o in outcomes
            if o.result is not None
        ]
        failures = {outcome.run.name: outcome.failure or "" for outcome in outcomes if outcome.result is None}
        return cls(design.recipe, tuple(runs), tuple(tunings), store.facts, failures, design.variant_recipes)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads comparison.json back.

        Raises:
            UserError: there is none, or it was altered or is of another version.
        """
        path = directory / "comparison.json"
        saved = read_json(path)
        before = _BEFORE.get(str(saved.get("format")))
        if before is None and saved.get("format") != _FORMAT:
            raise UserError(f"{path} is of another version of superpose; run the comparison again to write it anew")
        try:
            if before is not None:
                saved = {
                    **saved,
                    **before,
                    "tunings": tunings_of_rates(saved["tunings"], saved["recipe"]["train"]["steps"]),
                }
            comparison = TypeAdapter(cls).validate_python({part.name: saved[part.name] for part in fields(cls)})
            for run in comparison.runs:
                if checked(Result, run.result, run.directory).epochs is None:
                    raise ValueError  # tables show passes over the text
                if [part for part in run.directory.parts[:-1] if part != ".."] != [POOL]:
                    raise ValueError("runs lie in the pool beside the comparison, and nowhere else")
            if not same_effort(comparison.tunings, comparison.compared):
                raise ValueError("all arms are tuned, or none")
            for name, recipes in comparison.variants.items():
                if name in (ORDINARY, TST, CONTEXT) or comparison.steps not in recipes:
                    raise ValueError("a variant has a name of its own, and the main budget")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{path} was altered; run the comparison again to write it anew") from None
        runs = tuple(replace(run, directory=directory / run.directory) for run in comparison.runs)
        return replace(comparison, runs=runs)

    @property
    def compared(self) -> tuple[str, ...]:
        """Arms that are tuned each for itself, where anything is."""
        return ORDINARY, TST, *self.variants

    @property
    def steps(self) -> int:
        """The main budget."""
        return self.recipe.train.steps

    @property
    def seeds(self) -> list[int]:
        """Seeds at which both arms finished the main budget."""
        return self.seeds_of((ORDINARY, self.steps), (TST, self.steps))

    def steps_of(self, arm: str, budget: int) -> int:
        """How many steps an arm takes for a budget, in which it spends the FLOPs of as many ordinary steps."""
        recipe = self.variants.get(arm, {}).get(budget)
        return budget if recipe is None else recipe.train.steps

    def budgets(self, arm: str) -> list[int]:
        """Budgets an arm was trained for, ascending."""
        trained = {run.steps for run in self.runs if run.arm == arm}
        known = [b for b in self.variants[arm] if self.steps_of(arm, b) in trained] if arm in self.variants else trained
        return sorted(known)

    def seeds_of(self, *cells: tuple[str, int]) -> list[int]:
        """Seeds at which each of these arms finished each of these budgets."""
        wanted = [(arm, self.steps_of(arm, budget)) for arm, budget in cells]
        known = [{run.seed for run in self.runs if (run.arm, run.steps) == cell} for cell in wanted]
        return sorted(set.intersection(*known)) if known else []

    def values(self, arm: str, name: str, steps: int | None = None, seeds: Sequence[int] | None = None) -> list[float]:
        """A quantity of an arm's runs at a budget (by default the main one), in the order of the seeds."""
        steps, seeds = self.steps_of(arm, steps or self.steps), self.seeds if seeds is None else seeds
        by_seed = {run.seed: run.result[name] for run in self.runs if (run.arm, run.steps) == (arm, steps)}
        return [by_seed[seed] for seed in seeds]

    def equal_flops(
        self, steps: int | None = None, name: str = "val_loss", arm: str = TST, against: str = ORDINARY
    ) -> Difference | None:
        """TST minus ordinary, or an arm minus another, at the same budget; None without a seed that finished both."""
        steps = steps or self.steps
        seeds = self.seeds_of((against, steps), (arm, steps))
        if not seeds:
            return None
        return paired_difference(self.values(against, name, steps, seeds), self.values(arm, name, steps, seeds))

    def equal_loss(self, steps: int | None = None, arm: str = TST) -> Speedup | None:
        """How many times an arm's budget ordinary training needs for its loss; None with a single ordinary budget."""
        return self._speedups.get((arm, steps or self.steps))

    @cached_property
    def _speedups(self) -> dict[tuple[str, int], Speedup]:
        """By arm and budget; kept, because tables, verdict and answers ask for them and resampling takes time."""
        budgets, found = self.budgets(ORDINARY), {}
        cells = [(arm, steps) for arm in (TST, *self.variants) for steps in self.budgets(arm)]
        for arm, steps in cells if len(budgets) > 1 else ():
            seeds = self.seeds_of((arm, steps), *((ORDINARY, budget) for budget in budgets))
            if seeds:
                ordinary = {budget: self.values(ORDINARY, "val_loss", budget, seeds) for budget in budgets}
                found[arm, steps] = speedup(ordinary, self.values(arm, "val_loss", steps, seeds), steps)
        return found

    def equal_data(self, steps: int | None = None, arm: str = TST) -> Difference | None:
        """TST, or another arm, minus ordinary where both have read the same amount of text.

        None where no budget comes up to it. Between ordinary budgets a seed's loss is interpolated in log steps.
        """
        steps, budgets = steps or self.steps, self.budgets(ORDINARY)
        seeds = self.seeds_of((arm, steps), *((ORDINARY, budget) for budget in budgets))
        if not seeds:
            return None
        recipe = self.variants[arm][steps] if arm in self.variants else self.recipe
        wanted = steps_of_equal_data(with_settings(recipe, "train", steps=self.steps_of(arm, steps)), self.recipe)
        columns = [self.values(ORDINARY, "val_loss", budget, seeds) for budget in budgets]
        curves = [list(zip(budgets, losses, strict=True)) for losses in zip(*columns, strict=True)]
        ordinary = [loss for curve in curves if (loss := loss_at(curve, wanted)) is not None]
        if len(ordinary) < len(seeds):
            return None
        return paired_difference(ordinary, self.values(arm, "val_loss", steps, seeds))

    def variants_against(self, against: str, steps: int | None = None) -> dict[str, Corrected]:
        """Each variant minus ordinary training or minus TST, at the same budget, corrected for how many were tried.

        TST minus ordinary is what the comparison is about, and is not one of them.
        """
        found = {name: self.equal_flops(steps, arm=name, against=against) for name in self.variants}
        return corrected({name: one for name, one in found.items() if one is not None}, len(self.variants))

    @property
    def tst_label(self) -> str:
        return f"TST ({describe(self.recipe.schedule)})"

    def rows(self) -> list[Row]:
        """The main table: what, ordinary, TST, difference; means over the seeds."""
        rows: list[Row] = []
        for what, name, form in (
            ("validation loss, nats per token", "val_loss", ".4f"),
            ("validation, bits per byte", "val_bits_per_byte", ".4f"),
            ("raw tokens read", "raw_tokens", ",.0f"),
            ("epochs of the corpus", "epochs", ".2f"),
            ("latents computed", "latents", ",.0f"),
            ("training FLOPs", "flops", ".2e"),
            ("training seconds", "seconds", ".0f"),
        ):
            ordinary, tst = (statistics.fmean(self.values(arm, name)) for arm in (ORDINARY, TST))
            times = "equal" if ordinary == tst else f"{tst / ordinary:.2f} x"
            difference = f"{tst - ordinary:+.4f}" if name.startswith("val_") else times
            rows.append((what, f"{ordinary:{form}}", f"{tst:{form}}", difference))
        return rows

    def seed_rows(self) -> list[Row]:
        """Validation loss of each seed at the main budget: seed, ordinary, TST, difference; then of all together."""
        ordinary, tst, loss = self.values(ORDINARY, "val_loss"), self.values(TST, "val_loss"), self.equal_flops()
        pairs = zip(self.seeds, ordinary, tst, strict=True)
        rows: list[Row] = [(str(seed), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}") for seed, a, b in pairs]
        if loss is not None and loss.bootstrap is not None and loss.deviation is not None:
            means = (f"{statistics.fmean(losses):.4f}" for losses in (ordinary, tst))
            rows.append(("mean, 95 % interval", *means, spoken(loss)))
            rows.append(("bootstrap interval", "", "", f"{loss.bootstrap[0]:+.4f} to {loss.bootstrap[1]:+.4f}"))
            for precision in (0.05, 0.02, 0.01):
                needed = seeds_needed(loss.deviation, precision)
                rows.append((f"seeds for +- {precision:g} nats", "", "", f"{needed:,}" if needed else "over 10,000"))
        return rows

    def budget_rows(self) -> list[Row]:
        """Each budget: steps, seeds, ordinary, TST, difference and interval, steps for equal loss, equal data."""
        rows = []
        for steps in sorted({*self.budgets(ORDINARY), *self.budgets(TST)}):
            flops, loss, data = self.equal_flops(steps), self.equal_loss(steps), self.equal_data(steps)
            arms = (ORDINARY,) if flops is None else (ORDINARY, TST)
            seeds = self.seeds_of(*((arm, steps) for arm in arms))
            losses = [self.values(arm, "val_loss", steps, seeds) for arm in arms if seeds]
            means = [f"{statistics.fmean(of_arm):.4f}" for of_arm in losses] + ["-"] * (2 - len(losses))
            answers = [spoken(flops) if flops else "-", loss.spoken() if loss else "-", spoken(data) if data else "-"]
            rows.append((f"{steps:,}", str(len(seeds)), *means, *answers))
        return rows

    def tuning_rows(self, steps: int) -> list[Row]:
        """Each combination tried at a budget: its values, ordinary, TST, variants; the best of an arm is marked."""
        of_arms = {tuning.arm: tuning for tuning in self.tunings if tuning.steps == steps}

        def cell(tuning: Tuning, trial: Trial) -> str:
            best = " (best)" if trial.settings == tuning.best else ""
            return "failed" if trial.val_loss is None else f"{trial.val_loss:.4f}{best}"

        by_settings = zip(*(of_arms[arm].trials for arm in self.compared), strict=True)
        return [
            (
                settings_spoken(trials[0].settings),
                *(cell(of_arms[arm], trial) for arm, trial in zip(self.compared, trials, strict=True)),
            )
            for trials in by_settings
        ]

    def verdict(self) -> str:
        """The result in words, whichever way it went: equal FLOPs first, then equal loss and equal data."""
        answers = self._on_flops(), self._on_loss(), self._on_data(), on_variants(self)
        return " ".join(filter(None, (*answers, *self.cautions())))

    def cautions(self) -> list[str]:
        """What keeps the result from meaning more."""
        notes = [
            f"The {tuning.arm} arm's best {label(name)}, {settings_spoken({name: tuning.best[name]})}, is at the edge "
            f"of those tried{at}, so a better one may lie beyond: try it as well."
            for tuning in self.tunings
            for at in (f" at {tuning.steps:,} steps" if len({one.steps for one in self.tunings}) > 1 else "",)
            for name in tuning.edges
        ]
        if own := beside_bags(self.recipe):
            notes.append(
                f"TST's stages have {own}, which ordinary training has not, so the difference is not of bags alone: a "
                f"variant of the same stages with a bag_size of 1 tells the two apart."
            )
        if self.failures:
            notes.append(f"{len(self.failures)} runs failed and are left out: {', '.join(self.failures)}.")
        return notes

    def _on_flops(self) -> str:
        loss = self.equal_flops()
        assert loss is not None
        side, word = ("lower", "won") if loss.value < 0 else ("higher", "lost")
        amount = f"{abs(loss.value):.4f} nats per token {side} than ordinary training"
        if loss.low is None:
            return (
                f"TST {word} at seed {self.seeds[0]}: its validation loss ended {amount}, at equal FLOPs. "
                f"One seed is an anecdote: seeds differ, because the step at which a small model learns to copy "
                f"does. Run --seeds 1,2,3,4,5 for an interval."
            )
        pairs = zip(self.values(ORDINARY, "val_loss"), self.values(TST, "val_loss"), strict=True)
        lower = sum(tst < ordinary for ordinary, tst in pairs)
        interval = f"95 % interval {ends(loss)}; it was lower at {lower} of {loss.seeds} seeds"
        if loss.excludes_zero:
            return f"TST {word}: its validation loss ended {amount}, at equal FLOPs ({interval})."
        assert loss.deviation is not None
        enough = seeds_needed(loss.deviation, abs(loss.value))
        count = f"about {enough} seeds" if enough is not None and enough <= 100 else "more than 100 seeds"
        return (
            f"Undecided: TST's validation loss ended {amount} on average, at equal FLOPs, but the interval "
            f"includes 0 ({interval}). Give more seeds or more steps: a difference of this size takes {count}."
        )

    def _on_loss(self) -> str:
        loss = self.equal_loss()
        if loss is None:
            return ""
        if loss.ratio is None:
            return f"At equal loss there is no answer: {loss.advice}."
        interval = f" (95 % interval {loss.ends()})" if len(self.seeds) > 1 else ""
        return f"At equal loss, ordinary training takes {loss.ratio:.2f} times TST's steps{interval}."

    def _on_data(self) -> str:
        data = self.equal_data()
        if data is None:
            return ""
        side = "lower" if data.value < 0 else "higher"
        interval = "" if data.low is None else f" (95 % interval {ends(data)})"
        times = steps_of_equal_data(self.recipe) / self.steps
        return (
            f"At equal data, where ordinary training computes {times:.2f} times as much, TST is "
            f"{abs(data.value):.4f} nats {side}{interval}."
        )

    def tables(self) -> list[Table]:
        """All tables that have something to say."""
        tables: list[Table] = [("The main budget", ("", "ordinary", self.tst_label, "difference"), self.rows())]
        if len(self.seeds) > 1:
            tables.append(("Seeds", ("seed", "ordinary", "TST", "difference"), self.seed_rows()))
        if len(self.budgets(ORDINARY)) > 1:
            answers = ("equal FLOPs, nats", "equal loss, steps", "equal data, nats")
            tables.append(("Budgets", ("steps", "seeds", "ordinary", "TST", *answers), self.budget_rows()))
        for steps in sorted({tuning.steps for tuning in self.tunings}):
            names = [*self.tunings[0].best]
            what = "Learning rates" if names == [LR] else "Settings"
            header = (", ".join(map(label, names)), "ordinary", "TST", *self.variants)
            tables.append(
                (f"{what}, tuned at {steps:,} steps with a seed of their own", header, self.tuning_rows(steps))
            )
        tables += variant_tables(self)
        if (control := self.equal_flops(arm=CONTEXT)) is not None:
            title = "Context-matched control: TST that sees no more context than an ordinary row"
            tables.append((title, ("seeds", "control minus ordinary, nats"), [(str(control.seeds), spoken(control))]))
        return tables

    def write(self, directory: Path) -> None:
        """Writes comparison.json and summary.md."""
        answers: dict[str, dict[str, Any]] = {"equal_flops": {}, "equal_loss": {}, "equal_data": {}}
        for (name, found), steps in itertools.product(answers.items(), self.budgets(TST)):
            if (value := getattr(self, name)(steps)) is not None:
                found[str(steps)] = value.record() if isinstance(value, Difference) else asdict(value)
        answers["variants"] = variant_answers(self)
        written = {
            "format": _FORMAT,
            "verdict": self.verdict(),
            "answers": answers,
            **asdict(self),
            "tunings": [{**asdict(tuning), "best": tuning.best} for tuning in self.tunings],
            "recipe": self.recipe.model_dump(mode="json"),
            "variants": {
                name: {str(budget): recipe.model_dump(mode="json") for budget, recipe in recipes.items()}
                for name, recipes in self.variants.items()
            },
            "runs": [{**asdict(run), "directory": os.path.relpath(run.directory, directory)} for run in self.runs],
        }
        write_json(directory / "comparison.json", written)
        write_text(directory / "summary.md", markdown(self.tables(), self.verdict()))

    def write_summary(self, directory: Path, state: str) -> None:
        """Writes summary.md of what has finished so far; `state` is its first line."""
        write_text(directory / "summary.md", f"{state}\n\n{markdown(self.tables(), self.verdict())}")
