"""Which bag size trains at which step: the only place in superpose that decides a phase.

A run is a sequence of stages. Superposition stages come first, each with its bag size; what is left of the
steps is recovery, which is ordinary next-token training (bag size 1)::

    step 0                 boundary                          total_steps
    |--- superposition ---|------------- recovery -------------|
      bags of s tokens       single tokens

Training, evaluation, resuming, counting and plotting all ask a `Schedule`; none of them keeps a phase of
its own, so they cannot disagree. Everything here is a pure function of the step (arXiv 2605.06546, section 3).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from superpose.core.fold import MODES, Mode

Phase = Literal["superposition", "recovery", "ordinary"]
"""A run without superposition has nothing to recover from: all of it is ordinary."""


@dataclass(frozen=True)
class Stage:
    """Steps `start` to `stop - 1`, all trained at one bag size."""

    start: int
    stop: int
    bag_size: int
    phase: Phase
    mode: Mode

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def raw_tokens_per_latent(self) -> int:
        """Tokens of the corpus one position of the model takes up: `bag_size`, or 1 where tokens go in singly."""
        return 1 if self.mode == "output" else self.bag_size


@dataclass(frozen=True)
class Schedule:
    """The stages of a run of `total_steps` optimizer steps.

    Args:
        total_steps: all steps of the run, both phases together. A boundary is a share of this number, so it
            must be the final one.
        bag_size: tokens in a bag during superposition (the paper's s), or one for each of several stages.
        ratio: share of the steps spent in superposition (the paper's r), 0 to 1, or one for each stage.
            A boundary falls on the nearest whole step (a half rounds up).
        mode: what superposition changes (arXiv 2605.06546, section 5): "full" (bags in, next bag out),
            "input" (bags in, next token out) or "output" (tokens in, next bag out).

    Raises:
        ValueError: a setting is out of range, or so small that it would be ignored.

    >>> schedule = Schedule(total_steps=1000, bag_size=4, ratio=0.3)
    >>> schedule.boundaries, schedule.bag_size_at(299), schedule.bag_size_at(300)
    ((300,), 4, 1)
    """

    total_steps: int
    bag_size: int | Sequence[int] = 1
    ratio: float | Sequence[float] = 0.0
    mode: Mode = "full"

    def __post_init__(self) -> None:
        if not _is_whole(self.total_steps) or self.total_steps < 1:
            raise ValueError(f"total_steps is {self.total_steps!r}; give a whole number of steps, 1 or more")
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        # Sequences become tuples so that a schedule can be hashed and compared.
        for name in ("bag_size", "ratio"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        sizes, ratios = self._sizes_and_ratios
        if len(sizes) != len(ratios):
            raise ValueError(f"{len(sizes)} bag sizes but {len(ratios)} ratios; give one ratio for each bag size")
        for size in sizes:
            if not _is_whole(size) or size < 1:
                raise ValueError(f"bag_size is {size!r}; give a whole number of tokens, 1 or more")
        for ratio in ratios:
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
                raise ValueError(f"ratio is {ratio!r}; give a share of the steps between 0 and 1")
        if sum(map(_exact, ratios)) > 1:
            raise ValueError(f"the ratios {ratios} add up to more than 1; they are shares of the same steps")
        for ratio, (start, stop) in zip(ratios, self._spans, strict=True):
            if ratio > 0 and start == stop:
                raise ValueError(
                    f"ratio {ratio} of {self.total_steps} steps is less than one step; raise ratio or total_steps"
                )

    @classmethod
    def parse(cls, text: str, total_steps: int, mode: Mode = "full") -> Schedule:
        """Reads `"8:0.1,4:0.1,2:0.1"`: bag size and share of the steps of each superposition stage in turn.

        An empty text is an ordinary run.
        """
        sizes, ratios = [], []
        for part in filter(None, (part.strip() for part in text.split(","))):
            size, colon, ratio = part.partition(":")
            try:
                if not colon:
                    raise ValueError
                sizes.append(int(size))
                ratios.append(float(ratio))
            except ValueError:
                raise ValueError(
                    f"schedule part {part!r} is not BAG_SIZE:RATIO; write stages such as '8:0.1,4:0.1,2:0.1'"
                ) from None
        return cls(total_steps, tuple(sizes), tuple(ratios), mode)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it, to the bit: total_steps, bag_size, ratio and mode; see `from_dict`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Schedule:
        """The schedule that `to_dict` gave, also by way of JSON.

        Raises:
            ValueError: something else than a schedule's settings, or one of them out of range.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(stored, Mapping) or set(stored) != set(names):
            raise ValueError(
                f"{stored!r} is no schedule; expected {', '.join(names)}, as Schedule.to_dict() gives them"
            )
        return cls(**stored)

    def check_same(self, stored: Mapping[str, Any]) -> None:
        """Whether a run that began by another schedule, given as `to_dict`, goes on by this one as it began.

        Both have the same stages. Recovery alone may end elsewhere: see `lengthened`.

        Raises:
            ValueError: the bag size, mode or end of a stage of superposition is another, or `stored` is no schedule.
        """
        began = Schedule.from_dict(stored)
        if self._bags != began._bags:
            raise ValueError(
                f"the run began by {began}, with switches at steps {list(began.boundaries)}, and would go on by "
                f"{self}, with switches at {list(self.boundaries)}; give the schedule it began by, or for more steps "
                f"its lengthened({self.total_steps})"
            )

    def lengthened(self, total_steps: int) -> Schedule:
        """The schedule of a run of more steps, or fewer, whose switches are where they are in this one.

        Raises:
            ValueError: the new steps end before superposition does.
        """
        bags = self._bags
        if bags and total_steps < bags[-1].stop:
            raise ValueError(f"total_steps is {total_steps}; superposition ends at {bags[-1].stop}, give that or more")
        ratios = [stage.steps / total_steps for stage in bags]
        if sum(map(_exact, ratios)) > 1:  # by the last digit
            ratios = [math.nextafter(ratio, 0) for ratio in ratios]
        return Schedule(total_steps, [stage.bag_size for stage in bags], ratios, self.mode)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order, without gaps; recovery, if any step is left for it, is the last."""
        sizes, _ = self._sizes_and_ratios
        stages = [
            Stage(start, stop, size, "superposition", self.mode)
            for size, (start, stop) in zip(sizes, self._spans, strict=True)
            if start < stop
        ]
        end = stages[-1].stop if stages else 0
        if end < self.total_steps:
            stages.append(Stage(end, self.total_steps, 1, "recovery" if stages else "ordinary", "full"))
        return tuple(stages)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """First steps of all stages but the first, ascending."""
        return tuple(stage.start for stage in self.stages[1:])

    @property
    def ends_in_superposition(self) -> bool:
        """True where no recovery is left: the final model predicts bags and cannot generate text."""
        return self.stages[-1].bag_size > 1

    def stage_at(self, step: int) -> Stage:
        """The stage that trains step `step`, counted from 0.

        Raises:
            ValueError: there is no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(
                f"step {step} is outside this schedule of {self.total_steps} steps (0 to {self.total_steps - 1})"
            )
        return self.stages[bisect_right(self.boundaries, step)]

    def bag_size_at(self, step: int) -> int:
        """Tokens in a bag at step `step`, counted from 0; 1 during recovery."""
        return self.stage_at(step).bag_size

    def raw_tokens(self, latents_per_step: int, until: int | None = None) -> int:
        """Tokens of the corpus read in steps 0 to `until - 1` (by default all), each once as model input.

        At equal steps this is (1 + r (s - 1)) times what an ordinary run reads.
        """
        until = self.total_steps if until is None else until
        return sum(
            max(0, min(stage.stop, until) - stage.start) * stage.raw_tokens_per_latent * latents_per_step
            for stage in self.stages
        )

    @property
    def _bags(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if stage.phase == "superposition")

    @property
    def _sizes_and_ratios(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        sizes = self.bag_size if isinstance(self.bag_size, tuple) else (self.bag_size,)
        ratios = self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)
        return sizes, ratios

    @property
    def _spans(self) -> list[tuple[int, int]]:
        """Step range of each superposition stage, empty ones included."""
        _, ratios = self._sizes_and_ratios
        spans, share, start = [], Fraction(0), 0
        for ratio in ratios:
            share += _exact(ratio)
            stop = int(self.total_steps * share + Fraction(1, 2))
            spans.append((start, stop))
            start = stop
        return spans


def _exact(ratio: float) -> Fraction:
    """The decimal number a person wrote: as binary floats, 0.1 + 0.1 + 0.1 is not 0.3."""
    return Fraction(str(float(ratio)))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
