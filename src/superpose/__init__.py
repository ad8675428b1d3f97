"""Token-superposition training: language-model pre-training for less.

The names of `superpose.core` are re-exported here and imported on first use, so that the command line answers
before PyTorch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpose.core import *

__version__ = "0.1.0"

__all__ = [
    "IGNORE_INDEX",
    "MODES",
    "Cost",
    "Mode",
    "Schedule",
    "Stage",
    "SuperposedLM",
    "SuperposedOutput",
    "SuperposedParts",
    "VocabShard",
    "__version__",
    "bag_weights",
    "cost",
    "count_positions",
    "document_positions",
    "embed_bags",
    "flops_per_latent",
    "fold",
    "fold_mask",
    "linear_multi_hot_cross_entropy",
    "multi_hot_cross_entropy",
    "shift_labels",
    "split_window",
    "window_length",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'superpose' has no attribute {name!r}")
    return getattr(import_module("superpose.core"), name)


def __dir__() -> list[str]:
    return __all__
