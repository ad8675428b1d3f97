"""Hugging Face Trainer: the user's model, TrainingArguments, dataset and callbacks, and a `Schedule`.

    trainer = SuperposeTrainer(model, args, train_dataset=dataset, schedule=Schedule(args.max_steps, 4, 0.3))
    trainer.train()
    trainer.save_model()        # an ordinary model

The training dataset is taken as one stream of tokens, row after row, and read by a `WindowPlan`: recovery goes on
where superposition stopped, and what a step reads is a function of the step, so that resuming replays nothing.
Evaluation is Trainer's own, on single tokens in both phases.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from superpose.core.ablations import Variant
from superpose.core.fold import split_window
from superpose.core.loss import Weighting, count_positions, target_weights
from superpose.core.model import SuperposedLM
from superpose.core.schedule import Schedule
from superpose.data.windows import WindowPlan
from superpose.models.build import model_flops_per_latent


class RowTokens:
    """The tokens of a dataset's rows, one row after another; padding is left out.

    Args:
        rows: a dataset with `input_ids` in each row and, if rows are padded, `attention_mask`.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self._ends = np.cumsum(self._lengths(), dtype=np.int64)
        if not len(self):
            raise ValueError("train_dataset holds no tokens; give rows with input_ids")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def row_length(self) -> int | None:
        """Tokens of each row, if all but the last have the same number."""
        lengths = set(np.diff(self._ends, prepend=0)[:-1].tolist()) or {len(self)}
        return lengths.pop() if len(lengths) == 1 else None

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The `length` tokens from place `start` on: int64 [length]. After the last token comes the first again."""
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
        row = self.rows[number]
        tokens = np.asarray(row["input_ids"], dtype=np.int64)
        mask = row.get("attention_mask")
        return tokens if mask is None else tokens[np.asarray(mask, dtype=bool)]

    def _lengths(self) -> Any:
        columns = getattr(self.rows, "column_names", None)
        # Of a table on disk the lengths are known without reading a row, unless its rows were chosen or padded.
        if columns and "attention_mask" not in columns and getattr(self.rows, "_indices", self) is None:
            return pyarrow.compute.list_value_length(self.rows.data.column("input_ids")).to_numpy()
        return np.array([len(self._row(number)) for number in range(len(self.rows))], dtype=np.int64)


class StepWindows(Dataset[dict[str, Tensor]]):
    """The windows of every forward pass of a run in turn, on one of the processes."""

    def __init__(self, plan: WindowPlan, tokens: Any, accumulate: int, rank: int, world_size: int) -> None:
        self.plan, self.tokens, self.accumulate = plan, tokens, accumulate
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.plan.schedule.total_steps * self.accumulate

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        step, part = divmod(number, self.accumulate)
        # The parts of a step are shared out as if each were a process of its own.
        place, places = self.rank * self.accumulate + part, self.world_size * self.accumulate
        return {"window": self.plan.read(self.tokens, step, place, places)}


class SwitchCallback(TrainerCallback):
    """Logs, evaluates and saves where one stage ends, if the Trainer does so at all.

    So no logged loss is a mean over bags and single tokens, and there is a checkpoint of just before the switch.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step in self.schedule.boundaries:
            control.should_log = True
            control.should_evaluate |= args.eval_strategy != "no"
            control.should_save |= args.save_strategy != "no"
        return control


