"""Which tokens a step reads: a pure function of the step, so that resuming costs nothing.

The corpus is an endless stream: its N tokens in order, from a place the seed chooses, round and round. Stages
take consecutive stretches of it, so recovery goes on where superposition stopped. Within a stretch the windows
are shuffled, so that the rows of a batch come from all over it and not from one long document::

    stream   0 ........................ V ............................. end
             | superposition            | recovery                     |
             | windows of S x L tokens, | windows of L tokens,         |
             | shuffled                 | shuffled with all that is    |
             |                          | left of the pass             |

Windows are S x L tokens apart and a bag longer, so each token is input once and target once. No token is read
again before all N were: a stretch that is longer than what is left of the corpus is shuffled in parts.

Windows are cut in the places of a grid (`superpose.data.grid`): tokens, or whole bags of each document.

Where stages have a mixture, each named source is such a stream of its own, and a row is of one of them
(`superpose.data.mixture`).
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from superpose.core.draws import random_bits
from superpose.core.fold import IGNORE_INDEX, window_length
from superpose.core.schedule import Schedule
from superpose.core.stage import Stage, Step
from superpose.data.grid import Grid
from superpose.data.mixture import RowShares, exact_shares, rows_of_source
from superpose.data.sources import NamedSource, SourceTokens
from superpose.data.stretches import Stretch, cut_stretches
from superpose.data.tokens import TokenText
from superpose.data.uneven import StepRows, UnevenRows, spread
from superpose.errors import UserError

UNEVEN = (
    "where bag sizes are drawn or ordinary_rows are given, rows differ in length, and documents = 'aligned' has none"
)

Expand = Literal["sequence", "batch"]
"""How a superposition step takes in s times more tokens: by longer rows, or by more of them."""


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a whole run.

    Args:
        schedule: of bag sizes.
        rows: rows of a step in recovery, all ranks together.
        latents: L, positions of a row in recovery.
        num_tokens: N, tokens of the corpus.
        seed: chooses where the stream starts and how windows are shuffled.
        expand: "sequence" keeps rows and latents in superposition, so a row holds S x L tokens (the paper's way).
            "batch" takes S times as many rows of L / S latents, L tokens each. Equal either way are the raw tokens
            and the latents of a step, and with them all FLOPs but attention's; "batch" costs less attention and
            sees less context, and positions from L / S on are first trained in recovery.
        offsets: starts of the documents and end of the last. If given, every document starts a new bag, and the
            places its last bag leaves open are `IGNORE_INDEX`; where recovery takes over inside a document it goes
            on at the same token, a stage with other bags at its next bag.
        sources: the text's named sources (`Split.sources`), which stages with a mixture share out; each is read in
            its own order, round and round. Where any stage has a mixture, one without reads each source by its
            share of the text's tokens; where none has, names change nothing.

    Raises:
        UserError: the corpus is smaller than one step, or rows cannot be cut as `expand` asks; a stage shares out
            what is no source; or a source is shorter than what a step reads of it.
    """

    schedule: Schedule
    rows: int
    latents: int
    num_tokens: int
    seed: int
    expand: Expand = "sequence"
    offsets: npt.NDArray[np.int64] | None = field(default=None, compare=False)
    sources: Mapping[str, NamedSource] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.offsets is not None and any(stage.is_uneven for stage in self.schedule.stages):
            raise UserError(f"{UNEVEN}; leave one of the two out")
        for stage, _ in self.schedule.counts():
            rows, latents = self.shape(stage)
            if latents == 0 or rows * latents != self.rows * self.latents:
                raise UserError(
                    f"rows of {self.latents} latents cannot be cut for bags of {stage.largest}; with "
                    f"superposition.expand = 'batch', give train.latents as a multiple of the bag size"
                )
        if not self._of_sources:
            self._check_length()

    def _check_length(self) -> None:
        for stage, _ in self.schedule.counts():
            step = self._rows_of(stage).tokens
            places = self._grids[stage.raw_tokens_per_latent].places
            if places < step:
                raise UserError(
                    f"the corpus has {places:,} tokens but one step reads {step:,}; "
                    f"give more text, or a smaller batch, row or bag"
                )

    def shape(self, stage: Stage | Step) -> tuple[int, int]:
        """Rows of a step, all ranks together, and latents of a row; of several bag sizes, those of the largest."""
        parts = stage.raw_tokens_per_latent if self.expand == "batch" else 1
        return self.rows * parts, self.latents // parts

    def raw_tokens(self, until: int | None = None) -> int:
        """Tokens read in steps 0 to `until - 1`, by default all; places that hold nothing are not counted.

        Within a stretch of shuffled windows, where that would depend on which were read, it is their average.
        """
        until = self.schedule.total_steps if until is None else until
        if self.offsets is None:
            return self._tokens(until)
        if self._of_sources:
            return sum(plan.raw_tokens(until) for plan in self._of_sources.values())
        total = 0.0
        for stretch in self._stretches:
            stage = self.schedule.stages[stretch.stage]
            rows = self._own(stretch.stage, max(0, min(until, stage.stop) - stage.start) * self.shape(stage)[0])
            share = min(1.0, max(0, rows - stretch.first_row) / stretch.windows)
            grid = self._grids[stage.raw_tokens_per_latent]
            total += share * (grid.tokens_before(stretch.stop) - grid.tokens_before(stretch.start))
        return round(total)

    @property
    def epochs(self) -> float:
        """Passes over the corpus in the whole run."""
        return self.raw_tokens() / self.num_tokens

    @property
    def source_epochs(self) -> dict[str, float]:
        """Passes over each source in the whole run; empty where no stage has a mixture."""
        return {name: plan.epochs for name, plan in self._of_sources.items()}

    @property
    def unfilled(self) -> float:
        """Share of the places in bags that hold nothing, 0 where bags run across documents."""
        if self.offsets is None:
            return 0.0
        places = self.schedule.raw_tokens(self.rows * self.latents)
        recovery = sum(stage.steps for stage in self.schedule.stages if stage.raw_tokens_per_latent == 1)
        in_bags = places - recovery * self.rows * self.latents
        return (places - self.raw_tokens()) / in_bags if in_bags else 0.0

    def starts(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Stage, npt.NDArray[np.int64]]:
        """The stage of a step and the places [rows / world_size] in its grid where a rank's windows start.

        In a run with mixtures a place is one of the row's source.

        Raises:
            UserError: the rows cannot be shared out evenly.
        """
        stage, placed = self._placed(step, rank, world_size)
        return stage, np.array([start for _, start in placed], dtype=np.int64)

    def _placed(self, step: int, rank: int, world_size: int) -> tuple[Stage, list[tuple["WindowPlan", int]]]:
        """The stage of a step, and the text and the start of each of a rank's windows."""
        stage = self.schedule.stage_at(step)
        rows, _ = self.shape(self.schedule.step_at(step))
        if rows % world_size:
            raise UserError(
                f"train.batch_size: {rows} rows of a step cannot be shared out evenly among {world_size} ranks; "
                f"give a multiple"
            )
        number = self.schedule.stages.index(stage)
        own = range(rank * (rows // world_size), (rank + 1) * (rows // world_size))
        return stage, [self._place(number, step - stage.start, row) for row in own]

    def read(
        self, tokens: TokenText, step: int, rank: int = 0, world_size: int = 1, nothing: int = IGNORE_INDEX
    ) -> Tensor:
        """The windows of a step that a rank reads: ids [rows / world_size, `window_length(...)`], int64.

        Places that hold nothing are `nothing`: in an ordinary row of a step of bags all but the first of each bag.

        A pure function of its arguments. Ranks have disjoint rows and together those of the step, however many
        they are, so a run may go on with more ranks or fewer.
        """
        stage, placed = self._placed(step, rank, world_size)
        computed = self.schedule.step_at(step)
        rows, latents = self.shape(computed)
        latents += computed.extra_heads  # which ask for so much more
        length = window_length(latents, computed.bag_size, stage.mode)
        of_bags = rows - computed.ordinary_of(rows) - rank * len(placed)
        windows = []
        for row, (plan, start) in enumerate(placed):
            grid, text = plan._grids[computed.raw_tokens_per_latent], plan._text(tokens)
            if row < of_bags:
                windows.append(grid.read(text, int(start), length))
            else:
                windows.append(spread(grid.read(text, int(start), latents + 1), computed.bag_size, nothing))
        return torch.from_numpy(np.stack(windows))

    def _rows_of(self, stage: Stage) -> StepRows:
        """The rows of a step of a stage of one bag size."""
        rows, latents = self.shape(stage)
        ordinary = stage.ordinary_of(rows)
        return StepRows(rows - ordinary, stage.raw_tokens_per_latent * latents, ordinary, latents)

    @cached_property
    def _uneven(self) -> dict[int, UnevenRows]:
        """By the number of their stage, where not all rows are as long."""
        uneven, token = {}, 0
        for number, stage in enumerate(self.schedule.stages):
            if stage.is_uneven:
                key = (self.seed, "uneven", number)
                uneven[number] = UnevenRows(self._steps_of(number), token, self.num_tokens, key)
                token += uneven[number].tokens_until(stage.steps)
            else:
                token += self._own(number, stage.steps * self.shape(stage)[0]) * self._width(stage)
        return uneven

    def _steps_of(self, number: int) -> Sequence[StepRows]:
        """The rows of each step of a stage."""
        stage = self.schedule.stages[number]
        rows_of = {size: self._rows_of(stage.at_size(size)) for size in stage.sizes}
        return [rows_of[self.schedule.bag_size_at(step)] for step in range(stage.start, stage.stop)]

    def _tokens(self, until: int) -> int:
        """Places of this text's windows of steps 0 to `until - 1`, those that hold nothing included."""
        total = 0
        for number, stage in enumerate(self.schedule.stages):
            steps = max(0, min(until, stage.stop) - stage.start)
            if number in self._uneven:
                total += self._uneven[number].tokens_until(steps)
            else:
                total += self._own(number, steps * self.shape(stage)[0]) * self._width(stage)
        return total

    @cached_property
    def _shares(self) -> tuple[RowShares, ...] | None:
        """Of each stage; None where no stage has a mixture."""
        if not self.schedule.mixes:
            return None
        return tuple(
            RowShares(exact_shares(stage.mixture, self.sources or {}, f"the mixture of stage {number}"))
            for number, stage in enumerate(self.schedule.stages, start=1)
        )

    @cached_property
    def _of_sources(self) -> dict[str, "_SourcePlan"]:
        """What is read of each source; empty where no stage has a mixture."""
        if self._shares is None or self.sources is None:
            return {}
        return {
            name: _SourcePlan(
                self.schedule,
                self.rows,
                self.latents,
                source.num_tokens,
                random_bits(self.seed, "source", name),
                self.expand,
                None if self.offsets is None else source.offsets,
                name=name,
                source=source,
                whole=self,
                shares=self._shares,
            )
            for name, source in self.sources.items()
            if source.num_tokens
        }

    def _place(self, stage: int, step: int, row: int) -> tuple["WindowPlan", int]:
        """The text and the start of a window: that of a row of a step, which is counted from its stage's first."""
        uneven, in_stage = self._uneven.get(stage), step * self.shape(self.schedule.stages[stage])[0] + row
        if self._shares is None:
            return self, self._start(stage, in_stage) if uneven is None else uneven.place(step, row)
        if uneven is None:
            name, own = self._shares[stage].place(in_stage)
            plan = self._of_sources[name]
            return plan, plan._start(stage, own)
        length, index = uneven.index(step, row)
        name, own = self._shares[stage].place(index)
        plan = self._of_sources[name]
        of_source = plan._uneven[stage]
        return plan, of_source.place(step, of_source.row_of_length(step, length, own))

    def _own(self, stage: int, rows: int) -> int:
        """How many of a stage's first rows are of this text, where all are of one length."""
        return rows

    def _text(self, tokens: TokenText) -> TokenText:
        """What the grids read."""
        return tokens

    def _width(self, stage: Stage) -> int:
        """Places from one window to the next."""
        return stage.raw_tokens_per_latent * self.shape(stage)[1]

    @cached_property
    def _grids(self) -> dict[int, Grid]:
        """By the tokens of a bag."""
        origin = random_bits(self.seed, "origin")
        sizes = {stage.raw_tokens_per_latent for stage, _ in self.schedule.counts()}
        if self.offsets is None:
            start = origin % self.num_tokens
            return dict.fromkeys(sizes, Grid(np.array([start, start + self.num_tokens]), 0, 1))
        return {size: Grid(self.offsets, origin % (len(self.offsets) - 1), size) for size in sizes}

    def _start(self, stage: int, row: int) -> int:
        number = bisect_right(self._stretches, (stage, row), key=lambda stretch: (stretch.stage, stretch.first_row)) - 1
        return self._stretches[number].place(row, self.seed, "shuffle", number)

    @cached_property
    def _stretches(self) -> list[Stretch]:
        stretches: list[Stretch] = []
        token = 0
        for number, stage in enumerate(self.schedule.stages):
            if number in self._uneven:  # whose places are tokens
                token = self._tokens(stage.stop)
                continue
            grid, rows = self._grids[stage.raw_tokens_per_latent], self._own(number, stage.steps * self.shape(stage)[0])
            place, last = grid.place_at(token), stage is self.schedule.stages[-1]
            cut = list(cut_stretches(number, rows, place, self._width(stage), grid.places, last))
            token = grid.tokens_before(cut[-1].stop if cut else place)
            stretches += cut
        return stretches


@dataclass(frozen=True)
class _SourcePlan(WindowPlan):
    """What a plan reads of one source: its rows of each stage, in turn."""

    name: str = field(kw_only=True)
    source: NamedSource = field(kw_only=True, compare=False)
    whole: WindowPlan = field(kw_only=True, compare=False)
    shares: tuple[RowShares, ...] = field(kw_only=True, compare=False)
    """Of each stage."""

    @cached_property
    def _shares(self) -> None:
        """The source is no mixture itself."""

    def _check_length(self) -> None:
        for number, stage in enumerate(self.schedule.stages):
            if number in self._uneven:
                step = max(rows.tokens for rows in self._uneven[number].steps)
            else:
                rows = self.shape(stage)[0]
                most = max(1, self._own(number, rows)) if self._own(number, stage.steps * rows) else 0
                step = most * self._width(stage)
            places = self._grids[stage.raw_tokens_per_latent].places
            if places < step:
                raise UserError(
                    f"the source {self.name} has {places:,} tokens but a step of stage {number + 1} reads {step:,} of "
                    f"it; give more of it, a smaller share, or a smaller batch, row or bag"
                )

    def _own(self, stage: int, rows: int) -> int:
        return self.shares[stage].rows(rows).get(self.name, 0)

    def _steps_of(self, number: int) -> Sequence[StepRows]:
        return rows_of_source(self.shares[number], self.name, self.whole._steps_of(number))

    def _text(self, tokens: TokenText) -> TokenText:
        return SourceTokens(tokens, self.source)
