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

from pydantic import FiniteFloat

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
        rates: learning rates to try for each arm; none, and both take the recipe's.
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
    rates: tuple[float, ...] = ()
    context_control: bool = False
    variants: Mapping[str, Changes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, numbers in {"--seeds": self.seeds, "--lrs": self.rates}.items():
            if len(set(numbers)) < len(numbers):
                raise UserError(f"{option} {','.join(map(str, numbers))}: one stands there twice; give different ones")
        for option, budgets in (("--budgets", self.budgets), ("--ordinary-budgets", self.ordinary_budgets)):
            if min(budgets, default=1) < 1:
                raise UserError(f"{option} {min(budgets)}: expected numbers of steps, 1 or more")
        if min(self.rates, default=1.0) <= 0:
            raise UserError(f"--lrs {min(self.rates)}: expected learning rates above 0")
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
        check_variants(self.recipe, self.variants, arms, own_rate=not self.rates)

    @property
    def tuned_arms(self) -> tuple[str, ...]:
        """Arms that take a learning rate of their own, where some are tried."""
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

    def recipe_of(self, arm: str, budget: int, seed: int, lr: float | None = None) -> Recipe:
        """What an arm trains; without a learning rate at the recipe's, or its own."""
        settings: dict[str, Any] = {"seed": seed} if lr is None else {"seed": seed, "lr": lr}
        if arm in self.variants:
            return with_settings(self.variant_recipes[arm][budget], "train", **settings)
        recipe = with_settings(self.recipe, "train", steps=budget, **settings)
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
    """Each arm at each learning rate: the same effort for all. Their names say the rate."""
    arms, budget, seed = design.tuned_arms, design.recipe.train.steps, design.tuning_seed
    return [Run(arm, design.recipe_of(arm, budget, seed, rate), f"lr{rate!r}") for rate in design.rates for arm in arms]


@dataclass(frozen=True)
class Tuning:
    """What an arm's sweep over learning rates found.

    Attributes:
        losses: final validation loss by learning rate; None where the run failed.
        best: the learning rate of the lowest.
        at_edge: whether the best is the lowest or highest tried, so that a better one may lie beyond.
    """

    arm: str
    losses: dict[FiniteFloat, FiniteFloat | None]
    best: FiniteFloat
    at_edge: bool


def best_rates(design: Design, outcomes: Sequence[Outcome]) -> dict[str, Tuning]:
    """The best learning rate of each arm; empty where there was nothing to choose.

    Raises:
        UserError: all runs of an arm failed.
    """
    tunings = {}
    for arm in design.tuned_arms if design.rates else ():
        of_arm = [outcome for outcome in outcomes if outcome.run.arm == arm]
        losses = {o.run.recipe.train.lr: o.result["val_loss"] if o.result else None for o in of_arm}
        known = {rate: loss for rate, loss in losses.items() if loss is not None}
        if not known:
            raise UserError(f"all learning rates failed in the {arm} arm; give lower ones with --lrs")
        best = min(known, key=lambda rate: known[rate])
        tunings[arm] = Tuning(arm, losses, best, best in (min(losses), max(losses)))
    return tunings


def plan_runs(design: Design, tunings: dict[str, Tuning]) -> list[Run]:
    """All runs of the comparison; arms of one seed stand together, so that they share the machine's weather."""
    cells = [(ORDINARY, steps) for steps in design.all_ordinary_budgets]
    cells += [(arm, steps) for arm in (TST, *design.variants) for steps in design.tst_budgets]
    cells += [(CONTEXT, design.recipe.train.steps)] if design.context_control else []
    runs = []
    for seed, (arm, budget) in itertools.product(design.seeds, cells):
        tuning = tunings.get(TST if arm == CONTEXT else arm)
        runs.append(Run(arm, design.recipe_of(arm, budget, seed, tuning.best if tuning else None)))
    return runs
