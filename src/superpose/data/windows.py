"""Which tokens a step reads: a pure function of the step, so that resuming costs nothing.

The corpus is an endless stream: its N tokens in order, from a place the seed chooses, round and round. Stages
take consecutive stretches of it, so recovery goes on where superposition stopped. Within a stretch the windows
are shuffled, so that the rows of a batch come from all over it and not from one long document::

    stream   0 ........................ V ............................. end
             | superposition            | recovery                     |
             | windows of S x L tokens, | windows of L tokens,         |
             | shuffled                 | shuffled                     |

Windows are S x L tokens apart and a bag longer, so each token is input once and target once. No token is read
again before all N were: a stretch that is longer than what is left of the corpus is shuffled in parts.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from superpose.core.fold import window_length
from superpose.core.schedule import Schedule, Stage
from superpose.data.tokens import TokenArray
from superpose.errors import UserError


@dataclass(frozen=True)
class _Stretch:
    """Consecutive windows of one stage within one pass over the corpus, shuffled among themselves."""

    first_row: int
    """Number of its first row, counted over the whole run."""
    start: int
    """Place of its first window in the stream."""
    windows: int
    width: int
    """Tokens from one window to the next."""
    shuffled: int
    """How many windows are shuffled; one that runs into the next pass is read last."""


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a whole run.

    Args:
        schedule: of bag sizes.
        rows: rows of a step, all ranks together.
        latents: L, positions of a row.
        num_tokens: N, tokens of the corpus.
        seed: chooses where the stream starts and how windows are shuffled.

    Raises:
        UserError: the corpus is smaller than one step.
    """

    schedule: Schedule
    rows: int
    latents: int
    num_tokens: int
    seed: int

    def __post_init__(self) -> None:
        largest = max(stage.raw_tokens_per_latent for stage in self.schedule.stages) * self.latents * self.rows
        if self.num_tokens < largest:
            raise UserError(
                f"the corpus has {self.num_tokens:,} tokens but one step reads {largest:,}; "
                f"give more text, or a smaller batch, row or bag"
            )

    @property
    def raw_tokens(self) -> int:
        """Tokens read in the whole run."""
        return self.schedule.raw_tokens(self.rows * self.latents)

    @property
    def epochs(self) -> float:
        """Passes over the corpus in the whole run."""
        return self.raw_tokens / self.num_tokens

    def starts(self, step: int) -> tuple[Stage, npt.NDArray[np.int64]]:
        """The stage of a step and the places [rows] in the stream where its windows start."""
        stage = self.schedule.stage_at(step)
        rows = np.arange(step * self.rows, (step + 1) * self.rows)
        return stage, np.array([self._start(int(row)) for row in rows], dtype=np.int64)

    def read(self, tokens: TokenArray, step: int) -> Tensor:
        """The windows of a step from the corpus' tokens [N]: ids [rows, `window_length(...)`], int64."""
        stage, starts = self.starts(step)
        length = window_length(self.latents, stage.bag_size, stage.mode)
        return torch.from_numpy(np.stack([tokens.read(int(start) + self._origin, length) for start in starts]))

    @cached_property
    def _origin(self) -> int:
        return _random(self.seed, "origin") % self.num_tokens

    def _start(self, row: int) -> int:
        stretch_number = bisect_right(self._stretches, row, key=lambda stretch: stretch.first_row) - 1
        stretch = self._stretches[stretch_number]
        index = row - stretch.first_row
        if index < stretch.shuffled:
            index = permute(index, stretch.shuffled, _random(self.seed, "shuffle", stretch_number))
        return stretch.start + index * stretch.width

    @cached_property
    def _stretches(self) -> list[_Stretch]:
        stretches: list[_Stretch] = []
        row = place = 0
        for stage in self.schedule.stages:
            width = stage.raw_tokens_per_latent * self.latents
            remaining = stage.steps * self.rows
            while remaining:
                end_of_pass = (place // self.num_tokens + 1) * self.num_tokens
                whole = (end_of_pass - place) // width
                starting = -(-(end_of_pass - place) // width)
                windows = min(remaining, starting)
                stretches.append(_Stretch(row, place, windows, width, min(windows, whole)))
                row += windows
                place += windows * width
                remaining -= windows
        return stretches


def permute(index: int, size: int, key: int) -> int:
    """Where a pseudo-random permutation of `size` numbers puts `index`, without storing the permutation.

    A Feistel network permutes the numbers of the next even power of two; numbers that land outside are put
    through it again until they land inside (cycle walking), which is a permutation of the rest.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            # A multiplicative hash (splitmix64's finaliser) of the right half keyed by the turn.
            mixed = (right + key + turn * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
        index = (left << half) | right
        if index < size:
            return index


def _random(*key: int | str) -> int:
    """64 bits that depend on nothing but the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
