"""The paper's experiments again: `superpose reproduce`, and from Python `reproduce(["table1"])`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpose.reproduce.experiments import EXPERIMENTS
    from superpose.reproduce.reproduction import Reproduction
    from superpose.reproduce.workflow import reproduce

__all__ = ["EXPERIMENTS", "Reproduction", "reproduce"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = {"EXPERIMENTS": "experiments", "Reproduction": "reproduction"}.get(name, "workflow")
    return getattr(import_module(f"{__name__}.{place}"), name)
