"""Batches of TorchTitan from a prepared store (`superpose prepare`), folded.

What a step reads is a function of the step (`superpose.data.windows.WindowPlan`), so the loader's state is one number,
and a run may go on with other numbers of ranks or parts of a step.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader

from superpose.core.fold import document_positions, split_window
from superpose.core.loss import target_weights
from superpose.core.schedule import Schedule
from superpose.data.loader import read_ahead
from superpose.data.store import TokenStore
from superpose.data.windows import Expand, WindowPlan
from superpose.integrations.torchtitan.loss import mark_positions

Batch = tuple[dict[str, Tensor], Tensor]
"""`{"input": tokens [B, L] or bags [B, L, S], "positions": [B, L]}` and labels [B, L] or [B, L, S]."""

Attention = Literal["row", "document"]
"""Whether a latent attends to all before it in its row, or inside its document alone."""


def open_store(path: str | None) -> TokenStore:
    """The store at a path of the configuration; a ValueError if none is given, or there is no whole store."""
    if not path:
        raise ValueError("no text to train on; give --dataloader.dataset_path, a store that `superpose prepare` made")
    return TokenStore.open(Path(path))


def batch_of(inputs: Tensor, labels: Tensor, attention: Attention, end_of_text: int) -> Batch:
    """Adds the positions [B, L] of the latents, which in TorchTitan also say which document one belongs to."""
    of_rows = torch.arange(inputs.shape[1]).repeat(inputs.shape[0], 1)
    positions = document_positions(inputs, end_of_text) if attention == "document" else of_rows
    return {"input": inputs.contiguous(), "positions": positions}, labels.contiguous()


class _Reader(BaseDataLoader):
    """One rank's reader of a store."""

    def __init__(
        self, config: Any, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **_: Any
    ) -> None:
        self.config, self.store = config, open_store(config.dataset_path)
        self.rank, self.ranks, self.latents, self.rows = dp_rank, dp_world_size, seq_len, local_batch_size


class StoreLoader(_Reader):
    """A step's windows, this rank's rows of them, part by part: bags in superposition, single tokens in recovery."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        dataset_path: str | None = None
        """The store."""
        seed: int = 1
        """Of the order of the data."""
        documents: Literal["joined", "aligned"] = "joined"
        """Whether bags run across the ends of documents, or every document starts a new bag."""
        attention: Attention = "row"
        """"document" needs a model with FlexAttention or variable-length attention."""
        schedule: Annotated[Schedule | None, tyro.conf.Suppress] = None
        expand: Annotated[Expand, tyro.conf.Suppress] = "sequence"
        rows: Annotated[int, tyro.conf.Suppress] = -1
        rows_per_rank: Annotated[int, tyro.conf.Suppress] = -1
        # The last four are the trainer's: the run's schedule, how its rows grow, `training.global_batch_size` and
        # `training.local_batch_size`.

    def __init__(self, config: Config, **place: Any) -> None:
        if config.schedule is None:
            raise ValueError("this loader needs a schedule; build it by the Trainer of superpose, see `superposed`")
        super().__init__(config, **place)
        rows = config.rows if config.rows > 0 else config.rows_per_rank * self.ranks
        self.parts, split = rows // (self.ranks * self.rows), self.store.train
        offsets = split.offsets if config.documents == "aligned" else None
        self.plan = WindowPlan(
            config.schedule,
            rows,
            self.latents,
            len(split.tokens),
            config.seed,
            config.expand,
            offsets,
            sources=split.sources,
        )
        self._read = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in read_ahead(self.read, range(self._read, self.plan.schedule.total_steps * self.parts)):
            self._read += 1
            yield batch

    def read(self, number: int) -> Batch:
        """This rank's part `number` of the run, counted from 0; a step has `parts`."""
        step, part = divmod(number, self.parts)
        # The parts of a step are shared out as if each were a rank of its own.
        window = self.plan.read(self.store.train.tokens, step, self.rank * self.parts + part, self.ranks * self.parts)
        computed = self.plan.schedule.step_at(step)
        inputs, targets = split_window(window, computed.bag_size, computed.mode)
        if targets.dim() == 3:
            targets = mark_positions(targets, target_weights(targets, computed.weighting))
        return batch_of(inputs, targets, self.config.attention, self.store.end_of_text)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._read // self.parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._read = state_dict["step"] * self.parts


class HeldOutLoader(_Reader):
    """The store's held-out side in single tokens, each predicted once: next-token evaluation in both phases.

    Every rank has as many batches; rows that would not fill one on each of them are left out.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        dataset_path: str | None = None
        """The store; that of the training side if not given."""
        infinite: bool = False
        """Whether to start again at the end; set by TorchTitan's validator."""
        attention: Annotated[Attention, tyro.conf.Suppress] = "row"

    def __init__(self, config: Config, **place: Any) -> None:
        super().__init__(config, **place)
        tokens = len(self.store.val.tokens)
        self.batches = (tokens - 1) // self.latents // (self.rows * self.ranks)
        if self.batches == 0:
            raise ValueError(
                f"the held-out side has {tokens:,} tokens, less than the {self.ranks * self.rows} rows of "
                f"{self.latents} that one validation step reads; hold out more, or lower training.local_batch_size"
            )

    def __iter__(self) -> Iterator[Batch]:
        tokens = self.store.val.tokens
        for number in itertools.count() if self.config.infinite else range(self.batches):
            first = (number % self.batches * self.ranks + self.rank) * self.rows
            starts = range(first * self.latents, (first + self.rows) * self.latents, self.latents)
            window = torch.stack([torch.from_numpy(tokens.read(start, self.latents + 1)) for start in starts])
            yield batch_of(window[:, :-1], window[:, 1:], self.config.attention, self.store.end_of_text)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take up: an evaluation starts at the beginning."""
