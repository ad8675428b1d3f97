"""What a stage of training is: plain settings, as people write them in a recipe or give them to a `Schedule`.

    StageArgs   as it is described        a share of the steps, and settings that may change over them
    Stage       as it lies in a run       steps `start` to `stop - 1`
    Step        one step of it            what the step computes: nothing changes any more

Nothing here knows of a run; `superpose.core.schedule` places descriptions in one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Literal, TypeVar

from superpose.core.draws import random_bits
from superpose.core.embed import Pooling, check_pooling
from superpose.core.extra_heads import check_heads
from superpose.core.fold import MODES, Mode
from superpose.core.loss import Weighting, bag_shares
from superpose.core.numbers import is_number, is_whole

Phase = Literal["superposition", "recovery", "ordinary"]
"""A run without superposition has nothing to recover from: all of it is ordinary."""

LR_BLEND_STEPS = 20
"""As many as AdamW's second moment looks back at a beta of 0.95."""

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
        bag_size_end: of drawn sizes, their weights at the stage's end; probabilities go there linearly in the step.
        mode: what superposition changes (arXiv 2605.06546, section 5): "full" (bags in, next bag out),
            "input" (bags in, next token out) or "output" (tokens in, next bag out).
        weighting: of the tokens in a target bag, see `superpose.bag_weights`.
        weighting_end: the weights at the stage's end; None keeps them. Both are scaled to sum to 1, and go from one to
            the other linearly in the step.
        pooling: of the tokens in an input bag, see `superpose.embed_bags`.
        lr_factor: of the learning rate; what is left of the steps has 1.
        lr_blend_steps: steps after the stage's end on the way to the next factor, see `superpose.core.rates`.
        ordinary_rows: share of a step's rows that hold single tokens, in as many latents, and predict the next. All
            positions of a step count the same in its loss, whichever row they are of.
        mixture: shares of named sources; None takes the text as it is.
        extra_heads: heads that predict further ahead, and are dropped where a stage has none; see
            `superpose.core.extra_heads`.
        extra_heads_weight: of the mean of their losses beside the model's own; 0.3 where it is not given.
        extra_heads_weight_end: what it is at the stage's end, reached linearly; None keeps it.
    """

    bag_size: int | Mapping[int, float] = 1
    bag_size_end: Mapping[int, float] | None = None
    mode: Mode = "full"
    weighting: Weighting | Sequence[float] = "uniform"
    weighting_end: Weighting | Sequence[float] | None = None
    pooling: Pooling = "mean"
    lr_factor: float = 1.0
    lr_blend_steps: int = LR_BLEND_STEPS
    ordinary_rows: float = 0.0
    mixture: Mapping[str, float] | None = None
    extra_heads: int = 0
    extra_heads_weight: float | None = None
    extra_heads_weight_end: float | None = None

    def __post_init__(self) -> None:
        # Lists become tuples and dictionaries shares, so that a stage can be hashed.
        for name in ("weighting", "weighting_end"):
            value = getattr(self, name)
            known = isinstance(value, str) or (value is None and name.endswith("_end"))
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
                known = all(isinstance(weight, (int, float)) for weight in value)
            if not known:
                raise ValueError(f"{name} is {value!r}; give a name, or a number for each place in the bag")
        for name in ("bag_size", "bag_size_end", "mixture"):
            value = getattr(self, name)
            if isinstance(value, Mapping) and not isinstance(value, Shares):
                object.__setattr__(self, name, Shares(_sized(value) if name.startswith("bag_size") else value))
        if not isinstance(self.bag_size, Mapping) and (not is_whole(self.bag_size) or self.bag_size < 1):
            raise ValueError(f"bag_size is {self.bag_size!r}; give a whole number of tokens, 1 or more")
        self._check_drawn()
        rows = self.ordinary_rows
        if not is_number(rows) or not 0 <= rows < 1:
            raise ValueError(f"ordinary_rows is {rows!r}; give a share of the rows of 0 or more and less than 1")
        factor = self.lr_factor
        if not is_number(factor) or not 0 < factor < math.inf:
            raise ValueError(f"lr_factor is {factor!r}; give a number above 0, 1 for the learning rate as it is")
        if not is_whole(self.lr_blend_steps) or self.lr_blend_steps < 0:
            raise ValueError(f"lr_blend_steps is {self.lr_blend_steps!r}; give a whole number of steps, 0 or more")
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        check_pooling(self.pooling)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bag sizes of its steps, the largest first."""
        if not isinstance(self.bag_size, Mapping):
            return (self.bag_size,)
        weights = [*self.bag_size.items(), *(self.bag_size_end or {}).items()]
        return tuple(sorted({size for size, weight in weights if weight > 0}, reverse=True))

    @property
    def largest(self) -> int:
        """The largest of its bag sizes."""
        return self.sizes[0]

    @property
    def superposes(self) -> bool:
        """Whether any of its steps has bags."""
        return self.largest > 1

    @property
    def draws(self) -> bool:
        """Whether each of its steps draws its bag size."""
        return len(self.sizes) > 1

    @property
    def is_uneven(self) -> bool:
        """Whether its rows are of different lengths: sizes are drawn, or some rows hold single tokens."""
        return self.draws or self.ordinary_share > 0

    @property
    def raw_tokens_per_latent(self) -> int:
        """Tokens of the corpus one position of a row of bags takes up: the bag's, or 1 where tokens go in singly."""
        return 1 if self.mode == "output" else self.largest

    @property
    def ordinary_share(self) -> Fraction:
        """Share of the rows that hold single tokens though the others hold bags; a third is meant by 0.333333333."""
        return exact(self.ordinary_rows).limit_denominator(10**6) if self.superposes else Fraction(0)

    @property
    def raw_tokens_per_position(self) -> Fraction:
        """Raw tokens per latent of all rows together, ordinary ones among them."""
        return self.ordinary_share + (1 - self.ordinary_share) * self.raw_tokens_per_latent

    def ordinary_of(self, rows: int) -> int:
        """How many of a step's rows hold single tokens, though the others hold bags; they are the last of the step.

        Raises:
            ValueError: their share is not a whole number of rows.
        """
        count = self.ordinary_share * rows
        if count.denominator != 1:
            raise ValueError(
                f"ordinary_rows of {self.ordinary_rows} is {float(count):g} of {rows} rows; give a share that is a "
                f"whole number of them"
            )
        return int(count)

    def _check_drawn(self) -> None:
        drawn = isinstance(self.bag_size, Mapping)
        if self.bag_size_end is not None and not (drawn and isinstance(self.bag_size_end, Mapping)):
            raise ValueError(
                f"bag_size_end is {self.bag_size_end!r} beside a bag_size of {self.bag_size!r}; where sizes are drawn, "
                f"give each their weights, such as bag_size = {{ 8 = 1 }} and bag_size_end = {{ 1 = 1 }}"
            )
        for weights in (self.bag_size, self.bag_size_end):
            if isinstance(weights, Mapping):
                _check_weights(weights)


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
        if not is_number(self.ratio) or not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio!r}; give a share of the steps between 0 and 1")
        weightings = [self.weighting] if self.weighting_end is None else [self.weighting, self.weighting_end]
        if weightings != ["uniform"]:
            if not self.superposes or self.mode == "input":
                raise ValueError(
                    "a stage whose targets are single tokens has none to weigh, so weighting would be ignored; leave "
                    "it out"
                )
            shares = [bag_shares(size, weighting) for size in self.sizes if size > 1 for weighting in weightings]
            if self.ordinary_rows and not all(first > 0 for first, *_ in shares):
                raise ValueError(
                    f"the first of the weights {weightings} is 0, but it is what ordinary_rows predict; give it more"
                )
        if self.pooling != "mean" and (not self.superposes or self.mode == "output"):
            raise ValueError("a stage that reads single tokens pools none, so pooling would be ignored; leave it out")
        if self.ordinary_rows and (not self.superposes or self.mode == "output"):
            raise ValueError(
                "ordinary_rows are those without bags at the input, and this stage has no rows with any; leave "
                "ordinary_rows out, or weigh the next token higher by weighting"
            )
        if self.extra_heads and self.extra_heads_weight is None:
            object.__setattr__(self, "extra_heads_weight", 0.3)  # as in arXiv 2412.19437, section 4.2
        _check_extra_heads(self)
        if self.mixture is not None:
            exact_mixture(self.mixture)

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

    def at_size(self, bag_size: int) -> Stage:
        """The same for one of its bag sizes alone."""
        return replace(self, bag_size=bag_size, bag_size_end=None)

    def at(self, number: int, seed: int) -> Step:
        """What its step `number` of the run computes; drawn bag sizes are a function of the seed and the step."""
        settings = {each.name: getattr(self, each.name) for each in fields(Step) if each.name != "number"}
        bag_size = self.size_at(number, seed)
        ends = dict.fromkeys(("bag_size_end", "weighting_end", "extra_heads_weight_end"))
        if self.extra_heads_weight is not None and self.extra_heads_weight_end is not None:
            weight = self._between(self.extra_heads_weight, self.extra_heads_weight_end, number)
            settings["extra_heads_weight"] = weight
        step = Step(number=number, **settings | ends | {"bag_size": bag_size})
        if bag_size == 1 or self.mode == "input":
            return replace(step, weighting="uniform")
        if self.weighting_end is None:
            return step
        begin, end = bag_shares(bag_size, self.weighting), bag_shares(bag_size, self.weighting_end)
        return replace(step, weighting=tuple(map(self._between, begin, end, [number] * bag_size)))

    def _between(self, begin: float, end: float, number: int) -> float:
        """What goes from one value to another over the stage, at one of its steps; `end` is reached where it stops."""
        progress = (number - self.start) / self.steps
        return (1 - progress) * begin + progress * end

    def size_at(self, number: int, seed: int) -> int:
        """The bag size of its step `number` of the run."""
        if not isinstance(self.bag_size, Mapping):
            return self.bag_size
        begin, end = (_probabilities(weights) for weights in (self.bag_size, self.bag_size_end or self.bag_size))
        place = random_bits("bag size", seed, number) / 2**64
        for size in self.sizes:
            place -= self._between(begin.get(size, 0.0), end.get(size, 0.0), number)
            if place < 0:
                return size
        return self.sizes[-1]  # by the last digit


