"""Where the rows of a stage read whose rows are not all as long: bag sizes are drawn, or some rows are ordinary.

    rows of the stage, in turn      8L 8L L | L L L | 4L 4L L | 8L 8L L | ...        tokens of each; | ends a step
    the text of a pass              [8L 8L 8L 8L ...][4L 4L ...][L L L L ...]        rows of a length lie together,
                                                                                    shuffled among themselves

So the rows of a pass tile its text: each of its tokens is input once, whatever sizes are drawn. The row that runs into
the next pass is read last and is not moved, as in `superpose.data.windows`.

Shapes: T steps of the stage, R rows of a step, N tokens of the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from superpose.core.draws import random_bits
from superpose.data.permute import permute


def spread(windows: npt.NDArray[np.int64], bag_size: int, nothing: int) -> npt.NDArray[np.int64]:
    """Single tokens [..., n] as bags [..., n x bag_size] of one token each, and `nothing` at their other places."""
    bags = np.full((*windows.shape, bag_size), nothing, dtype=np.int64)
    bags[..., 0] = windows
    return bags.reshape(*windows.shape[:-1], windows.shape[-1] * bag_size)


class StepRows(NamedTuple):
    """The rows of a step: so many of bags, each of so many tokens, and then ordinary ones."""

    bags: int
    bag_tokens: int
    ordinary: int
    ordinary_tokens: int

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return self.bags * self.bag_tokens + self.ordinary * self.ordinary_tokens

    def of_length(self, tokens: int, before: int) -> int:
        """How many of the rows before `before` have that many tokens."""
        bags = min(before, self.bags)
        return bags * (self.bag_tokens == tokens) + (before - bags) * (self.ordinary_tokens == tokens)

    def start(self, row: int) -> int:
        """Tokens of the rows before that one."""
        bags = min(row, self.bags)
        return bags * self.bag_tokens + (row - bags) * self.ordinary_tokens

    def row_at(self, token: int) -> int:
        """The row that holds a token, counted from the step's first."""
        of_bags = self.bags * self.bag_tokens
        if token < of_bags:
            return token // self.bag_tokens
        return self.bags + (token - of_bags) // self.ordinary_tokens


class _Row(NamedTuple):
    """A row of the stage: its step, counted from the stage's first, and its number there."""

    step: int
    number: int


@dataclass(frozen=True)
class UnevenRows:
    """
    Args:
        steps: the rows of each step [T].
        start: token of the endless text at which the stage begins.
        num_tokens: N, of a pass.
        key: of the shuffling.
    """

    steps: Sequence[StepRows]
    start: int
    num_tokens: int
    key: tuple[int | str, ...]

    def place(self, step: int, number: int) -> int:
        """Token of the endless text at which a row starts.

        Args:
            step: of the stage, counted from its first.
            number: of the row in the step.
        """
        rows, in_order = self.steps[step], self._in_order(_Row(step, number))
        tokens = rows.bag_tokens if number < rows.bags else rows.ordinary_tokens
        turn = in_order // self.num_tokens
        first, counts, begin = self._pass(turn)
        if in_order + tokens > (turn + 1) * self.num_tokens:
            return in_order
        index = self._before(_Row(step, number), tokens) - self._before(first, tokens)
        longer = sum(length * count for length, count in counts.items() if length > tokens)
        moved = permute(index, counts[tokens], random_bits(*self.key, turn, tokens))
        return begin + longer + moved * tokens

    def index(self, step: int, number: int) -> tuple[int, int]:
        """Tokens of a row, and how many rows of as many come before it in the stage."""
        rows = self.steps[step]
        tokens = rows.bag_tokens if number < rows.bags else rows.ordinary_tokens
        return tokens, self._before(_Row(step, number), tokens)

    def row_of_length(self, step: int, tokens: int, index: int) -> int:
        """The number in its step of the row that `index` gave so."""
        rows, number = self.steps[step], index - self._before(_Row(step, 0), tokens)
        return number if tokens == rows.bag_tokens else rows.bags + number

    def tokens_until(self, step: int) -> int:
        """Tokens of the stage's first steps."""
        return int(self._tokens_before[step])

    def _pass(self, turn: int) -> tuple[_Row, dict[int, int], int]:
        """The first row that starts in a pass, how many of each length end in it, and where the first starts."""
        if turn not in self._passes:
            self._passes[turn] = self._laid_out(turn)
        return self._passes[turn]

    @cached_property
    def _passes(self) -> dict[int, tuple[_Row, dict[int, int], int]]:
        return {}

    def _laid_out(self, turn: int) -> tuple[_Row, dict[int, int], int]:
        first = self._first_from(turn * self.num_tokens)
        end = min((turn + 1) * self.num_tokens, self.start + int(self._tokens_before[-1]))
        last = self._holding(end - 1)
        rows = self.steps[last.step]
        tokens = rows.bag_tokens if last.number < rows.bags else rows.ordinary_tokens
        # The first row that is none of those that are moved.
        stop = last if self._in_order(last) + tokens > end else _Row(last.step, last.number + 1)
        counts = {length: self._before(stop, length) - self._before(first, length) for length in self._lengths}
        return first, counts, self._in_order(first)

    def _first_from(self, token: int) -> _Row:
        """The first row that starts at a token of the endless text, or after it."""
        if token <= self.start:
            return _Row(0, 0)
        row = self._holding(token)
        if self._in_order(row) == token:
            return row
        count = self.steps[row.step].bags + self.steps[row.step].ordinary
        return _Row(row.step, row.number + 1) if row.number + 1 < count else _Row(row.step + 1, 0)

    def _holding(self, token: int) -> _Row:
        """The row that holds a token of the endless text, if none were moved."""
        within = token - self.start
        step = int(np.searchsorted(self._tokens_before, within, "right")) - 1
        return _Row(step, self.steps[step].row_at(within - int(self._tokens_before[step])))

    def _in_order(self, row: _Row) -> int:
        """Where a row would start if none were moved."""
        inside = self.steps[row.step].start(row.number) if row.number else 0
        return self.start + int(self._tokens_before[row.step]) + inside

    def _before(self, row: _Row, tokens: int) -> int:
        """How many rows of a length come before a row."""
        inside = self.steps[row.step].of_length(tokens, row.number) if row.number else 0
        return int(self._rows_before[tokens][row.step]) + inside

    @cached_property
    def _lengths(self) -> set[int]:
        return {length for rows in set(self.steps) for length in (rows.bag_tokens, rows.ordinary_tokens)}

    @cached_property
    def _tokens_before(self) -> npt.NDArray[np.int64]:
        """[T + 1]."""
        return np.concatenate([[0], np.cumsum([rows.tokens for rows in self.steps], dtype=np.int64)])

    @cached_property
    def _rows_before(self) -> dict[int, npt.NDArray[np.int64]]:
        """By their length, [T + 1]."""
        return {
            length: np.concatenate(
                [[0], np.cumsum([rows.of_length(length, rows.bags + rows.ordinary) for rows in self.steps])]
            )
            for length in self._lengths
        }
