"""A search for the best bag size, ratio and learning rate.

from superpose.tune import plan_search, tune

tuned = tune(plan_search(load_recipe("recipe.toml"), budget=20), name="mine")
print(tuned.verdict(), tuned.recipe.superposition)
"""

from typing import TYPE_CHECKING

from superpose.lazy import names

if TYPE_CHECKING:
    from superpose.tune.halving import Tuned, tune
    from superpose.tune.search import Search, candidates, plan_search

__all__ = ["Search", "Tuned", "candidates", "plan_search", "tune"]

_PLACES = {"Tuned": "halving", "tune": "halving", "Search": "search", "candidates": "search", "plan_search": "search"}
__getattr__ = names(__name__, _PLACES)
