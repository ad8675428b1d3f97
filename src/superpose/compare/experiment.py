"""What a comparison trains: ordinary training and TST from one recipe, at the same seeds, on the same text.

Three questions (arXiv 2605.06546, figure 3) are answered by the same runs:

    equal FLOPs   both arms at a budget of steps: a step costs the same in both phases
    equal loss    the ordinary arm at several budgets, and where its curve passes TST's loss
    equal data    the ordinary arm at as many steps as read what TST reads

Named variants of the recipe may stand beside the two, see `superpose.compare.variants`; they are trained at TST's
budgets, in as many steps as take an ordinary run's FLOPs.

An ordinary run is the beginning of every longer one until its learning rate falls, so budgets cost little more than
the longest of them (see `superpose.runs.pool`).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from superpose.compare.tuned import (
    LR,
    SECTION,
    Trial,
    Tried,
    Tuning,
    check_tried,
    combinations,
    tuned_for,
    with_section,
)
from superpose.compare.variants import Changes, changed_recipe, check_variants, steps_of_equal_flops
from superpose.errors import UserError
from superpose.runs.pool import Outcome, Run
from superpose.train.config import Recipe
from superpose.train.recipe_file import with_settings

ORDINARY, TST, CONTEXT = "ordinary", "tst", "tst-context"
"""Arms. The last sees as much context in superposition as an ordinary row: its rows are cut, not stretched."""


@dataclass(frozen=True)
class Design:
    """What to train.

    Args:
        recipe: of the TST arm at its main budget.
        seeds: both arms are trained once with each.
        budgets: further numbers of steps for both arms.
        ordinary_budgets: further numbers of steps for the ordinary arm alone.
        equal_data: whether to train the ordinary arm also for as many steps as read what TST or a variant reads at each
            budget.
        tune: settings to tune together, by name, with the values to try, such as {"train.lr": (1e-3, 2e-3)}. Each arm
            is trained with every combination of them, and takes its best.
        tuned_at: budgets at which they are tuned; by default the main one. Others take what was best at the nearest.
        context_control: whether to train the arm that sees no more context than an ordinary one.
        variants: further arms by name: settings of the recipe that are changed, as `--set` writes them or by section.

    Raises:
        UserError: the recipe's TST arm is an ordinary run, or ends in superposition, numbers are wrong, or a variant
            cannot be compared with the others.
    """

    recipe: Recipe
    seeds: tuple[int, ...] = (1,)
    budgets: tuple[int, ...] = ()
    ordinary_budgets: tuple[int, ...] = ()
    equal_data: bool = False
    tune: Tried = field(default_factory=dict)
    tuned_at: tuple[int, ...] = ()
    context_control: bool = False
    variants: Mapping[str, Changes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds {','.join(map(str, self.seeds))}: one stands there twice; give different ones")
        for option, budgets in (("--budgets", self.budgets), ("--ordinary-budgets", self.ordinary_budgets)):
            if min(budgets, default=1) < 1:
                raise UserError(f"{option} {min(budgets)}: expected numbers of steps, 1 or more")
        check_tried(self.recipe, self.tune)
        if unknown := sorted({*self.tuned_at} - {*self.tst_budgets}):
            raise UserError(f"--tune-at {unknown[0]}: no budget of both arms; give some of --steps and --budgets")
        if self.tuned_at and not self.tune:
            raise UserError("--tune-at says where settings are tuned; name them with --tune, or leave it out")
        if not self.recipe.schedule.boundaries:
            raise UserError(
                "this recipe has only one phase, so there is nothing to compare; "
                "give superposition.bag_size above 1 and superposition.ratio between 0 and 1"
            )
        if self.recipe.schedule.ends_in_superposition:
            raise UserError(
                "this recipe ends in superposition, so its model could not be compared with an ordinary one; "
                "give ratios that add up to less than 1"
            )
        arms = {ORDINARY: self.recipe.ordinary(), TST: self.recipe, CONTEXT: None}
        check_variants(self.recipe, self.variants, arms, self.tune)

    @property
    def tuned_arms(self) -> tuple[str, ...]:
        """Arms that are tuned each for itself, where anything is."""
        return ORDINARY, TST, *self.variants

    @cached_property
    def variant_recipes(self) -> dict[str, dict[int, Recipe]]:
        """Of each variant by budget, with its own number of steps: see `steps_of_equal_flops`."""
        found: dict[str, dict[int, Recipe]] = {}
        for (name, changes), budget in itertools.product(self.variants.items(), self.tst_budgets):
            recipe = with_settings(self.recipe, "train", steps=budget)
            variant = changed_recipe(recipe, name, changes)
            steps = steps_of_equal_flops(variant, recipe.ordinary())
            found.setdefault(name, {})[budget] = with_settings(variant, "train", steps=steps)
        return found

    def recipe_of(self, arm: str, budget: int, seed: int, tuned: Mapping[str, Any] | None = None) -> Recipe:
        """What an arm trains, with settings of its own where it was tuned."""
        settings = {"train.seed": seed, **(tuned or {})}
        if arm in self.variants:
            return with_section(self.variant_recipes[arm][budget], settings)
        recipe = with_section(self.recipe, {"train.steps": budget, **settings})
        if arm == ORDINARY:
            return recipe.ordinary()
        if arm == CONTEXT:
            return with_settings(recipe, "superposition", expand="batch")
        return recipe

    @property
    def tst_budgets(self) -> tuple[int, ...]:
        """Steps of the TST arm, ascending."""
        return tuple(sorted({self.recipe.train.steps, *self.budgets}))

    @property
    def all_ordinary_budgets(self) -> tuple[int, ...]:
        """Steps of the ordinary arm, ascending."""
        recipes = [with_settings(self.recipe, "train", steps=steps) for steps in self.tst_budgets]
        recipes += [recipe for of_variant in self.variant_recipes.values() for recipe in of_variant.values()]
        equal_data = [steps_of_equal_data(recipe, self.recipe) for recipe in recipes] if self.equal_data else []
        return tuple(sorted({*self.tst_budgets, *self.ordinary_budgets, *equal_data}))

    @property
    def tuning_budgets(self) -> tuple[int, ...]:
        """Budgets at which settings are tuned."""
        return self.tuned_at or (self.recipe.train.steps,)

    @property
    def tuning_seed(self) -> int:
        """A seed that takes no part in the comparison, so that luck in tuning does not count twice."""
        return next(seed for seed in range(len(self.seeds) + 1) if seed not in self.seeds)


def steps_of_equal_data(recipe: Recipe, ordinary: Recipe | None = None) -> int:
    """Steps in which an ordinary run reads as many raw tokens as a recipe's run does.

    Args:
        ordinary: whose steps are counted, if its batch is another.
    """
    per_step = (ordinary or recipe).latents_per_step
    return round(recipe.schedule.raw_tokens(recipe.latents_per_step) / per_step)


def plan_tuning(design: Design) -> list[Run]:
    """Each arm with each combination that is tried: the same effort for all. Their names say what is tried."""
    seed, budgets = design.tuning_seed, design.tuning_budgets
    return [
        Run(arm, design.recipe_of(arm, budget, seed, settings), _mark(settings))
        for budget, settings in itertools.product(budgets, combinations(design.tune))
        for arm in design.tuned_arms
    ]


def _mark(settings: Mapping[str, Any]) -> str:
    return "-".join(f"{name.removeprefix(SECTION)}{value!r}" for name, value in settings.items())


def found_tunings(design: Design, outcomes: Sequence[Outcome]) -> tuple[Tuning, ...]:
    """What came of the runs of `plan_tuning`, of each budget and arm; empty where nothing is tuned.

    Raises:
        UserError: all runs of an arm failed.
    """
    tunings = []
    for budget, arm in itertools.product(design.tuning_budgets if design.tune else (), design.tuned_arms):
        steps = design.recipe_of(arm, budget, design.tuning_seed).train.steps
        of_arm = [outcome for outcome in outcomes if (outcome.run.arm, outcome.run.steps) == (arm, steps)]
        trials = [
            Trial(
                {name: getattr(outcome.run.recipe.train, name.removeprefix(SECTION)) for name in design.tune},
                outcome.result["val_loss"] if outcome.result else None,
            )
            for outcome in of_arm
        ]
        if all(trial.val_loss is None for trial in trials):
            tried = "learning rates" if [*design.tune] == [LR] else "combinations"
            raise UserError(f"all {tried} failed in the {arm} arm; give lower learning rates with --lrs or --tune")
        tunings.append(Tuning(arm, budget, tuple(trials)))
    return tuple(tunings)


def plan_runs(design: Design, tunings: Sequence[Tuning] = ()) -> list[Run]:
    """All runs of the comparison; arms of one seed stand together, so that they share the machine's weather."""
    cells = [(ORDINARY, steps) for steps in design.all_ordinary_budgets]
    cells += [(arm, steps) for arm in (TST, *design.variants) for steps in design.tst_budgets]
    cells += [(CONTEXT, design.recipe.train.steps)] if design.context_control else []
    runs = []
    for seed, (arm, budget) in itertools.product(design.seeds, cells):
        tuned = tuned_for(tunings, TST if arm == CONTEXT else arm, budget)
        runs.append(Run(arm, design.recipe_of(arm, budget, seed, tuned)))
    return runs
