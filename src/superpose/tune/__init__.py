"""The best bag size, ratio and learning rate: `superpose tune`, and from Python `tune(plan_search(recipe))`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpose.tune.halving import Tuned
    from superpose.tune.search import Search, plan_search
    from superpose.tune.workflow import tune

__all__ = ["Search", "Tuned", "plan_search", "tune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = {"Tuned": "halving", "tune": "workflow"}.get(name, "search")
    return getattr(import_module(f"{__name__}.{place}"), name)
