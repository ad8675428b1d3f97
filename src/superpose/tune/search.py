"""What `superpose tune` tries, for how long, and what that costs: all of it is known before the first step.

    bag sizes x ratios x learning rates -> drawn: trials -> rungs: short runs of many, full runs of few -> full runs

A rung of successive halving (Jamieson and Talwalkar, arXiv 1502.07943) usually ranks the beginnings of long runs. For
TST that would rank nothing: the boundary is a share of the *final* steps, so at a tenth of a run all candidates are
still in superposition, where their losses are of bags and cannot be compared. So here each rung is made of complete
runs of fewer steps. docs/tuning.md says what that costs, and how short runs mislead.

Why no library such as Optuna: its pruners wait for reports of one growing run, which a rung is not, and its storage
would be a second memory beside the pool of runs, which already goes on with those that were stopped, to the bit. What
is left to do is to sort, and to keep the first few.
"""

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from superpose.compare.experiment import CONTEXT, ORDINARY, TST
from superpose.compare.variants import Changes, changed_recipe, check_variants, steps_of_equal_flops
from superpose.data.config import vocabulary_size
from superpose.errors import UserError
from superpose.plan.evidence import RULE, Setting
from superpose.plan.model import parameters_of
from superpose.plan.prediction import few_steps, level_settings, missing_evidence
from superpose.runs.pool import Run
from superpose.train.config import Recipe
from superpose.train.recipe_file import with_settings

BAG_SIZES, RATIOS = (2, 4, 6, 8, 12, 16), (0.1, 0.2, 0.3, 0.4)
"""Tried where nothing else is said."""
STAGES = "stages"
"""What a recipe of described stages is as it stands, among its variants: they stay, its learning rate is searched."""


@dataclass(frozen=True, order=True)
class Trial:
    """One candidate: a bag size and a ratio at a peak learning rate; ordinary training has bag size 1 and ratio 0.

    Attributes:
        variant: name of the variant it is; "" for none. Its bag size is then the largest of its stages, and its ratio
            the share of all of them.
    """

    bag_size: int
    ratio: float
    lr: float
    variant: str = ""

    @property
    def ordinary(self) -> bool:
        return self.bag_size == 1 and not self.variant

    def __str__(self) -> str:
        bags = ORDINARY if self.ordinary else self.variant or f"s {self.bag_size}, r {self.ratio:g}"
        return f"{bags}, learning rate {self.lr:g}"

    @property
    def arm(self) -> str:
        """What its runs are named by."""
        bags = f"variant-{self.variant}" if self.variant else f"s{self.bag_size}-r{self.ratio!r}"
        return f"{ORDINARY if self.ordinary else bags}-lr{self.lr!r}"

    def applied(self, recipe: Recipe, variants: Mapping[str, Changes] | None = None) -> Recipe:
        """A recipe with this candidate's settings.

        Args:
            variants: of which it may be one.

        Raises:
            UserError: they do not fit the rest of it.
        """
        if self.variant:
            changes = {STAGES: (), **(variants or {})}[self.variant]
            return with_settings(changed_recipe(recipe, self.variant, changes), "train", lr=self.lr)
        recipe = with_settings(recipe, "train", lr=self.lr)
        if self.ordinary:
            return recipe.ordinary()
        return with_settings(recipe, "superposition", bag_size=self.bag_size, ratio=self.ratio)