class SuperposeTrainer(Trainer):
    """Trainer that begins with bags of tokens.

    Args:
        schedule: which bag size trains when; its `total_steps` is `TrainingArguments.max_steps`.
        latents: L, positions of a row; by default the length of the training dataset's rows, if they have one.
        weighting, variant, end_of_text: as in `superpose.SuperposedLM`.
        arguments: all that Trainer takes. `train_dataset` has `input_ids` in each row, packed or not; rows follow one
            another as a text. `data_collator` serves evaluation; by default labels are the tokens.

    The logged loss is called `bag_loss` during superposition, as it is not comparable with a next-token loss; beside
    it stand `bag_size`, `raw_tokens` and `latents`. A mixture of experts adds its router loss if its config says so,
    with the load counted over all processes. `per_device_train_batch_size` counts rows of L latents in both phases.

    Raises:
        ValueError: steps that differ, a dataset without tokens or length, or a model that does not fit.
    """

    def __init__(
        self,
        *arguments: Any,
        schedule: Schedule,
        latents: int | None = None,
        weighting: Weighting | Sequence[float] = "uniform",
        variant: Variant = "mce",
        end_of_text: int | None = None,
        **named: Any,
    ) -> None:
        self.schedule, self.latents = schedule, latents
        self.weighting, self.variant, self.end_of_text = weighting, variant, end_of_text
        named.setdefault("data_collator", next_token_collator)
        super().__init__(*arguments, **named)
        self.loss_is_scaled_for_ga = True
        if self.args.max_steps != schedule.total_steps:
            raise ValueError(
                f"TrainingArguments.max_steps is {self.args.max_steps}, the schedule's total_steps "
                f"{schedule.total_steps}; give both the same number"
            )
        if self.args.n_gpu > 1:
            raise ValueError("several GPUs in one process are not supported; start with accelerate launch or torchrun")
        if self.args.auto_find_batch_size:
            raise ValueError("auto_find_batch_size would change what each step reads; give per_device_train_batch_size")
        self.add_callback(SwitchCallback(schedule))

    def _inner_training_loop(self, *arguments: Any, **named: Any) -> Any:
        """All of `train` that comes after the model was built and a checkpoint loaded."""
        group = dist.group.WORLD if self.args.world_size > 1 else None
        lm = SuperposedLM(self.model, self.weighting, self.variant, self.end_of_text, group)
        if not self.is_fsdp_enabled:  # then some processes hold no weights yet
            lm.check()
        with superposed_forward(lm):
            return super()._inner_training_loop(*arguments, **named)

    @cached_property
    def plan(self) -> WindowPlan:
        """What each step reads of `tokens`."""
        args = self.args
        latents = self.latents or self.tokens.row_length
        if latents is None:
            raise ValueError("the rows of train_dataset differ in length; give latents, the positions of a row")
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return WindowPlan(self.schedule, rows, latents, len(self.tokens), seed)

    @cached_property
    def tokens(self) -> RowTokens:
        """The training dataset as a stream."""
        if not hasattr(self.train_dataset, "__len__") or not hasattr(self.train_dataset, "__getitem__"):
            raise ValueError(
                "train_dataset has no length: a streamed dataset cannot be read in a shuffled order and resumed; "
                "give a dataset on disk, or prepare the text with: superpose prepare"
            )
        return RowTokens(self.train_dataset)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Windows of each forward pass; every process reads its own, so nothing is left to share out."""
        args = self.args
        windows = StepWindows(
            self.plan, self.tokens, args.gradient_accumulation_steps, args.process_index, args.world_size
        )
        return DataLoader(
            windows,
            batch_size=1,
            collate_fn=_only,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a window in training; anything else is Trainer's."""
        if "window" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        stage = self.schedule.stage_at(self.state.global_step)
        # Processes average their gradients, so each divides by its own share of the step's latents.
        positions = None if num_items_in_batch is None else num_items_in_batch / self.args.world_size
        output = model(window=inputs["window"], bag_size=stage.bag_size, mode=stage.mode, normalizer=positions)
        return (output.loss, output) if return_outputs else output.loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Latents with a target in a whole step: all its forward passes, on all processes."""
        if not batch_samples or "window" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        stage = self.schedule.stage_at(self.state.global_step)
        positions = torch.zeros((), dtype=torch.int64)
        for batch in batch_samples:
            _, targets = split_window(batch["window"], stage.bag_size, stage.mode)
            targets = targets if targets.dim() == 3 else targets.unsqueeze(-1)
            positions += count_positions(targets, target_weights(targets, self.weighting))
        return self.accelerator.gather(positions.to(device)).sum()

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Adds what a step reads, and names a bag's loss what it is."""
        if "loss" in logs and self.state.global_step:
            step = self.state.global_step
            stage = self.schedule.stage_at(step - 1)
            if stage.bag_size > 1:
                logs["bag_loss"] = logs.pop("loss")
            logs["bag_size"] = stage.bag_size
            logs["raw_tokens"] = self.plan.raw_tokens(step)
            logs["latents"] = step * self.plan.rows * self.plan.latents
        super().log(logs, *arguments, **named)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of a forward and a backward pass: latents count, not the tokens in their bags."""
        if "window" not in inputs:
            return int(super().floating_point_ops(inputs))
        return round(len(inputs["window"]) * self.plan.latents * self._flops_per_latent)

    @cached_property
    def _flops_per_latent(self) -> float:
        return model_flops_per_latent(self.accelerator.unwrap_model(self.model), self.plan.latents)


@contextmanager
def superposed_forward(lm: SuperposedLM) -> Iterator[None]:
    """Meanwhile the model's forward pass, given a window, is that of `lm`; called otherwise it is its own.

    The loss has to be computed inside the forward pass of the module that DDP or FSDP wraps. The model's class, its
    parameters and their names stay as they are.
    """
    model = lm.model
    own = vars(model).get("forward")
    ordinary = model.forward

    @wraps(ordinary)
    def forward(*arguments: Any, window: Tensor | None = None, **named: Any) -> Any:
        return ordinary(*arguments, **named) if window is None else lm(window, **named)

    model.forward = forward
    try:
        yield
    finally:
        # Where mixed precision has wrapped it since, taking it out is not ours; without a window it is the same.
        if vars(model).get("forward") is forward:
            del model.forward
            if own is not None:
                model.forward = own


def next_token_collator(rows: list[Any]) -> dict[str, Any]:
    """Transformers' default collator, with the tokens as labels where there are none."""
    batch: dict[str, Any] = default_data_collator(rows)
    if "labels" not in batch and "input_ids" in batch:
        labels = batch["input_ids"]
        mask = batch.get("attention_mask")
        batch["labels"] = labels if mask is None else labels.masked_fill(mask == 0, -100)
    return batch


def _only(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return items[0]