@dataclass(frozen=True, kw_only=True)
class Step(_Settings):
    """What step `number` computes: its bag size is a number, and its weights are what they are at this step."""

    number: int
    phase: Phase
    bag_size: int = 1


def _check_extra_heads(stage: StageArgs) -> None:
    check_heads(stage.extra_heads)
    for name in ("extra_heads_weight", "extra_heads_weight_end"):
        weight = getattr(stage, name)
        if weight is None:
            continue
        if not stage.extra_heads:
            raise ValueError(f"{name} weighs extra heads, and the stage has none, so it would be ignored; leave it out")
        if not is_number(weight) or not 0 <= weight < math.inf:
            raise ValueError(f"{name} is {weight!r}; give a number of 0 or more")


def _sized(weights: Mapping[Any, float]) -> dict[int, float]:
    """Sizes as numbers, which JSON and TOML have as text."""
    return {int(size) if isinstance(size, str) and size.isdecimal() else size: w for size, w in weights.items()}


def _check_weights(weights: Mapping[int, float]) -> None:
    for size, weight in weights.items():
        if not is_whole(size) or size < 1:
            raise ValueError(f"bag_size names a size of {size!r}; give whole numbers of tokens, 1 or more")
        if not is_number(weight) or not 0 <= weight < math.inf:
            raise ValueError(f"bag_size gives size {size} a weight of {weight!r}; give a number of 0 or more")
    if not sum(weights.values()):
        raise ValueError("bag_size gives no size any weight; give one a number above 0")


