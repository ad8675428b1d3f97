"""What is held against the method: somebody's callables, each in a role that is described here.

Two are enough, `fold` and `loss`, or one that does it all, `step`. The others are about a whole run; what is not given
is not checked. A callable that is not of this form takes an adapter of a line or two.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from superpose.errors import UserError


@dataclass(frozen=True)
class Implementation:
    """Somebody's token superposition.

    Attributes:
        fold: (window [B, S x (L + 1)], bag_size) to inputs [B, L, S] and targets [B, L, S]; the targets may end early
            or in `IGNORE_INDEX` (-100), where a row does not hold them.
        loss: (logits [B, L, V], targets [B, L, S]) to a scalar. May take `normalizer`, see `step`.
        step: (model, window [B, S x (L + 1)], bag_size) to a scalar, not yet backward; the model is a
            `superpose.conform.probe.Probe`. At bag size 1 the window is [B, L + 1]. It may take further arguments by
            name, and what they do is then checked: `attention_mask` [B, as the window], 0 for padding;
            `position_ids` [B, as the window]; `normalizer`, by which the sum over latents is then divided.
        evaluate: (model, window [B, L + 1], bag_size) to the validation loss while training with that bag size.
        bag_size_at: (step, total_steps, bag_size, ratio) to the bag size that trains this step, counted from 0.
        batches: (tokens [N], rows, latents, total_steps, bag_size, ratio, start_step) to an iterator over the windows
            of the steps from `start_step` on, as after a resume.
        counts: (total_steps, bag_size, ratio, latents_per_step) to any of `raw_tokens`, `latents` and `flops` of a run,
            the FLOPs in any unit.
        step_seconds: of a training step of B rows and L latents, to see whether `batches` can feed it: (B, L, seconds).
    """

    fold: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None
    loss: Callable[..., Tensor] | None = None
    step: Callable[..., Tensor] | None = None
    evaluate: Callable[[Any, Tensor, int], Tensor] | None = None
    bag_size_at: Callable[[int, int, int, float], int] | None = None
    batches: Callable[[Tensor, int, int, int, int, float, int], Iterator[Tensor]] | None = None
    counts: Callable[[int, int, float, int], Mapping[str, float]] | None = None
    step_seconds: tuple[int, int, float] | None = None

    def __post_init__(self) -> None:
        if self.step is None and (self.fold is None or self.loss is None):
            raise UserError("nothing to check: give fold and loss, or step")

    def need(self, role: str) -> Any:
        """What was given for a role.

        Raises:
            NotCheckedError: nothing was.
        """
        if (given := getattr(self, role)) is None:
            raise NotCheckedError(f"needs {role}")
        return given


class WrongError(Exception):
    """The error a check looks for is made; the message is the evidence."""


class NotCheckedError(Exception):
    """What the check needs was not given."""


ROLES = tuple(field.name for field in fields(Implementation))


def accepts(function: Any, name: str) -> bool:
    """Whether a callable names this argument; one that swallows all names says nothing about this one."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin, or nothing
        return False


def load(source: str, names: Mapping[str, str]) -> Implementation:
    """The implementation of a Python file or an importable module. It is run: it is the user's own code.

    Args:
        source: `my_tst.py`, or `package.module`.
        names: of attributes, by role; a role without a name here is the attribute of its own name, if there is one.

    Raises:
        UserError: there is no such file, module or attribute, or importing it fails.
    """
    module: Any = _import(source)
    roles: dict[str, Any] = {}
    for role in ROLES:
        name = names.get(role, role)
        value = reduce(lambda place, part: getattr(place, part, None), name.split("."), module)
        if value is None and role in names:
            raise UserError(f"{source} has no {name!r}, named as its {role}")
        if value is not None and role != "step_seconds" and not callable(value):
            raise UserError(f"{source}: {name} is {type(value).__name__}; expected a callable for {role}")
        roles[role] = value
    try:
        return Implementation(**roles)
    except UserError as error:
        given = ", ".join(ROLES[:-1])
        raise UserError(f"{source}: {error}; functions are taken by their names ({given}) or by --role NAME") from None


def _import(source: str) -> ModuleType:
    path = Path(source)
    if path.suffix == ".py" and not path.is_file():
        raise UserError(f"{source}: no such file; give a Python file or an importable module")
    try:
        if path.suffix != ".py":
            sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{source} cannot be imported: {type(error).__name__}: {error}") from None
    return module
