"""The windows of each step from a stream: any iterable of rows of tokens, of any length, read once and in its order.

    rows of the source    a a a|b b|c c c c c|d ...                one text, row after row
    superposition         [a a a b b c c c c][c ...                windows of S x L tokens, and a bag more
    recovery              goes on at the token where the next window of superposition would have started

As in `superpose.data.windows` windows are S x L tokens apart and a bag longer, so each token is input once and target
once; here nothing is shuffled, as that is done best where rows are read. A step reads S times more in superposition.
"""

import copy
import hashlib
import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from superpose.core.fold import IGNORE_INDEX, window_length
from superpose.core.schedule import Schedule
from superpose.data.tokens import TokenArray
from superpose.data.uneven import spread
from superpose.data.windows import WindowPlan
from superpose.errors import UserError

logger = logging.getLogger(__name__)

_AHEAD = 16
"""Rows read ahead at a checkpoint, to prove on resuming that the source goes on with just these."""


@dataclass(frozen=True)
class RowReader:
    """Turns a row into its tokens.

    Args:
        called: what messages call the rows' source.
        vocab_size: V; ids are of 0 to V - 1.
        never_asked: a token that is never a target, as some collators have it of the one that pads.
    """

    called: str = "the stream"
    vocab_size: int | None = None
    never_asked: int | None = None

    def __call__(self, row: Any, number: int) -> npt.NDArray[np.int64]:
        """The tokens of a row, int64 [n], its padding left out; a token t that is never asked for is -1 - t.

        Args:
            row: a list, array or tensor of ids, or a mapping with `input_ids`; `attention_mask` is 0 for padding;
                `labels` are the row's own tokens, or -100 for one that is read but never asked for.
            number: of the row, for messages.

        Raises:
            ValueError: the row does not hold what it should.
        """
        if not hasattr(row, "get"):
            row = {"input_ids": row}
        tokens = self._integers(row, "input_ids", number)
        if tokens is None:
            raise ValueError(f"row {number} of {self.called} has no input_ids; give each row its token ids")
        labels, mask = self._integers(row, "labels", number), self._integers(row, "attention_mask", number)
        for name, values in (("labels", labels), ("attention_mask", mask)):
            if values is not None and len(values) != len(tokens):
                raise ValueError(
                    f"row {number} of {self.called} has {len(values)} {name} for {len(tokens)} input_ids; give as many"
                )
        asked = tokens != self.never_asked if labels is None else labels != IGNORE_INDEX
        if mask is not None:
            tokens, asked = tokens[mask != 0], asked[mask != 0]
            labels = None if labels is None else labels[mask != 0]
        if labels is not None and (labels != tokens)[asked].any():
            raise ValueError(
                f"the labels of row {number} of {self.called} are others than its input_ids; a bag asks for the tokens "
                f"themselves, so give them as labels, or {IGNORE_INDEX}"
            )
        wrong = tokens < 0 if self.vocab_size is None else (tokens < 0) | (tokens >= self.vocab_size)
        if wrong.any():
            raise ValueError(
                f"row {number} of {self.called} holds the token id {tokens[wrong][0]}; expected 0 or more"
                + ("" if self.vocab_size is None else f", and less than the model's vocabulary of {self.vocab_size}")
            )
        return np.where(asked, tokens, -1 - tokens)

    def _integers(self, row: Any, name: str, number: int) -> npt.NDArray[np.int64] | None:
        """A row's list of that name; None where it has none."""
        given = row.get(name)
        if given is None:
            return None
        try:
            values = np.asarray(given)
        except (TypeError, ValueError):
            values = np.asarray(None)
        if values.ndim != 1 or (values.dtype.kind not in "iub" and values.size):
            raise ValueError(
                f"row {number} of {self.called} has no list of integers as its {name}; give one for each token"
            )
        return values.astype(np.int64)


NOTHING = np.iinfo(np.int64).min
"""Stands where a window holds no token, which `IGNORE_INDEX` cannot where -1 - t is a token."""


def as_batch(windows: Tensor, bag_size: int) -> dict[str, Any]:
    """What a forward pass reads: `input_ids`, the `bag_size` they were cut for, and, where some tokens are never asked
    for (-1 - t), which are: `target_mask`. Where there is `NOTHING`, `input_ids` are `IGNORE_INDEX`."""
    ids = torch.where(windows < 0, -1 - windows, windows).masked_fill(windows == NOTHING, IGNORE_INDEX)
    batch = {"input_ids": ids, "bag_size": bag_size}
    never = (windows < 0) & (windows != NOTHING)
    return batch | {"target_mask": ~never} if never.any() else batch


