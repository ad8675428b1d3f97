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
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from superpose.core.fold import Mode
from superpose.core.loss import Weighting
from superpose.core.numbers import is_whole
from superpose.core.rates import blended_factor
from superpose.core.stage import LR_BLEND_STEPS, Phase, Stage, StageArgs, Step, exact, expanded


@dataclass(frozen=True, init=False, repr=False)
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
        weighting: of the tokens in a target bag, see `bag_weights`.
        stages: in place of these four, a description of each stage: see `StageArgs`. What is left of the steps is
            ordinary training.
        seed: of the bag sizes that are drawn, where a stage has several.

    The four describe stages in short; two schedules of the same stages are equal, however they were given.

    Raises:
        ValueError: a setting is out of range, or so small that it would be ignored.

    >>> schedule = Schedule(total_steps=1000, bag_size=4, ratio=0.3)
    >>> schedule.boundaries, schedule.bag_size_at(299), schedule.bag_size_at(300)
    ((300,), 4, 1)
    >>> schedule == Schedule(total_steps=1000, stages=[StageArgs(0.3, bag_size=4)])
    True
    """

    total_steps: int
    args: tuple[StageArgs, ...]
    seed: int
    bag_size: int | tuple[int, ...] = field(compare=False)
    ratio: float | tuple[float, ...] = field(compare=False)
    mode: Mode = field(compare=False)
    weighting: Weighting | tuple[float, ...] = field(compare=False)

    def __init__(
        self,
        total_steps: int,
        bag_size: int | Sequence[int] = 1,
        ratio: float | Sequence[float] = 0.0,
        mode: Mode = "full",
        weighting: Weighting | Sequence[float] = "uniform",
        *,
        stages: Sequence[StageArgs] | None = None,
        seed: int = 0,
    ) -> None:
        if not is_whole(total_steps) or total_steps < 1:
            raise ValueError(f"total_steps is {total_steps!r}; give a whole number of steps, 1 or more")
        short = {"bag_size": bag_size, "ratio": ratio, "mode": mode, "weighting": weighting}
        if stages is not None and short != _NO_STAGES:
            raise ValueError("stages say all there is of each; leave out bag_size, ratio, mode and weighting")
        args = tuple(expanded(bag_size, ratio, mode, weighting) if stages is None else stages)
        for name, value in short.items():
            listed = isinstance(value, Sequence) and not isinstance(value, str)
            object.__setattr__(self, name, tuple(value) if listed else value)  # type: ignore[arg-type]
        object.__setattr__(self, "total_steps", total_steps)
        object.__setattr__(self, "args", args)
        # A seed that nothing is drawn by makes no other schedule.
        object.__setattr__(self, "seed", seed if any(stage.draws for stage in args) else 0)
        ratios = [stage.ratio for stage in args]
        if sum(map(exact, ratios)) > 1:
            raise ValueError(f"the ratios {tuple(ratios)} add up to more than 1; they are shares of the same steps")
        if {stage.lr_factor for stage in args} <= {1} and {stage.lr_blend_steps for stage in args} - {LR_BLEND_STEPS}:
            raise ValueError("no stage has an lr_factor, so lr_blend_steps would be ignored; leave it out")
        for stage in self._described:
            if stage.start == stage.stop:
                raise ValueError(
                    f"ratio {args[self._described.index(stage)].ratio} of {total_steps} steps is less than one step; "
                    f"raise ratio or total_steps"
                )

    def __repr__(self) -> str:
        return f"Schedule({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"

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

    def weighted(self, weighting: Weighting | Sequence[float]) -> Schedule:
        """The same stages with other weights of their targets.

        Raises:
            ValueError: stages are described one by one, which have weights of their own.
        """
        if not self.in_short:
            raise ValueError("each of the schedule's stages has its own weighting; leave out the one beside it")
        return Schedule(self.total_steps, self.bag_size, self.ratio, self.mode, weighting)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it, to the bit: how it was given, by name; see `from_dict`."""
        # A weighting is told even if it is uniform: schedules of before it was part of them do not tell one.
        weighting = {} if "stages" in self._given else {"weighting": self.weighting}
        settings = {**self._given, **weighting}
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        return given | ({"stages": [stage.to_dict() for stage in self.args]} if "stages" in given else {})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Schedule:
        """The schedule that `to_dict` gave, also by way of JSON.

        Raises:
            ValueError: something else than a schedule's settings, or one of them out of range.
        """
        if isinstance(stored, Mapping) and set(stored) - {"seed"} == {"total_steps", "stages"}:
            seed, stages = stored.get("seed", 0), stored["stages"]
            if isinstance(stages, Sequence) and not isinstance(stages, str) and is_whole(seed):
                return cls(stored["total_steps"], stages=list(map(StageArgs.from_dict, stages)), seed=seed)
        elif isinstance(stored, Mapping) and {"total_steps", "bag_size", "ratio", "mode"} == set(stored) - {
            "weighting"
        }:
            return cls(**stored)
        raise ValueError(
            f"{stored!r} is no schedule; expected total_steps, bag_size, ratio and mode, or total_steps and stages, as "
            f"Schedule.to_dict() gives them"
        )

    def check_same(self, stored: Mapping[str, Any]) -> None:
        """Whether a run that began by another schedule, given as `to_dict`, goes on by this one as it began.

        Both have the same stages. Recovery alone may end elsewhere: see `lengthened`.

        Raises:
            ValueError: the bag size, mode or end of a stage of superposition is another, or `stored` is no schedule.
        """
        began = Schedule.from_dict(stored)
        if "stages" not in stored and "weighting" not in stored:  # as it was written before weights were part of it
            began = Schedule(began.total_steps, began.bag_size, began.ratio, began.mode, self.weighting)
        if (self._described, self.seed) != (began._described, began.seed):
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
        stages = self._described
        if stages and total_steps < stages[-1].stop:
            raise ValueError(
                f"total_steps is {total_steps}; superposition ends at {stages[-1].stop}, give that or more"
            )
        ratios = [stage.steps / total_steps for stage in stages]
        if sum(map(exact, ratios)) > 1:  # by the last digit
            ratios = [math.nextafter(ratio, 0) for ratio in ratios]
        args = [replace(stage, ratio=ratio) for stage, ratio in zip(self.args, ratios, strict=True)]
        return Schedule(total_steps, stages=args, seed=self.seed)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order, without gaps; what is left of the steps is the last."""
        stages = list(self._described)
        end = stages[-1].stop if stages else 0
        if end < self.total_steps:
            bags = any(stage.superposes for stage in stages)
            stages.append(Stage(end, self.total_steps, "recovery" if bags else "ordinary"))
        return tuple(stages)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """First steps of all stages but the first, ascending."""
        return tuple(stage.start for stage in self.stages[1:])

    @property
    def recovers_at(self) -> int:
        """First step after the last one with bags, where what is trained is single tokens again; 0 without bags."""
        return max((stage.stop for stage in self.stages if stage.superposes), default=0)

    @property
    def in_short(self) -> bool:
        """Whether it was given in short, or could have been: by bag sizes, ratios, one mode and one weighting."""
        return "stages" not in self._given

    @property
    def ends_in_superposition(self) -> bool:
        """True where no recovery is left: the final model predicts bags and cannot generate text."""
        return self.stages[-1].superposes

    @property
    def mixes(self) -> bool:
        """Whether any stage has a mixture of named sources; then all stages read by source."""
        return any(stage.mixture is not None for stage in self.stages)

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

    def step_at(self, step: int) -> Step:
        """What step `step` computes, counted from 0: its stage's settings as they are there.

        A pure function of the step and the schedule's seed; whatever trains a step asks it.
        """
        return replace(self.stage_at(step).at(step, self.seed), lr_factor=blended_factor(self.stages, step))

    def bag_size_at(self, step: int) -> int:
        """Tokens in a bag at step `step`, counted from 0; 1 during recovery."""
        return self.stage_at(step).size_at(step, self.seed)

    def raw_tokens(self, latents_per_step: int, until: int | None = None) -> int:
        """Tokens of the corpus read in steps 0 to `until - 1` (by default all), each once as model input.

        At equal steps this is (1 + r (s - 1)) times what an ordinary run reads.
        """
        return int(sum(steps * latents_per_step * stage.raw_tokens_per_position for stage, steps in self.counts(until)))

    def counts(self, until: int | None = None) -> list[tuple[Stage, int]]:
        """How many of steps 0 to `until - 1` (by default all) each stage spends at each of its bag sizes.

        A stage of several sizes is there once for each of them, as a stage of that size alone.
        """
        until = self.total_steps if until is None else until
        return [
            (stage.at_size(size), bisect_left(steps, until))
            for stage in self.stages
            for size, steps in self.steps_at(stage).items()
        ]

    def steps_at(self, stage: Stage) -> Mapping[int, Sequence[int]]:
        """The steps that a stage spends at each of its bag sizes, ascending."""
        if not stage.draws:
            return {stage.largest: range(stage.start, stage.stop)}
        return self._drawn[stage.start]

    @cached_property
    def _drawn(self) -> dict[int, dict[int, list[int]]]:
        """Of the stages whose sizes are drawn, by their starts."""
        drawn: dict[int, dict[int, list[int]]] = {}
        for stage in self.stages:
            if stage.draws:
                steps = drawn[stage.start] = {size: [] for size in stage.sizes}
                for step in range(stage.start, stage.stop):
                    steps[stage.size_at(step, self.seed)].append(step)
        return drawn

    @cached_property
    def _described(self) -> tuple[Stage, ...]:
        """The stages that are described, and not what is left; ones of no step, which are refused, included."""
        stages: list[Stage] = []
        share, start, bags = Fraction(0), 0, False
        for args in self.args:
            share += exact(args.ratio)
            stop = int(self.total_steps * share + Fraction(1, 2))
            settings = {each.name: getattr(args, each.name) for each in fields(StageArgs) if each.name != "ratio"}
            bags |= args.superposes
            phase: Phase = "superposition" if args.superposes else "recovery" if bags else "ordinary"
            stages.append(Stage(start, stop, phase, **settings))
            start = stop
        return tuple(stages)

    @property
    def _given(self) -> dict[str, Any]:
        """How it was given."""
        short = {name: getattr(self, name) for name in _NO_STAGES}
        if self.args and short == _NO_STAGES:
            seed = {"seed": self.seed} if self.seed else {}
            return {"total_steps": self.total_steps, "stages": self.args, **seed}
        if self.weighting == _NO_STAGES["weighting"]:
            del short["weighting"]
        return {"total_steps": self.total_steps, **short}


_NO_STAGES: dict[str, Any] = {"bag_size": 1, "ratio": 0.0, "mode": "full", "weighting": "uniform"}
"""The short form of no stage at all."""
