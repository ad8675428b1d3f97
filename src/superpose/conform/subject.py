"""What is judged: somebody's own training step, with the model it is written for, as it is.

A subject is a Python file, a module, or a `Subject`. One role is needed, `step`, or `fold` and `loss`; docs/conform.md
describes them all. Plain values beside the functions declare what no check can find out.

Shapes: B rows, L latents, S bag, V vocabulary, T tokens of a window: S x (L + 1), in mode "output" L + S.
"""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from superpose.core.fold import IGNORE_INDEX, MODES, Mode
from superpose.errors import UserError, first_line

SIDES = ("labels", "attention_mask", "position_ids", "document_ids", "normalizer")
"""What a step may take by name beside model, window and bag size."""

Weights = str | Callable[[int], Sequence[float]]


@dataclass(frozen=True)
class Subject:
    """Somebody's training step and what they declare of it; see docs/conform.md for each role's form.

    Attributes:
        step: (model, window [B, T], bag_size) or (window, bag_size) to the loss, not yet backward. What it takes of
            `SIDES` by name is checked, too.
        ordinary: (model, window [B, L + 1]) to the ordinary loss, where `step` refuses bag size 1.
        model: theirs, or a function that makes it. Without one, step gets a `superpose.conform.probe.Probe`.
        embedding, head: module, parameter, or dotted name in the model, where they are not found.
        fold: (window, bag_size) to inputs [B, L, S] and targets [B, L, S].
        loss: (logits [B, L, V], targets [B, L, S]) to the loss.
        embed: (model, bags [B, L, S]) to vectors [B, L, D].
        evaluate: (model, window [B, L + 1], bag_size) to the validation loss.
        accumulate: (model, parts, bag_size): one step over a list of windows, backward passes and all.
        bag_size_at: (step, total_steps, bag_size, ratio) to the bag size that trains this step, counted from 0.
        batches: (tokens [N], rows, latents, total_steps, bag_size, ratio, start_step) to an iterator over windows.
        counts: (total_steps, bag_size, ratio, latents_per_step) to any of `raw_tokens`, `latents` and `flops`.
        step_seconds: of a step of theirs, (B, L, seconds).
        mode: "full", "input" or "output"; None to find out.
        bag_sizes: that step is judged at.
        schedule: "two phases", or "stages": any sizes in any order, then 1.
        reading: "in order", or "random" windows.
        ignore_index: id that is ignored; named, it may stand in windows.
        pad_id: token in padded places of which a mask or labels tell.
        padding_side: "right", "left", or "anywhere".
        special_ids: tokens that windows of text never hold.
        end_of_text: token by which the step keeps documents apart.
        softcap, z_loss: of the logits, where they are not found.
        auxiliary: whether the loss has terms that do not go through the head.
        label_smoothing: share of each target that is spread over the vocabulary.
        extra_heads: heads that predict further bags.
        weighting: of a target bag's tokens: "uniform", "power", "exponential", "first", or bag size to S numbers.
        pooling: of an input bag: "mean", "sqrt", "power", or bag size to S numbers.
    """

    step: Callable[..., Any] | None = None
    ordinary: Callable[..., Any] | None = None
    model: Any = None
    embedding: Any = None
    head: Any = None
    fold: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None
    loss: Callable[..., Any] | None = None
    embed: Callable[[Any, Tensor], Tensor] | None = None
    evaluate: Callable[..., Any] | None = None
    accumulate: Callable[..., Any] | None = None
    bag_size_at: Callable[[int, int, int, float], int] | None = None
    batches: Callable[[Tensor, int, int, int, int, float, int], Iterator[Tensor]] | None = None
    counts: Callable[[int, int, float, int], Mapping[str, float]] | None = None
    step_seconds: tuple[int, int, float] | None = None
    mode: Mode | None = None
    bag_sizes: Sequence[int] = (2, 3)
    schedule: str = "two phases"
    reading: str = "in order"
    ignore_index: int | None = None
    pad_id: int = 0
    padding_side: str = "right"
    special_ids: Sequence[int] = ()
    end_of_text: int | None = None
    softcap: float | None = None
    z_loss: float | None = None
    auxiliary: bool = False
    label_smoothing: float = 0.0
    extra_heads: int = 0
    weighting: Weights = "uniform"
    pooling: Weights = "mean"

    def __post_init__(self) -> None:
        for name in _CALLABLE:
            if (given := getattr(self, name)) is not None and not callable(given):
                raise UserError(f"{name} is {type(given).__name__}; expected a callable")
        if self.step is None and (self.fold is None or self.loss is None):
            raise UserError("nothing to check: give step, or fold and loss")
        for name, choices in _CHOICES.items():
            if not callable(value := getattr(self, name)) and value not in choices:
                raise UserError(
                    f"{name} is {value!r}; expected one of {', '.join(repr(one) for one in choices if one)}"
                )
        sizes = self.bag_sizes
        if not isinstance(sizes, Sequence) or not sizes or not all(isinstance(s, int) and s > 1 for s in sizes):
            raise UserError(f"bag_sizes is {sizes!r}; expected whole numbers of 2 or more, such as (2, 4)")
        if self.model is not None and not callable(self.model):
            raise UserError(f"model is {type(self.model).__name__}; expected an nn.Module, or a function that makes it")

    @property
    def ignored(self) -> int:
        return IGNORE_INDEX if self.ignore_index is None else self.ignore_index

    def takes(self, name: str) -> bool:
        """Whether step, or else loss, names this argument."""
        return name in parameters_of(self.step or self.loss)

    def shares(self, role: str, bag_size: int) -> Tensor:
        """Weights [S], float64, of the places of a target bag ("weighting") or of an input bag ("pooling")."""
        place = torch.arange(bag_size, dtype=torch.float64)
        given = getattr(self, role)
        if callable(given) and bag_size > 1:
            values = torch.as_tensor(given(bag_size), dtype=torch.float64)
            if values.shape != (bag_size,):
                raise UserError(f"{role}({bag_size}) gave {values.numel()} numbers; expected {bag_size}")
            return values if role == "pooling" else values / values.sum()
        of_name = {
            "power": 1 / (place + 1),
            "exponential": torch.exp(-place),
            "first": (place == 0).double(),
        }
        values = of_name.get(given if isinstance(given, str) else "", torch.ones_like(place))
        return values / values.sum() * (math.sqrt(bag_size) if given == "sqrt" else 1)


