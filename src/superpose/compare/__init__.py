"""Ordinary training beside TST: `superpose compare`, and from Python `compare(Design(recipe))`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpose.compare.comparison import Comparison
    from superpose.compare.experiment import Design
    from superpose.compare.workflow import compare

__all__ = ["Comparison", "Design", "compare"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = {"Comparison": "comparison", "Design": "experiment"}.get(name, "workflow")
    return getattr(import_module(f"{__name__}.{place}"), name)