def _probabilities(weights: Mapping[int, float]) -> dict[int, float]:
    total = math.fsum(weights.values())
    return {size: weight / total for size, weight in weights.items()}


def exact(ratio: float) -> Fraction:
    """The decimal number a person wrote: as binary floats, 0.1 + 0.1 + 0.1 is not 0.3."""
    return Fraction(str(float(ratio)))


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


def exact_mixture(mixture: Mapping[str, float]) -> dict[str, Fraction]:
    """The shares of a mixture that are above 0, as exact numbers that add up to 1.

    Shares are taken for the decimal numbers that a person wrote. They have to add up to 1 to six digits: other sums
    are refused and not scaled, because they mostly come of a source that was forgotten.

    Raises:
        ValueError: a share is none, or they do not add up to 1.
    """
    if not isinstance(mixture, Mapping):
        raise ValueError(f"mixture is {mixture!r}; give each source its share, such as {{ web = 0.7, code = 0.3 }}")
    for name, share in mixture.items():
        if not is_number(share) or not 0 <= share <= 1:
            raise ValueError(f"mixture gives {name} a share of {share!r}; expected 0 to 1")
    shares = {name: exact(share) for name, share in mixture.items() if share}
    whole = sum(shares.values(), Fraction(0))
    if abs(whole - 1) > Fraction(1, 10**6):
        given = ", ".join(f"{name} {share:g}" for name, share in mixture.items())
        raise ValueError(
            f"the shares of mixture add up to {float(whole):g}, not 1 ({given}); give each source its share of all"
        )
    return {name: share / whole for name, share in shares.items()}
