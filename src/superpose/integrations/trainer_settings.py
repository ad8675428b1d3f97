"""What Hugging Face's Trainer can be set to that would have no effect on bags: refused by name."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    DefaultDataCollator,
    Trainer,
    default_data_collator,
)

from superpose.core.schedule import Schedule
from superpose.data.store import TokenStore
from superpose.data.stream import RowReader
from superpose.integrations.rows import COLUMNS

_WEIGHTS = (
    *("weight", "weights", "sample_weight", "sample_weights", "loss_weight", "loss_weights", "loss_mask"),
    *("completion_mask", "assistant_masks"),
)
"""Columns that weigh rows or tokens in other trainers."""


def check_arguments(trainer: Trainer, total_steps: int) -> None:
    """Says which argument of a trainer would not do in training what it does in Trainer.

    Raises:
        ValueError: one would not; in one sentence, which and what to do.
    """
    for message in _ignored(trainer, total_steps):
        raise ValueError(message)


def check_schedule(schedule: Schedule) -> None:
    """
    Raises:
        ValueError: a stage asks for what Trainer's optimizers and checkpoints, which are the model's, can't hold.
    """
    for number, stage in enumerate(schedule.stages, 1):
        if stage.extra_heads:
            raise ValueError(
                f"stage {number} of the schedule has extra_heads, which SuperposeTrainer does not train; use superpose "
                f"train, or SuperposedLM(model, extra_heads={stage.extra_heads}) in a loop of your own"
            )


def check_rows(trainer: Trainer) -> None:
    """Says what of a trainer's training dataset, or of what its collator makes of rows, would be dropped.

    Raises:
        ValueError: something would; in one sentence, what it is and what to do.
    """
    for message in _dropped(trainer):
        raise ValueError(message)


def _ignored(trainer: Trainer, total_steps: int) -> Iterator[str]:
    args = trainer.args
    cut = args.accelerator_config
    if args.max_steps != total_steps:
        yield (
            f"TrainingArguments.max_steps is {args.max_steps}, the schedule's total_steps {total_steps}; "
            f"give both the same number"
        )
    if args.n_gpu > 1:
        yield "several GPUs in one process are not supported; start with accelerate launch or torchrun"
    if args.auto_find_batch_size:
        yield "auto_find_batch_size would change what each step reads; give per_device_train_batch_size"
    if args.neftune_noise_alpha:
        yield "neftune_noise_alpha adds its noise where tokens are embedded one by one, and not in bags; leave it out"
    if trainer.compute_loss_func is not None:
        yield (
            "compute_loss_func would not be called, since a bag has a loss of its own; leave it out, or set "
            "label_smoothing_factor, or labels of -100 in train_dataset"
        )
    if getattr(args, "train_sampling_strategy", "random") != "random":
        yield f"train_sampling_strategy is {args.train_sampling_strategy!r}, but {_ORDER}; leave it at 'random'"
    if getattr(args, "group_by_length", False):
        yield f"group_by_length chooses rows, but {_ORDER}; leave it out"
    if args.ignore_data_skip:
        yield "ignore_data_skip would resume with windows of the first steps, cut for their bag size; leave it out"
    if not getattr(args, "dataloader_in_order", True):
        yield "dataloader_in_order=False would read windows in another order than the schedule's; leave it out"
    if cut.split_batches:
        yield "split_batches is not supported; count the rows of one process in per_device_train_batch_size"
    if cut.dispatch_batches:
        yield "dispatch_batches is not supported, as every process reads its own windows; leave it out"
    if not cut.use_seedable_sampler:
        yield f"use_seedable_sampler=False chooses a sampler, but {_ORDER}; leave it out"
    if args.world_size > 1 and not args.average_tokens_across_devices:
        yield "average_tokens_across_devices=False is not supported: a step has one mean over all; leave it out"
    if getattr(trainer, "is_fsdp_xla_enabled", False):
        yield "FSDP on XLA is not supported; take FSDP2 on GPUs"
    if args.fsdp and not trainer.is_fsdp_enabled:
        yield "fsdp would be ignored: accelerate shards over accelerators alone, not over CPUs; leave it out"
    if trainer.is_deepspeed_enabled:
        yield "DeepSpeed is not supported; take FSDP, or train with TorchTitan"
    if _parts_of_a_row(trainer) > 1 or getattr(trainer, "is_distributed_loading_by_transformers", False):
        yield (
            "tensor, context and sequence parallelism are not supported: each process reads rows of its own; "
            "take DDP or FSDP, or train with TorchTitan"
        )
    if args.use_liger_kernel and (args.liger_kernel_config or {}).get("fused_linear_cross_entropy", True):
        yield (
            "use_liger_kernel would put a forward pass with its own loss in place of the one with bags; give "
            "liger_kernel_config={'fused_linear_cross_entropy': False, 'cross_entropy': False}"
        )


_ORDER = "a step's windows are a function of its number and the seed"


def _dropped(trainer: Trainer) -> Iterator[str]:
    rows, collator = trainer.train_dataset, trainer.data_collator
    kind = getattr(collator, "__name__", type(collator).__name__)
    names = column_names(rows)
    if rows is not None and is_streamed(rows) and not hasattr(rows, "__iter__"):
        yield (
            f"train_dataset is {type(rows).__name__}, which has neither a length nor rows to go through; give a "
            f"dataset, a stream of rows, or a prepared store"
        )
    elif is_streamed(rows) and trainer.args.dataloader_num_workers:
        yield "dataloader_num_workers is not for a streamed train_dataset, which the process itself reads; leave it out"
    elif never_asked(collator) is not None and "labels" in names:
        yield f"{kind} writes labels over those of train_dataset; leave out one of the two"
    elif not _changes_nothing(collator):
        yield (
            f"data_collator is {kind}, which would not be called in training, whose windows run across rows; apply it "
            f"to train_dataset, or set trainer.data_collator afterwards, for evaluation alone"
        )
    yield from _dropped_columns(trainer, names)


def _dropped_columns(trainer: Trainer, names: Iterable[str]) -> Iterator[str]:
    forward = inspect.signature(trainer.model.forward).parameters
    for name in names:
        if name in COLUMNS:
            continue
        if name in _WEIGHTS:
            yield f"train_dataset's column {name} would weigh nothing; mark tokens not to be learnt by labels of -100"
        if name in forward:
            yield f"train_dataset's column {name} goes to the model's forward pass, which bags do not take; remove it"
        if not trainer.args.remove_unused_columns:
            yield f"train_dataset's column {name} would be dropped; remove it, or leave remove_unused_columns at True"


def is_streamed(rows: Any) -> bool:
    """Whether a training dataset is gone through in its order, as it cannot be read at any place."""
    if isinstance(rows, TokenStore) or rows is None:
        return False
    return isinstance(rows, IterableDataset) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__"))


@dataclass(frozen=True)
class StreamReader(RowReader):
    """A reader of rows that checks their columns, which a stream shows no earlier."""

    trainer: Trainer | None = None

    def __call__(self, row: Any, number: int) -> npt.NDArray[np.int64]:
        if not number and self.trainer is not None:
            for message in _dropped_columns(self.trainer, getattr(row, "keys", list)()):
                raise ValueError(message)
        return super().__call__(row, number)


def column_names(rows: Any) -> list[str]:
    """Names of a dataset's columns: its own, or those of its first row."""
    names = getattr(rows, "column_names", None)
    if names is None and not is_streamed(rows) and not isinstance(rows, TokenStore) and rows is not None and len(rows):
        names = getattr(rows[0], "keys", list)()
    return list(names or ())


def never_asked(collator: Any) -> int | None:
    """The token that a collator for language models takes out of the labels, wherever it stands: the one that pads."""
    if type(collator) is not DataCollatorForLanguageModeling or collator.mlm:
        return None
    token: int | None = collator.tokenizer.pad_token_id
    return token


def _changes_nothing(collator: Any) -> bool:
    """Whether a collator makes the same tokens and labels of a row as are in it, but for padding."""
    if type(collator) is DataCollatorForLanguageModeling:
        return not collator.mlm
    ours = getattr(collator, "__module__", "") == "superpose.integrations.transformers"
    return collator is default_data_collator or ours or type(collator) in (DataCollatorWithPadding, DefaultDataCollator)


def _parts_of_a_row(trainer: Trainer) -> int:
    """Processes that share the rows of one."""
    sizes = [getattr(trainer, f"get_{kind}_size", lambda: 1)() for kind in ("tp", "cp", "sp")]
    return int(max(sizes))
