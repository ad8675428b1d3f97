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
    from superpose.train.records import read_metrics, read_result
    from superpose.train.stopping import StoppedError

_MODULES = {
    "Recipe": "train.config",
    "StoppedError": "train.stopping",
    "load_recipe": "train.config",
    "prepare": "data.config",
    "read_metrics": "train.records",
    "read_result": "train.records",
    "train": "train.loop",
}

__all__ = ["Recipe", "StoppedError", "load_recipe", "prepare", "read_metrics", "read_result", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'superpose.train' has no attribute {name!r}")
    return getattr(import_module(f"superpose.{_MODULES[name]}"), name)
