"""Training from Python, as `superpose train` does it.

    from superpose.train import load_recipe, prepare, train

    recipe = load_recipe(Path("recipe.toml"), ["train.steps=500"])
    result = train(recipe, prepare(recipe.data), Path("runs/one"))

The names are imported on first use, so that the command line answers before PyTorch is loaded.
"""

from typing import TYPE_CHECKING

from superpose.lazy import names

if TYPE_CHECKING:
    from superpose.data.config import prepare
    from superpose.train.config import Recipe
    from superpose.train.loop import train
    from superpose.train.recipe_file import load_recipe
    from superpose.train.running import StoppedError

__all__ = ["Recipe", "StoppedError", "load_recipe", "prepare", "train"]

_HOMES = {"Recipe": "config", "load_recipe": "recipe_file", "prepare": ".data.config"}

__getattr__ = names(__name__, {**_HOMES, "StoppedError": "running", "train": "loop"})
