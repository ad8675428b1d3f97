"""Names of a room that are imported when they are first used, so that what a command does not need is not loaded."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def names(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are defined in its modules.

    `homes` is the module of each, seen from the package, such as {"evaluate": "workflow"}; ".data.config" is beside it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
