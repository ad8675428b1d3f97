"""A search for the best bag size, ratio and learning rate.

from superpose.tune import plan_search, tune

tuned = tune(plan_search(load_recipe("recipe.toml"), budget=20), name="mine")
print(tuned.verdict(), tuned.recipe.superposition)
"""

from typing import TYPE_CHECKING

from superpose import lazy

if TYPE_CHECKING:
    from superpose.tune.halving import Tuned
    from superpose.tune.search import Search, candidates, plan_search
    from superpose.tune.workflow import tune

__all__ = ["Search", "Tuned", "candidates", "plan_search", "tune"]

_SEARCH = dict.fromkeys(("Search", "candidates", "plan_search"), "search")
__getattr__ = lazy.names(__name__, {"Tuned": "halving", "tune": "workflow", **_SEARCH})