@dataclass(frozen=True)
class Rung:
    """Complete runs of `steps` steps: of `trials` candidates of TST, and of ordinary training at each learning rate."""

    steps: int
    trials: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Search:
    """A search, planned.

    Args:
        recipe: what is not searched, and the full number of steps.
        trials: candidates of TST on the first rung.
        rates: learning rates of ordinary training.
        rungs: by steps, ascending; the last is of full runs, and alone may have several seeds.
        variants: of the recipe, by the names that trials have.

    Raises:
        UserError: a variant cannot be compared with the rest, or a candidate's phases, warmup and decay do not fit into
            the steps of the shortest rung.
    """

    recipe: Recipe
    trials: tuple[Trial, ...]
    rates: tuple[float, ...]
    rungs: tuple[Rung, ...]
    variants: Mapping[str, Changes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arms = {ORDINARY: self.recipe.ordinary(), TST: None, CONTEXT: None}
        arms |= {STAGES: self.recipe} if self.recipe.superposition.stages else {}
        check_variants(self.recipe, self.variants, arms, ("train.lr",))
        first = self.rungs[0]
        try:
            self.runs(self.trials, self.rungs[-1])
            self.runs((*self.trials, *self.ordinary), first)
        except UserError as error:
            hint = f"; runs of {first.steps:,} steps are the shortest, --min-steps makes them longer"
            raise UserError(f"{error}{hint if len(self.rungs) > 1 else ''}") from None

    @property
    def steps(self) -> int:
        """Of a full run."""
        return self.recipe.train.steps

    @property
    def ordinary(self) -> tuple[Trial, ...]:
        return tuple(Trial(1, 0.0, rate) for rate in self.rates)

    def runs(self, trials: Sequence[Trial], rung: Rung) -> list[Run]:
        """Complete runs of some trials on a rung, seed by seed of each; a variant's take the rung's FLOPs."""
        runs = []
        for trial in trials:
            base = with_settings(self.recipe, "train", steps=rung.steps)
            recipe = trial.applied(base, self.variants)
            if trial.variant:
                recipe = with_settings(recipe, "train", steps=steps_of_equal_flops(recipe, base.ordinary()))
            runs += [Run(trial.arm, with_settings(recipe, "train", seed=seed)) for seed in rung.seeds]
        return runs

    @property
    def ordinary_runs(self) -> list[Run]:
        """Of all rungs. No result decides on them, so they are trained together, and long ones branch from short."""
        return [run for rung in self.rungs for run in self.runs(self.ordinary, rung)]

    def expected_after(self, runs: Sequence[Run]) -> list[Run]:
        """Runs of TST that are to come after these: as many as each rung keeps, whichever these will be."""
        reached = max((run.steps for run in runs if run.recipe.schedule.boundaries), default=0)
        later = [rung for rung in self.rungs if rung.steps > reached]
        return [run for rung in later for run in self.runs(self.trials[: rung.trials], rung)]

    @property
    def count(self) -> int:
        """Runs of the whole search."""
        return sum((rung.trials + len(self.rates)) * len(rung.seeds) for rung in self.rungs)

    @cached_property
    def computed_steps(self) -> int:
        """Training steps of the whole search; ordinary runs are counted without the steps they share."""
        # A longer run of a seed begins where the learning rate of the next shorter one begins to fall.
        trunks = [with_settings(self.recipe.ordinary(), "train", steps=rung.steps) for rung in self.rungs[:-1]]
        ordinary = sum(rung.steps * len(rung.seeds) for rung in self.rungs) - sum(run.stable_steps for run in trunks)
        return _tst_steps(self.rungs) + len(self.rates) * ordinary

    @property
    def cost(self) -> float:
        """Training steps of the whole search, in full runs."""
        return self.computed_steps / self.steps

    def spoken(self) -> list[str]:
        """What will be trained and what it costs, in sentences."""
        lines = [
            f"{rung.steps:,} steps: {rung.trials} of TST, {len(self.rates)} of ordinary training" for rung in self.rungs
        ]
        if len(seeds := self.rungs[-1].seeds) > 1:
            lines[-1] += f", each with {len(seeds)} seeds"
        total = f"together {self.count} runs of {self.computed_steps:,} steps"
        return [*lines, f"{total}, which is {self.cost:.2f} times one full run"]


def rung_steps(steps: int, min_steps: int, eta: int) -> tuple[int, ...]:
    """Steps of the rungs, ascending: the full number, and its eta-th parts as long as they are `min_steps` or more."""
    parts = itertools.takewhile(lambda part: part >= max(1, min_steps), (steps // eta**k for k in itertools.count()))
    return tuple(sorted(parts))


def rungs_of(trials: int, steps: Sequence[int], eta: int, seeds: Sequence[int]) -> tuple[Rung, ...]:
    """Rungs that begin with so many trials and keep the share 1/eta of them, rounded up; all seeds on the last."""
    rungs = []
    for place, of_rung in enumerate(steps, 1):
        rungs.append(Rung(of_rung, trials, tuple(seeds if place == len(steps) else seeds[:1])))
        trials = -(-trials // eta)
    return tuple(rungs)


def candidates(
    recipe: Recipe,
    bag_sizes: Sequence[int] | None = None,
    ratios: Sequence[float] | None = None,
    rates: Sequence[float] | None = None,
    variants: Mapping[str, Changes] | None = None,
) -> tuple[Trial, ...]:
    """Each bag size and ratio, and each variant, at each learning rate, in an order that does not depend on theirs.

    Of a recipe whose stages are described, the stages as they stand take the place of bag sizes and ratios.

    Args:
        bag_sizes, ratios: by default those of `likely_settings`; if one of them is given, all usual ones of the other.
        rates: peak learning rates; by default half, one and two times the recipe's.
        variants: of the recipe, with its own bag size and ratio, or stages, where they bring none.

    Raises:
        UserError: a number is out of range, or bag sizes or ratios are given beside described stages.
    """
    described, variants = bool(recipe.superposition.stages), dict(variants or {})
    if described:
        for option, values in {"--bag-sizes": bag_sizes, "--ratios": ratios}.items():
            if values is not None:
                raise UserError(
                    f"{option} would take the place of superposition.stages, which this search keeps as they are; "
                    f"leave it out, or give other stages by --variant"
                )
        pairs: tuple[tuple[int, float], ...] = ()
        variants[STAGES] = ()
    elif bag_sizes is None and ratios is None:
        pairs = likely_settings(recipe, vocabulary_size(recipe.data))
    else:
        sizes, shares = BAG_SIZES if bag_sizes is None else bag_sizes, RATIOS if ratios is None else ratios
        pairs = tuple(itertools.product(sizes, shares))
    rates = [recipe.train.lr * times for times in (0.5, 1, 2)] if rates is None else rates
    for bag_size, ratio in pairs:
        if bag_size < 2:
            raise UserError(f"--bag-sizes {bag_size}: expected 2 or more; ordinary training is tried in any case")
        if not 0 < ratio < 1:
            raise UserError(f"--ratios {ratio:g}: expected shares between 0 and 1, without either")
    if min(rates, default=1.0) <= 0:
        raise UserError(f"--lrs {min(rates):g}: expected learning rates above 0")
    found = {Trial(s, r, rate) for s, r in pairs for rate in rates}
    for name, changes in variants.items():
        schedule = changed_recipe(recipe, name, changes).schedule
        stages = [stage for stage in schedule.stages if stage.superposes]
        share = sum(stage.steps for stage in stages) / schedule.total_steps
        largest = max((stage.largest for stage in stages), default=1)
        found |= {Trial(largest, share, rate, name) for rate in rates}
    return tuple(sorted(found))


def likely_settings(recipe: Recipe, vocabulary: int) -> tuple[tuple[int, float], ...]:
    """Bag sizes and ratios that the paper's sweeps cannot tell from the best at this model and budget.

    Where there is no evidence, and for kinds of superposition it knows nothing of, these are all of `BAG_SIZES` and
    `RATIOS`.

    Args:
        vocabulary: entries.
    """
    kind, steps = recipe.superposition, recipe.train.steps
    params, latents = float(parameters_of(recipe, vocabulary)), float(steps * recipe.latents_per_step)
    known = kind.mode == "full" and kind.variant == "mce" and kind.weighting in ("uniform", "power")
    few = few_steps(steps, Setting(BAG_SIZES[0], RATIOS[0]))
    if not known or few or missing_evidence(params, latents, steps, RULE):
        return tuple(itertools.product(BAG_SIZES, RATIOS))
    return tuple(sorted((s.bag_size, s.ratio) for s in level_settings(params, latents, BAG_SIZES, RATIOS)))


def draw(trials: Sequence[Trial], count: int, seed: int) -> tuple[Trial, ...]:
    """Some of the trials by chance, but such that each bag size, ratio, variant and learning rate comes up as often.

    A longer draw begins with the shorter ones, so that a search with more trials finds the runs of one with fewer.
    """
    left, used = sorted(trials), Counter[tuple[object, ...]]()
    drawn: list[Trial] = []
    random.Random(seed).shuffle(left)

    def parts(trial: Trial) -> list[tuple[object, ...]]:
        s, r = (trial.variant or trial.bag_size, trial.variant or trial.ratio)
        return [("s", s), ("r", r), ("lr", trial.lr), ("s, r", s, r)]

    while left and len(drawn) < count:
        drawn.append(min(left, key=lambda trial: sum(used[part] for part in parts(trial))))
        left.remove(drawn[-1])
        used.update(parts(drawn[-1]))
    return tuple(drawn)


def plan_search(
    recipe: Recipe,
    trials: Sequence[Trial] | None = None,
    *,
    eta: int = 2,
    min_steps: int | None = None,
    seeds: Sequence[int] = (0,),
    count: int | None = None,
    budget: float | None = None,
    draw_seed: int = 0,
    variants: Mapping[str, Changes] | None = None,
) -> Search:
    """A search within a budget.

    Args:
        recipe: what is not searched, and the full number of steps.
        trials: what the trials are drawn of, by default all `candidates`; ordinary training has their learning rates.
        eta: 1/eta of the trials are kept at each rung, and given eta times the steps.
        min_steps: of the shortest rung; by default a quarter of the full steps.
        seeds: of full runs, whose mean decides; shorter rungs are trained with the first of them.
        count: how many trials are drawn of the candidates; all if neither it nor `budget` is given.
        budget: training steps in full runs; as many trials are drawn as it has room for.
        draw_seed: of the draw.
        variants: of the recipe, by the names that trials have.

    Raises:
        UserError: a number is out of range, or the budget has no room for a single trial.
    """
    trials, steps = candidates(recipe, variants=variants) if trials is None else trials, recipe.train.steps
    rates = tuple(sorted({trial.lr for trial in trials}))
    min_steps = -(-steps // 4) if min_steps is None else min_steps
    if eta < 2:
        raise UserError(f"--eta {eta}: expected 2 or more, as 1/eta of the trials are kept")
    if not 1 <= min_steps <= steps:
        raise UserError(f"--min-steps {min_steps}: expected 1 to {steps}, the steps of a full run")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {','.join(map(str, seeds))}: expected different whole numbers, 0 or more")
    if not trials:
        raise UserError("there is nothing to try; give bag sizes, ratios and learning rates")
    if count is not None and budget is not None:
        raise UserError("--budget says how many trials there are; leave out --trials")
    if count is not None and count < 1:
        raise UserError(f"--trials {count}: expected 1 or more")
    by_steps = rung_steps(steps, min_steps, eta)

    def search(count: int) -> Search:
        rungs = rungs_of(count, by_steps, eta, seeds)
        return Search(recipe, draw(trials, count, draw_seed), rates, rungs, variants or {})

    if budget is None:
        return search(min(count or len(trials), len(trials)))
    if (least := search(1)).cost > budget:
        raise UserError(
            f"--budget {budget:g}: one trial of TST beside ordinary training at {len(rates)} learning rates takes "
            f"{least.cost:.2f} full runs; raise it, or give fewer --lrs or --seeds"
        )
    room = budget * steps - least.computed_steps + _tst_steps(least.rungs)
    return search(max(n for n in range(1, len(trials) + 1) if _tst_steps(rungs_of(n, by_steps, eta, seeds)) <= room))


def _tst_steps(rungs: Sequence[Rung]) -> int:
    """Training steps of all candidates of TST."""
    return sum(rung.trials * rung.steps * len(rung.seeds) for rung in rungs)
