"""Settings that a comparison tunes for each arm by itself: what is tried, and what came of it.

All arms get the same effort: as many runs, of the same combinations, with a seed that takes no part in the comparison.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import FiniteFloat

from superpose.compare.variants import FIXED, settings_of
from superpose.errors import UserError
from superpose.train.config import OF_THE_MACHINE, Recipe
from superpose.train.recipe_file import parsed, with_settings

SECTION = "train."
"""Both arms have this section's settings, so these can be tuned."""
LR = "train.lr"
_FIXED = {
    "train.seed": "runs that tune have a seed of their own",
    "train.steps": "budgets are compared, and --tune-at tunes at several",
    "train.latents": FIXED["train.latents"],
    "train.batch_size": "arms at different batches would spend different FLOPs, so make it a --variant",
}

Tried = Mapping[str, Sequence[Any]]
"""Values to try by the setting's name, such as {"train.lr": (1e-3, 2e-3)}."""


def parse_tried(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Reads `train.lr=1e-3,2e-3,train.decay_ratio=0.1,0.4`, in one text or several.

    Raises:
        UserError: a name or a value is missing, or a setting is named twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        values: list[Any] | None = None
        for part in settings_of(text):
            name, equals, first = part.partition("=")
            if equals:
                if name.strip() in found:
                    raise UserError(f"--tune names {name.strip()} twice; give all of its values together")
                values = found[name.strip()] = []
            elif values is None:
                raise UserError(f"--tune {text}: expected SETTING=VALUE,VALUE,..., such as train.lr=1e-3,2e-3")
            values.append(parsed(first if equals else part))
    return {name: tuple(values) for name, values in found.items()}


def combinations(tried: Tried) -> list[dict[str, Any]]:
    """Every combination of the values; of nothing none."""
    return [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())] if tried else []


def check_tried(recipe: Recipe, tried: Tried) -> None:
    """A UserError if a setting cannot be tuned, or a value stands twice or does not fit the recipe."""
    for name, values in tried.items():
        option = "--lrs" if name == LR else f"--tune {name}"
        if not name.startswith(SECTION):
            raise UserError(
                f"--tune {name}: both arms have the settings of train, and only these are tuned; leave it out"
            )
        if name in _FIXED:
            raise UserError(f"--tune {name}: {_FIXED[name]}; leave it out")
        if len(set(map(repr, values))) < len(values):
            raise UserError(f"{option} {','.join(map(str, values))}: one stands there twice; give different ones")
        if name == LR and any(isinstance(value, (int, float)) and value <= 0 for value in values):
            raise UserError(f"--lrs {min(values)}: expected learning rates above 0")
        if name in OF_THE_MACHINE:
            raise UserError(f"--tune {name}: it says how a run is computed and not what; give it by --set")
    for settings in combinations(tried):
        with_section(recipe, settings)


def with_section(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with tuned settings."""
    return with_settings(recipe, "train", **{name.removeprefix(SECTION): value for name, value in settings.items()})


@dataclass(frozen=True)
class Trial:
    """A combination that was tried, and the final validation loss, nats per token; None where the run failed."""

    settings: dict[str, bool | int | FiniteFloat | str | list[FiniteFloat]]
    val_loss: FiniteFloat | None


@dataclass(frozen=True)
class Tuning:
    """What an arm's runs at a budget found; one of its trials finished at least."""

    arm: str
    steps: int
    trials: tuple[Trial, ...]

    @property
    def best(self) -> dict[str, Any]:
        """The settings of the lowest loss."""
        _, best = min((trial.val_loss, place) for place, trial in enumerate(self.trials) if trial.val_loss is not None)
        return self.trials[best].settings

    @property
    def edges(self) -> list[str]:
        """Settings whose best value is the lowest or highest tried, so that a better one may lie beyond."""
        found = []
        for name, value in self.best.items():
            values = [trial.settings[name] for trial in self.trials]
            numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
            if len(numbers) == len(values) and value in (min(numbers), max(numbers)):
                found.append(name)
        return found


def same_effort(tunings: Sequence[Tuning], arms: Sequence[str]) -> bool:
    """Whether every arm tried the same combinations, at the same budgets, and a trial of each finished."""
    cells = [(tuning.steps, tuning.arm) for tuning in tunings]
    tried = [[trial.settings for trial in tuning.trials] for tuning in tunings]
    finished = all(any(trial.val_loss is not None for trial in tuning.trials) for tuning in tunings)
    budgets = {steps for steps, _ in cells}
    return finished and sorted(cells) == sorted(itertools.product(budgets, arms)) and all(t == tried[0] for t in tried)


def tuned_for(tunings: Sequence[Tuning], arm: str, budget: int) -> dict[str, Any]:
    """The best settings of an arm at the budget nearest to this, by ratio; nothing where it was not tuned."""
    of_arm = [tuning for tuning in tunings if tuning.arm == arm]
    return min(of_arm, key=lambda one: abs(math.log(one.steps / budget))).best if of_arm else {}


def label(name: str) -> str:
    """A setting's name in tables."""
    return "peak learning rate" if name == LR else name.removeprefix(SECTION).replace("_", " ")


def spoken(settings: Mapping[str, Any]) -> str:
    """Values of settings, such as "0.002, 0.4"."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in settings.values())


def tunings_of_rates(saved: Mapping[str, Mapping[str, Any]], steps: int) -> list[dict[str, Any]]:
    """What comparison.json held before settings were tuned together, {arm: {"losses": {rate: loss}}}, as it is now."""
    return [
        {
            "arm": arm,
            "steps": steps,
            "trials": [{"settings": {LR: float(rate)}, "val_loss": loss} for rate, loss in found["losses"].items()],
        }
        for arm, found in saved.items()
    ]
