"""The sizes at which the paper's experiments can be run again.

| scale | model | a run | where |
|---|---|---|---|
| tiny | 0.09 million parameters, vocabulary 1,024 | 2,000 steps of 8 x 64 latents, 25 s on a core | a laptop, minutes |
| small | the same, the recipe cpu-small | 8,000 steps, 100 s | a laptop, an hour |
| paper | the recipe that is given, such as paper-270m | 20,000 steps | GPUs |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from superpose.errors import UserError
from superpose.train.config import Recipe, load_recipe

Scale = Literal["tiny", "small", "paper"]

_STEPS = {"tiny": 2000, "small": 8000}
_SETTINGS = (
    "data.max_megabytes=48",
    "data.val_megabytes=0.3",
    "superposition.ratio=0.1",
    "model.config.hidden_size=32",
    "model.config.intermediate_size=96",
    "train.batch_size=8",
    "train.latents=64",
    "train.lr=4e-3",
    "train.log_every=50",
    "train.checkpoint_every=1000000",
    "train.keep_checkpoints=1",
    "train.track=[]",
)


def scale_recipe(scale: Scale, recipe: Path | None = None, changes: Sequence[str] = ()) -> Recipe:
    """The TST recipe of a scale, before an experiment changes it.

    Args:
        scale: "paper" takes its settings from `recipe`.
        recipe: settings instead of the scale's own.
        changes: further settings, as `section.name=value`.

    Raises:
        UserError: the scale needs a recipe, or one of the settings is wrong.
    """
    if recipe is not None:
        return load_recipe(recipe, [*changes])
    if scale == "paper":
        raise UserError("--scale paper trains the recipe that is given; add --recipe, such as paper-270m")
    steps = _STEPS[scale]
    budget = [f"train.steps={steps}", f"train.eval_every={steps // 8}"]
    return load_recipe(None, [*_SETTINGS, *budget, *changes])
