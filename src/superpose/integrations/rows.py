"""The training dataset of a Hugging Face Trainer as one stream of tokens, and what each forward pass reads of it."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute
from torch.utils.data import Dataset

from superpose.data.stream import NOTHING, RowReader, as_batch
from superpose.data.windows import WindowPlan

COLUMNS = ("input_ids", "attention_mask", "labels")
"""What is read of a row."""
_MASKS_AT_A_TIME = 4096


class RowTokens:
    """The tokens of a dataset's rows, one row after another; padding, wherever it stands, is left out.

    Args:
        rows: a dataset; what its rows hold is told by `RowReader`, as are the other two.

    Raises:
        ValueError: a row without `input_ids`, or no tokens at all; while reading, a row that does not hold what it
            should.
    """

    def __init__(self, rows: Any, vocab_size: int | None = None, never_asked: int | None = None) -> None:
        self.rows, self.reader = rows, RowReader("train_dataset", vocab_size, never_asked)
        self._ends = np.cumsum(self._lengths(), dtype=np.int64)
        if not len(self):
            raise ValueError("train_dataset holds no tokens; give rows with input_ids")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def row_length(self) -> int | None:
        """Tokens of each row, if all but the last have the same number."""
        lengths = np.unique(np.diff(self._ends, prepend=0)[:-1])
        if not len(lengths):
            return len(self)
        return int(lengths[0]) if len(lengths) == 1 else None

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The `length` tokens from place `start` on: int64 [length]. After the last token comes the first again.

        A token t that is never asked for is -1 - t.
        """
        tokens = np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            place = (start + filled) % len(self)
            number = bisect_right(self._ends, place)
            row = self._row(number)
            part = row[len(row) - (int(self._ends[number]) - place) :][: length - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
        return tokens

    def _row(self, number: int) -> npt.NDArray[np.int64]:
        return self.reader(self.rows[number], number)

    def _lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, without its padding."""
        columns = _columns(self.rows)
        if columns is None:
            return np.array([self._length(number) for number in range(len(self.rows))], dtype=np.int64)
        if "input_ids" not in columns:
            raise ValueError(f"train_dataset has no input_ids but {', '.join(columns)}; tokenize it")
        mask = columns.get("attention_mask")
        lengths: npt.NDArray[np.int64] = (
            pyarrow.compute.list_value_length(columns["input_ids"]).fill_null(-1).to_numpy().astype(np.int64)
        )
        if mask is not None:
            sums = np.concatenate([np.zeros(0, dtype=np.int64), *map(_sums, _pieces(mask))])
            lengths = np.where((lengths < 0) | (sums < 0), lengths, sums)
        chosen = self.rows._indices  # of select, shuffle and the like; None for the whole table
        lengths = lengths if chosen is None else lengths[chosen.column(0).to_numpy()]
        if (lengths < 0).any():
            self._row(int(np.argmax(lengths < 0)))  # says what is wrong
        return lengths

    def _length(self, number: int) -> int:
        row = self.rows[number]
        try:
            ids, mask = row["input_ids"], row.get("attention_mask")
            if isinstance(mask, list):
                return len(mask) - mask.count(0)
            return len(ids) if mask is None else int(np.count_nonzero(np.asarray(mask)))
        except (KeyError, TypeError, AttributeError):
            return len(self._row(number))  # says what is wrong


class StepWindows(Dataset[dict[str, Any]]):
    """The windows of every forward pass of a run in turn, on one of the processes."""

    def __init__(self, plan: WindowPlan, tokens: Any, accumulate: int, rank: int, world_size: int) -> None:
        self.plan, self.tokens, self.accumulate = plan, tokens, accumulate
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.plan.schedule.total_steps * self.accumulate

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The window as `input_ids`, the `bag_size` it was cut for, and, where some are never asked for, which."""
        step, part = divmod(number, self.accumulate)
        # The parts of a step are shared out as if each were a process of its own.
        place, places = self.rank * self.accumulate + part, self.world_size * self.accumulate
        window = self.plan.read(self.tokens, step, place, places, NOTHING)
        return as_batch(window, self.plan.schedule.bag_size_at(step))


def _columns(rows: Any) -> dict[str, pyarrow.ChunkedArray] | None:
    """Columns of the table in which the datasets library holds rows; None where rows are made when they are read."""
    form = getattr(rows, "format", None)
    if not hasattr(rows, "_indices") or not isinstance(form, dict) or form["type"] == "custom":
        return None
    return {name: rows.data.column(name) for name in form["columns"]}


def _pieces(masks: pyarrow.ChunkedArray) -> Iterator[pyarrow.Array]:
    """A column a few rows at a time, since each token of them takes memory while it is counted."""
    for chunk in masks.chunks:
        for start in range(0, len(chunk), _MASKS_AT_A_TIME):
            yield chunk.slice(start, _MASKS_AT_A_TIME)


def _sums(masks: pyarrow.Array) -> npt.NDArray[np.int64]:
    """How many are not 0 in each of some masks; -1 where there is no mask."""
    counts: npt.NDArray[np.int64] = pyarrow.compute.list_value_length(masks).fill_null(-1).to_numpy()
    lengths = np.maximum(counts, 0)
    before = np.concatenate([[0], np.cumsum(masks.flatten().to_numpy(zero_copy_only=False) != 0)])
    ends = np.cumsum(lengths)
    return np.where(counts < 0, counts, before[ends] - before[ends - lengths]).astype(np.int64)
