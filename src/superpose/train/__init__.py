"""Training from Python, as `superpose train` does it.

    from superpose.train import load_recipe, prepare, train

    recipe = load_recipe(Path("recipe.toml"), ["train.steps=500"])
    result = train(recipe, prepare(recipe.data), Path("runs/one"))

The names are imported on first use, so that the command line answers before PyTorch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpose.data.config import prepare
    from superpose.train.config import Recipe, load_recipe
    from superpose.train.loop import train
    from superpose.train.stopping import StoppedError

__all__ = ["Recipe", "StoppedError", "load_recipe", "prepare", "train"]

_PLACES = {"StoppedError": "train.stopping", "prepare": "data.config", "train": "train.loop"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'superpose.train' has no attribute {name!r}")
    return getattr(import_module(f"superpose.{_PLACES.get(name, 'train.config')}"), name)