def _cut(tokens: npt.NDArray[np.int64], length: int, width: int, count: int) -> npt.NDArray[np.int64]:
    """So many windows of a length whose starts lie `width` tokens apart."""
    if not count:
        return np.zeros((0, length), dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(tokens, length)[: (count - 1) * width + 1 : width]


class Batches(IterableDataset[dict[str, Any]]):
    """The windows of every forward pass of a run in turn, on one process: what a loop of one's own goes through.

    Each item is what a forward pass reads: `input_ids` int64
    [rows / (world_size x accumulate), `window_length(latents, bag_size, mode)`], `bag_size` of its step, and
    `target_mask` where tokens are never asked for. Going through it goes on where it stopped. `WindowStream` cuts
    windows from a stream, `PlannedWindows` from a text at hand; both have `state_dict` and `load_state_dict`.
    """

    def __init__(
        self, schedule: Schedule, rows: int, latents: int, accumulate: int, rank: int, world_size: int
    ) -> None:
        if rows < 1 or latents < 1 or accumulate < 1 or rows % (world_size * accumulate):
            raise UserError(
                f"{rows} rows of {latents} latents cannot be shared out evenly among {world_size} processes and "
                f"{accumulate} forward passes of a step; give a multiple"
            )
        for stage in schedule.stages:
            stage.ordinary_of(rows)  # says what would not be whole rows
        if not 0 <= rank < world_size:
            raise UserError(f"rank is {rank} of {world_size} processes; give 0 to {world_size - 1}")
        self.schedule, self.rows, self.latents = schedule, rows, latents
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self.position = 0
        """Forward passes read, the next one's number."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UserError(f"num_workers is {worker.num_workers}, and each would read all of the stream; give 0 or 1")
        while self.position < len(self):
            yield self.read()

    def __len__(self) -> int:
        """Forward passes of the whole run on a process."""
        return self.schedule.total_steps * self.accumulate

    @abstractmethod
    def read(self) -> dict[str, Any]:
        """The batch of the next forward pass."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain values: the same on all processes."""
        step, part = divmod(self.position, self.accumulate)
        same = {name: getattr(self, name) for name in ("rows", "latents", "accumulate")}
        return {"schedule": self.schedule.to_dict(), **same, "step": step, "part": part}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called, on as many processes or others.

        Raises:
            UserError: the run had another batch or row length.
            ValueError: the schedule is another.
        """
        self.schedule.check_same(state["schedule"])
        for name in ("rows", "latents", "accumulate"):
            if state[name] != getattr(self, name) and (name != "accumulate" or state["part"]):
                raise UserError(f"the stream was cut by {name} {state[name]}, not {getattr(self, name)}; give the same")
        self.position = state["step"] * self.accumulate + state["part"]

    @property
    def _share(self) -> tuple[int, int, int]:
        """The step of the next pass, and which of how many parts of its rows: as if each were a process of its own."""
        step, part = divmod(self.position, self.accumulate)
        return step, self.rank * self.accumulate + part, self.world_size * self.accumulate


class PlannedWindows(Batches):
    """The windows that a `WindowPlan` chooses from a text at hand: shuffled, and a function of the step.

    Args:
        plan: of the run.
        tokens: those it was made for.
        accumulate, rank, world_size: as in `WindowStream`.
    """

    def __init__(
        self, plan: WindowPlan, tokens: TokenArray, accumulate: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(plan.schedule, plan.rows, plan.latents, accumulate, rank, world_size)
        self.plan, self.tokens = plan, tokens

    def read(self) -> dict[str, Any]:
        """The batch of the next forward pass.

        Raises:
            UserError: the tokens on disk were altered.
        """
        step, place, places = self._share
        self.position += 1
        return as_batch(self.plan.read(self.tokens, step, place, places, NOTHING), self.schedule.bag_size_at(step))


class WindowStream(Batches):
    """The windows of a stream, in its order.

    Args:
        source: rows, see `RowReader`; a list, a generator, or an `IterableDataset` of datasets or of torch. All
            processes are given the same rows in the same order, and each takes its own windows of them.
        schedule: of bag sizes.
        rows: rows of a step, all processes and all its forward passes together.
        latents: L, positions of a row.
        accumulate: forward passes of a step on a process.
        rank, world_size: which of how many processes this is. Where each has a part of the source of its own, every
            one is 0 of 1, and `rows` are its own.
        reader: turns rows into tokens.

    Raises:
        UserError: the rows of a step cannot be shared out evenly.
    """

    def __init__(
        self,
        source: Iterable[Any],
        schedule: Schedule,
        rows: int,
        latents: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        reader: RowReader | None = None,
    ) -> None:
        super().__init__(schedule, rows, latents, accumulate, rank, world_size)
        if schedule.mixes:
            raise UserError(
                "a stream is read in its own order, so the mixture of a stage would be ignored; mix rows where they "
                "are read, or train on a prepared store with named sources"
            )
        self.source, self.reader = source, reader or RowReader()
        self._tokens = np.zeros(0, dtype=np.int64)  # from the first window of the step on
        self._rows: Iterator[Any] | None = None
        self._read = 0  # rows of the source that are in `_tokens` or were before
        self._ahead: deque[npt.NDArray[np.int64]] = deque()  # the rows after these
        self._mark: dict[str, Any] = {"source": None, "read": 0, "next": []}  # the source before it was read ahead

    def raw_tokens(self, until: int | None = None) -> int:
        """Tokens read in steps 0 to `until - 1`, by default all."""
        return self.schedule.raw_tokens(self.rows * self.latents, until)

    def read(self) -> dict[str, Any]:
        """The batch of the next forward pass.

        Raises:
            UserError: the source has ended.
            ValueError: a row does not hold what it should.
        """
        step, place, places = self._share
        computed = self.schedule.step_at(step)
        width = computed.raw_tokens_per_latent * self.latents
        longest = self.latents + computed.extra_heads
        length = window_length(longest, computed.bag_size, computed.mode)
        ordinary = computed.ordinary_of(self.rows)
        of_bags = self.rows - ordinary
        bags, used = of_bags * width, of_bags * width + ordinary * self.latents
        self._fill(max(bags - width + length, used + 1 + computed.extra_heads if ordinary else 0), step)
        first, share = place * (self.rows // places), self.rows // places
        windows = _cut(self._tokens, length, width, of_bags)[first : first + share]
        if ordinary:
            single = _cut(self._tokens[bags:], longest + 1, self.latents, ordinary)
            own = single[max(0, first - of_bags) : max(0, first + share - of_bags)]
            windows = np.concatenate([windows, spread(own, computed.bag_size, NOTHING)])
        batch = as_batch(torch.from_numpy(windows.copy()), computed.bag_size)
        if (place + 1) % self.accumulate == 0:
            self._tokens = self._tokens[used:]
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: plain values, and the source's own state where it has one.

        It is the same on all processes. With it, the same source and the same settings, a stream goes on exactly;
        on more or fewer processes too.
        """
        if self._rows is not None and not self._ahead:
            own = getattr(self.source, "state_dict", None)
            source = copy.deepcopy(own()) if own is not None and self._read else None
            self._ahead.extend(self._next_rows(self._rows, self._read))
            self._mark = {"source": source, "read": self._read, "next": [_digest(row) for row in self._ahead]}
        return super().state_dict() | {"tokens": self._tokens.tolist(), "read": self._read, "mark": self._mark}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a stream stood when `state_dict` was called.

        The source goes on by its own state where it has one, and is otherwise read again from its start. Either way
        the rows that come next have to be those that came then: the buffer of a shuffled source, which its state may
        lack, is found out, and the rows are read again.

        Raises:
            UserError: the rows are others, or the run had another batch or row length.
            ValueError: the schedule is another.
        """
        super().load_state_dict(state)
        self._tokens = np.array(state["tokens"], dtype=np.int64)
        self._read, self._mark = state["read"], state["mark"]
        before = self._mark["read"]
        load = getattr(self.source, "load_state_dict", None)
        if self._mark["source"] is not None and load is not None:
            afresh = copy.deepcopy(self.source)  # as it is before it is told where to go on
            load(copy.deepcopy(self._mark["source"]))
            if self._goes_on(iter(self.source)):
                return
            logger.warning("the state of the source does not hold all of it; reading its %d rows again", before)
            self.source = afresh
        rows = iter(self.source)
        again = sum(1 for _ in zip(range(before), rows, strict=False))
        if again < before or not self._goes_on(rows):
            raise UserError(
                f"the source of the stream holds other rows after its first {before:,} than when it was stopped; "
                f"give the same, shuffled by the same seed"
            )

    def _goes_on(self, rows: Iterator[Any]) -> bool:
        """Whether a source, read up to the mark, goes on with the rows that came then; if so it is gone on with."""
        self._rows = rows
        self._ahead = deque(self._next_rows(rows, self._mark["read"]) if self._mark["next"] else ())
        same: bool = [_digest(row) for row in self._ahead] == self._mark["next"]
        for _ in range(self._read - self._mark["read"] if same else 0):
            self._ahead.popleft()
        return same

    def _next_rows(self, rows: Iterator[Any], first: int) -> list[npt.NDArray[np.int64]]:
        return [self.reader(row, number) for number, row in zip(range(first, first + _AHEAD), rows, strict=False)]

    def _fill(self, count: int, step: int) -> None:
        """Reads rows until there are so many tokens."""
        if self._rows is None:
            self._rows = iter(self.source)
        parts, held = [self._tokens], len(self._tokens)
        while held < count:
            row = self._ahead.popleft() if self._ahead else self._next_row(self._rows, step)
            parts.append(row)
            held += len(row)
            self._read += 1
        self._tokens = np.concatenate(parts) if len(parts) > 1 else self._tokens

    def _next_row(self, rows: Iterator[Any], step: int) -> npt.NDArray[np.int64]:
        for row in rows:
            return self.reader(row, self._read)
        raise UserError(
            f"the stream ended at step {step} of {self.schedule.total_steps}, after {self._read:,} rows; "
            f"give more text or fewer steps, or repeat it"
        )


def _digest(row: npt.NDArray[np.int64]) -> str:
    return hashlib.sha256(row.tobytes()).hexdigest()[:16]


class StreamSteps(Dataset[dict[str, Any]]):
    """A stream by the numbers of forward passes, for a loader that skips those of steps done before.

    They are read in ascending order; what is left out on the way is read and dropped.
    """

    def __init__(self, stream: WindowStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, number: int) -> dict[str, Any]:
        assert self.stream.position <= number
        while self.stream.position < number:
            self.stream.read()
        return self.stream.read()
