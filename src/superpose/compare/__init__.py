"""Ordinary training beside TST, at equal FLOPs, equal loss and equal data.

from superpose.compare import Design, compare

comparison = compare(Design(load_recipe("recipe.toml"), seeds=(1, 2, 3)), name="mine")
print(comparison.verdict())
"""

from typing import TYPE_CHECKING

from superpose.lazy import names

if TYPE_CHECKING:
    from superpose.compare.comparison import Comparison
    from superpose.compare.experiment import Design
    from superpose.compare.logged import Logged, compare_logs
    from superpose.compare.workflow import compare

__all__ = ["Comparison", "Design", "Logged", "compare", "compare_logs"]

__getattr__ = names(
    __name__,
    {
        "Comparison": "comparison",
        "Design": "experiment",
        "Logged": "logged",
        "compare": "workflow",
        "compare_logs": "logged",
    },
)
