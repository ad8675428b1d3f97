"""Token-superposition training: language-model pre-training for less.

The names of `superpose.core` are re-exported here and imported on first use, so that the command line answers
before PyTorch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpose.core import *

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "__all__" or not name.startswith("__"):
        core = import_module("superpose.core")
        if name == "__all__":
            return [*core.__all__, "__version__"]
        if name in core.__all__:
            return getattr(core, name)
    raise AttributeError(f"module 'superpose' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))
