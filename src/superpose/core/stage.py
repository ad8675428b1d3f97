"""What a stage of training is: plain settings, as people write them in a recipe or give them to a `Schedule`.

    StageArgs   as it is described        a share of the steps, and settings that may change over them
    Stage       as it lies in a run       steps `start` to `stop - 1`
    Step        one step of it            what the step computes: nothing changes any more

Nothing here knows of a run; `superpose.core.schedule` places descriptions in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from superpose.core.embed import Pooling, check_pooling
from superpose.core.fold import MODES, Mode
from superpose.core.loss import Weighting, bag_weights

Phase = Literal["superposition", "recovery", "ordinary"]
"""A run without superposition has nothing to recover from: all of it is ordinary."""

_Key = TypeVar("_Key")


class Shares(dict[_Key, float]):
    """A dictionary of weights that can be hashed, and is not to be changed."""

    def __hash__(self) -> int:  # type: ignore[override]  # a dict has none
        return hash(frozenset(self.items()))


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What the steps of a stage have in common.

    Attributes:
        bag_size: tokens in a bag (the paper's s); 1 is ordinary training. Or sizes and their weights, such as
            `{8: 1, 4: 1}`: each step then draws its own.
        bag_size_end: of drawn sizes, their weights at the stage's end, reached linearly.
        mode: what superposition changes (arXiv 2605.06546, section 5): "full" (bags in, next bag out),
            "input" (bags in, next token out) or "output" (tokens in, next bag out).
        weighting: of the tokens in a target bag, see `superpose.bag_weights`.
        weighting_end: what the weights are at the stage's end, reached linearly; None keeps them.
        pooling: of the tokens in an input bag, see `superpose.embed_bags`.
        lr_factor: of the learning rate.
        ordinary_rows: share of a step's rows that are ordinary: single tokens, as many latents.
        mixture: shares of named sources; None takes the text as it is.
        extra_heads: further heads that predict further tokens, and are dropped in the end.
    """

    bag_size: int | Mapping[int, float] = 1
    bag_size_end: Mapping[int, float] | None = None
    mode: Mode = "full"
    weighting: Weighting | Sequence[float] = "uniform"
    weighting_end: Weighting | Sequence[float] | None = None
    pooling: Pooling = "mean"
    lr_factor: float = 1.0
    ordinary_rows: float = 0.0
    mixture: Mapping[str, float] | None = None
    extra_heads: int = 0

    def __post_init__(self) -> None:
        # Lists become tuples and dictionaries shares, so that a stage can be hashed.
        for name in ("weighting", "weighting_end"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        for name in ("bag_size", "bag_size_end", "mixture"):
            value = getattr(self, name)
            if isinstance(value, Mapping) and not isinstance(value, Shares):
                object.__setattr__(self, name, Shares(value))
        if not isinstance(self.bag_size, Mapping) and (not is_whole(self.bag_size) or self.bag_size < 1):
            raise ValueError(f"bag_size is {self.bag_size!r}; give a whole number of tokens, 1 or more")
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        check_pooling(self.pooling)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bag sizes of its steps, the largest first."""
        return tuple(sorted(self.bag_size, reverse=True)) if isinstance(self.bag_size, Mapping) else (self.bag_size,)

    @property
    def largest(self) -> int:
        """The largest of its bag sizes."""
        return self.sizes[0]

    @property
    def superposes(self) -> bool:
        """Whether any of its steps has bags."""
        return self.largest > 1


@dataclass(frozen=True, repr=False)
class StageArgs(_Settings):
    """A stage as it is described: its share of the run's steps, and settings that have a meaning for it.

    Args:
        ratio: share of the steps (the paper's r), above 0 and at most 1.

    Raises:
        ValueError: a setting is out of range, or would be ignored.
    """

    ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ratio(self.ratio)
        for size in self.sizes:
            for weighting in (self.weighting, *(() if self.weighting_end is None else (self.weighting_end,))):
                if weighting == "uniform" and self.weighting_end is None:
                    continue
                if size == 1 or self.mode == "input":
                    raise ValueError(
                        "a stage whose targets are single tokens has none to weigh, so weighting would be ignored; "
                        "leave it out"
                    )
                bag_weights(size, weighting)
        _refuse_unserved(self)

    def __repr__(self) -> str:
        return f"StageArgs({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """What JSON and TOML can hold of it: the settings that are not at their defaults, and the ratio."""
        return {
            field.name: _plain(value)
            for field in sorted(fields(self), key=lambda field: field.name != "ratio")
            if (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_dict(cls, stored: Any) -> StageArgs:
        """The stage that `to_dict` gave.

        Raises:
            ValueError: something else, or a setting out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(stored, Mapping) or not {"ratio"} <= set(stored) <= names:
            raise ValueError(f"{stored!r} is no stage; expected ratio, and any of {', '.join(sorted(names))}")
        return cls(**stored)


@dataclass(frozen=True)
class Stage(_Settings):
    """Steps `start` to `stop - 1` of a run, all trained by the same settings."""

    start: int
    stop: int
    phase: Phase

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def raw_tokens_per_latent(self) -> int:
        """Tokens of the corpus one position of the model takes up: the bag's, or 1 where tokens go in singly."""
        return 1 if self.mode == "output" else self.largest


@dataclass(frozen=True, kw_only=True)
class Step(_Settings):
    """What step `number` computes: its bag size is a number, and its weights are what they are at this step."""

    number: int
    phase: Phase
    bag_size: int = 1


def _refuse_unserved(stage: StageArgs) -> None:
    """Settings that have a name and a place, and nothing yet that follows them."""
    for name in (
        *("bag_size_end", "weighting_end", "lr_factor", "ordinary_rows", "mixture", "extra_heads"),
    ):
        value = getattr(stage, name)
        if value != _Settings.__dataclass_fields__[name].default:
            raise ValueError(f"{name} of a stage is not served yet; leave it out")
    if isinstance(stage.bag_size, Mapping):
        raise ValueError("a bag_size that is drawn is not served yet; give a number")


def _check_ratio(ratio: object) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio!r}; give a share of the steps between 0 and 1")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def expanded(
    bag_size: int | Sequence[int],
    ratio: float | Sequence[float],
    mode: Mode,
    weighting: Weighting | Sequence[float],
) -> Iterable[StageArgs]:
    """The short form as a list of stages: bag sizes and the share of the steps of each. The only place that knows it.

    A share of 0 is no stage. What a stage with single targets could not follow, it is not told.

    Raises:
        ValueError: not as many sizes as shares, or one of them out of range.
    """
    sizes: Sequence[int] = bag_size if isinstance(bag_size, Sequence) else (bag_size,)
    ratios: Sequence[float] = ratio if isinstance(ratio, Sequence) else (ratio,)
    if len(sizes) != len(ratios):
        raise ValueError(f"{len(sizes)} bag sizes but {len(ratios)} ratios; give one ratio for each bag size")
    stages = []
    for size, share in zip(sizes, ratios, strict=True):
        single = mode == "input" or size == 1
        stage = StageArgs(share, bag_size=size, mode=mode, weighting="uniform" if single else weighting)
        stages += [stage] if share > 0 else []
    return stages


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