_CALLABLE = (
    *("step", "ordinary", "fold", "loss", "embed", "evaluate", "accumulate", "bag_size_at", "batches", "counts"),
)
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "mode": (None, *MODES),
    "schedule": ("two phases", "stages"),
    "reading": ("in order", "random"),
    "padding_side": ("right", "left", "anywhere"),
    "weighting": ("uniform", "power", "exponential", "first"),
    "pooling": ("mean", "sqrt", "power"),
}
ROLES = tuple(field.name for field in fields(Subject))


def shares_of_valid(shares: Tensor, valid: Tensor) -> Tensor:
    """Of bags [..., S] the shares of valid places, whose sum is that of a whole bag's `shares` [S]."""
    kept = shares * valid
    return kept / kept.sum(-1, keepdim=True).clamp(min=1e-9) * shares.sum()


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """By name; none of a function that tells of none."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin, or nothing
        return {}


def takes_model(function: Any, others: int) -> bool:
    """Whether a role is given the model before its `others` further arguments: it names one, or needs one more."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = parameters_of(function)
    if not parameters or any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters.values()):
        return True
    needed = [
        name
        for name, one in parameters.items()
        if one.kind in positional
        and name not in SIDES
        and (one.default is inspect.Parameter.empty or name == "bag_size")
    ]
    return next(iter(parameters)) in ("model", "net", "probe") or len(needed) > others


def load(source: str, names: Mapping[str, str] | None = None) -> Subject:
    """The subject of a Python file or an importable module. It is run: it is the user's own code.

    Args:
        source: `my_tst.py`, or `package.module`.
        names: of attributes, by role; a role without a name here is the attribute of its own name, if there is one.

    Raises:
        UserError: there is no such file, module or attribute, importing it fails, or a role is not what it has to be.
    """
    module: Any = _import(source)
    roles: dict[str, Any] = {}
    for role in ROLES:
        name = (names or {}).get(role, role)
        value = reduce(lambda place, part: getattr(place, part, None), name.split("."), module)
        if value is None and role in (names or {}):
            raise UserError(f"{source} has no {name!r}, named as its {role}")
        # An imported function `embedding`, or a neighbour in `import model`, is not meant.
        meant = isinstance(value, (str, nn.Module, Tensor)) if role in ("embedding", "head") else True
        if value is not None and meant and not isinstance(value, ModuleType):
            roles[role] = value
    try:
        return Subject(**roles)
    except UserError as error:
        raise UserError(f"{source}: {error}; what it may define is in docs/conform.md, and --role names it") from None


def _import(source: str) -> ModuleType:
    path = Path(source)
    if path.suffix == ".py" and not path.is_file():
        raise UserError(f"{source}: no such file; give a Python file or an importable module")
    # What `python my_tst.py` and `python -m my_tst` would find.
    place = str(path.resolve().parent if path.suffix == ".py" else Path.cwd())
    if place not in sys.path:
        sys.path.insert(0, place)
    try:
        if path.suffix != ".py":
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{source} cannot be imported: {type(error).__name__}: {first_line(error)}") from None
    return module


def find_weight(model: Any, place: Any, role: str) -> Tensor | None:
    """The parameter of a declared embedding or head: a module, a parameter, or a dotted name of either in the model.

    Raises:
        UserError: there is none.
    """
    found: Any = place
    if isinstance(place, str):
        found = reduce(lambda at, part: getattr(at, part, None), place.split("."), model)
    if isinstance(found, nn.Module):
        found = next((weight for weight in found.parameters() if weight.dim() == 2), None)
    if place is not None and not isinstance(found, Tensor):
        raise UserError(f"{role} is {place!r}, where no weight [V, D] was found; name a module or parameter of model")
    weight: Tensor | None = found
    return weight
