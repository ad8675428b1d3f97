"""Hugging Face Trainer: the user's model, TrainingArguments, dataset and callbacks, and a `Schedule`.

    trainer = SuperposeTrainer(model, args, train_dataset=dataset, schedule=Schedule(args.max_steps, 4, 0.3))
    trainer.train()
    trainer.save_model()        # an ordinary model

The training dataset is taken as one text, row after row. One with a length, and a prepared store, is read by a
`WindowPlan`: what a step reads is a function of the step. A streamed one is read by a `WindowStream`, whose state is in
each checkpoint. Either way recovery goes on where superposition stopped, and resuming replays nothing.
Evaluation is Trainer's own, on single tokens in both phases.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, wraps
from itertools import islice
from typing import Any

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
from transformers.trainer_callback import ExportableState

from superpose.core.ablations import Variant
from superpose.core.fold import split_window
from superpose.core.loss import Weighting, count_positions, target_weights
from superpose.core.model import SuperposedLM
from superpose.core.schedule import Schedule
from superpose.data.store import TokenStore
from superpose.data.stream import StreamSteps, WindowStream
from superpose.data.tokens import TokenText
from superpose.data.windows import WindowPlan
from superpose.integrations.rows import RowTokens, StepWindows
from superpose.integrations.trainer_settings import (
    StreamReader,
    check_arguments,
    check_rows,
    check_schedule,
    is_streamed,
    never_asked,
)
from superpose.models.build import model_flops_per_latent

logger = logging.getLogger(__name__)


class SwitchCallback(TrainerCallback, ExportableState):
    """Logs, evaluates and saves where one stage ends, if the Trainer does so at all, and keeps the schedule.

    So no logged loss is a mean over bags and single tokens, and there is a checkpoint of just before the switch. The
    schedule, and where a streamed dataset stands, are in each checkpoint's trainer_state.json.

    Args:
        schedule: of the run, as it is or as `to_dict`, from which Trainer makes stored callbacks again.
    """

    def __init__(self, schedule: Schedule | dict[str, Any]) -> None:
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule.from_dict(schedule)
        self.stream: WindowStream | None = None

    def state(self) -> dict[str, Any]:
        args = {"schedule": self.schedule.to_dict()}
        return {"args": args, "attributes": {}, "stream": self.stream and self.stream.state_dict()}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step in self.schedule.boundaries:
            control.should_log = True
            control.should_evaluate |= args.eval_strategy != "no"
            control.should_save |= args.save_strategy != "no"
        return control


class StepCallback(TrainerCallback):
    """Before training, compares the schedule with the checkpoint's; around each step, has it taken at its stage's share
    of the learning rate; after it, evens the load of experts and counts the tokens read."""

    def __init__(self, trainer: "SuperposeTrainer") -> None:
        self.trainer = trainer
        self.scheduled: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        schedule, name = self.trainer.schedule, SwitchCallback.__name__
        self.trainer.logged = state.global_step
        if name in state.stateful_callbacks:
            schedule.check_same(state.stateful_callbacks[name]["args"]["schedule"])
        else:
            logger.warning("the checkpoint holds no schedule to compare with; going on by %s", schedule)
            state.stateful_callbacks[name] = SwitchCallback(schedule).state()
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, SwitchCallback):  # that of a checkpoint, too, which Trainer may have made again
                callback.stream = self.trainer.stream
        if self.trainer.stream is not None and state.global_step:
            self._go_on(self.trainer.stream, state.stateful_callbacks[name].get("stream"), state.global_step)

    def _go_on(self, stream: WindowStream, stored: dict[str, Any] | None, step: int) -> None:
        if stored is None:
            logger.warning("the checkpoint does not say where the stream stood; reading %d steps of it again", step)
        elif (stored["step"], stored["part"]) != (step, 0):
            raise ValueError(f"the checkpoint of step {step} holds the stream of step {stored['step']}; take another")
        else:
            stream.load_state_dict(stored)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        groups, factor = kwargs["optimizer"].param_groups, self.trainer.schedule.step_at(state.global_step).lr_factor
        self.scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * factor

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Put back, so that the scheduler finds what it left.
        for group, lr in zip(kwargs["optimizer"].param_groups, self.scheduled, strict=True):
            group["lr"] = lr
        self.trainer.lm.balance()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.include_num_input_tokens_seen not in ("no", False):
            # Trainer's own count has the bags in it that are only predicted.
            state.num_input_tokens_seen = self.trainer.plan.raw_tokens(state.global_step)


class SuperposeTrainer(Trainer):
    """Trainer that begins with bags of tokens.

    Args:
        schedule: which bag size trains when; its `total_steps` is `TrainingArguments.max_steps`.
        latents: L, positions of a row; by default the length of the training dataset's rows, if all have the same.
        weighting, variant, end_of_text: as in `superpose.SuperposedLM`.
        arguments: all that Trainer takes. `train_dataset` has `input_ids` in each row, packed or not; rows follow one
            another as a text. It may be streamed (an `IterableDataset`, or anything else to go through), the same on
            all processes, or a `TokenStore`. `data_collator` serves evaluation; by default labels are the tokens.

    The logged loss is called `bag_loss` during superposition, as it is not comparable with a next-token loss, and
    `mixed_loss` where it is a mean over steps of several bag sizes; beside it stand `bag_size` of the last step,
    `raw_tokens` and `latents`. A mixture of experts is balanced by what its family has, with the load counted over all
    processes. `per_device_train_batch_size` counts rows of L latents in both phases.

    Raises:
        ValueError: a setting that would have no effect, a dataset without tokens, a model that does not fit;
            in training, a row that does not hold what it should, or a checkpoint of a run with other bags or switches.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        *arguments: Any,
        schedule: Schedule,
        latents: int | None = None,
        weighting: Weighting | Sequence[float] = "uniform",
        variant: Variant = "mce",
        end_of_text: int | None = None,
        **named: Any,
    ) -> None:
        schedule = schedule if weighting == "uniform" else schedule.weighted(weighting)
        check_schedule(schedule)
        self.schedule, self.latents = schedule, latents
        self.variant, self.end_of_text = variant, end_of_text
        self.logged = 0
        """Steps at the last record of the loss."""
        if variant != "mce" and any(stage.ordinary_share for stage in schedule.stages):
            raise ValueError(
                f"variant {variant!r} is of rows of bags, so it has no loss for ordinary_rows; leave one out"
            )
        view = None if model is None else training_view(model)
        super().__init__(view, args, data_collator or next_token_collator, *arguments, **named)
        self.loss_is_scaled_for_ga = True
        check_arguments(self, schedule.total_steps)
        check_rows(self)
        self._never_asked = never_asked(self.data_collator)
        self._superpose()
        # Of a model that FSDP is to shard, the first process alone has to hold the weights yet.
        if not self.is_fsdp_enabled or self.args.process_index == 0:
            untrained = self._superposed(None).check()
            if untrained and self.args.process_index == 0:
                logger.warning("no loss trains these weights of the model: %s", ", ".join(untrained))
        if self.train_dataset is not None:
            self._plan()
        self.add_callback(SwitchCallback(schedule))
        self.add_callback(StepCallback(self))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A fresh model, as Trainer makes it at the start of each training."""
        self.model = training_view(super().call_model_init(trial))
        if hasattr(self, "lm"):
            self._superpose()
        return self.model

    def _superpose(self) -> None:
        self.lm = self._superposed(dist.group.WORLD if self.args.world_size > 1 else None)
        vars(self.model)["superposed"] = self.lm  # and is no part of it, with parameters to save

    def _superposed(self, group: dist.ProcessGroup | None) -> SuperposedLM:
        smoothing = self.args.label_smoothing_factor
        return SuperposedLM(
            self.model,
            variant=self.variant,
            end_of_text=self.end_of_text,
            group=group,
            label_smoothing=smoothing,
        )

    def _plan(self) -> None:
        """What each step reads, of the dataset and arguments as they are now."""
        args = self.args
        if self.train_dataset is None:
            raise ValueError("SuperposeTrainer has no train_dataset; give one to train")
        vocab_size = len(self.lm.model.get_input_embeddings().weight)
        accumulate, rank, world_size = args.gradient_accumulation_steps, args.process_index, args.world_size
        rows = args.per_device_train_batch_size * accumulate * world_size
        self.plan: WindowPlan | WindowStream
        self.windows: Dataset[dict[str, Any]]
        self.stream: WindowStream | None = None
        if is_streamed(self.train_dataset):
            reader = StreamReader("train_dataset", vocab_size, self._never_asked, self)
            latents = self._row_length(None)
            self.plan = self.stream = WindowStream(
                self.train_dataset, self.schedule, rows, latents, accumulate, rank, world_size, reader
            )
            self.windows = StreamSteps(self.stream)
        else:
            self.tokens = self._text(vocab_size)
            seed = args.seed if args.data_seed is None else args.data_seed
            latents = self._row_length(getattr(self.tokens, "row_length", None))
            sources = self.train_dataset.train.sources if isinstance(self.train_dataset, TokenStore) else None
            self.plan = plan = WindowPlan(self.schedule, rows, latents, len(self.tokens), seed, sources=sources)
            self.windows = StepWindows(plan, self.tokens, accumulate, rank, world_size)

    def _text(self, vocab_size: int) -> RowTokens | TokenText:
        """The tokens of a training dataset with a length."""
        dataset = self.train_dataset
        if isinstance(dataset, TokenStore):
            if dataset.vocab_size > vocab_size:
                raise ValueError(
                    f"{dataset.path} has a vocabulary of {dataset.vocab_size}, the model embeds {vocab_size} tokens; "
                    f"build the model for the store's"
                )
            return dataset.train.tokens
        known: RowTokens | None = getattr(self, "tokens", None)  # whose rows were measured
        return known if known and known.rows is dataset else RowTokens(dataset, vocab_size, self._never_asked)

    def _row_length(self, known: int | None) -> int:
        latents = self.latents or known
        if latents is None:
            raise ValueError(
                "train_dataset does not say how long a row of training is: its rows differ in length, or are in a "
                "stream or a store; give latents, the positions of a row"
            )
        return latents

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Windows of each forward pass; every process reads its own, so nothing is left to share out."""
        args = self.args
        check_arguments(self, self.schedule.total_steps)  # a search may have changed them
        self.lm.label_smoothing = args.label_smoothing_factor
        self._plan()
        return DataLoader(
            self.windows,
            batch_size=1,
            collate_fn=_only,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a window in training; anything else is Trainer's."""
        if "bag_size" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step = self.schedule.step_at(self.state.global_step)
        # Processes average their gradients, so each divides by its own share of the step's latents.
        positions = None if num_items_in_batch is None else num_items_in_batch / self.args.world_size
        output = model(
            window=inputs["input_ids"],
            bag_size=step.bag_size,
            mode=step.mode,
            normalizer=positions,
            target_mask=inputs.get("target_mask"),
            weighting=step.weighting,
            pooling=step.pooling,
        )
        return (output.loss, output) if return_outputs else output.loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The windows of a step, and its latents with a target: of all its forward passes, on all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        positions = torch.zeros((), dtype=torch.int64)
        step = self.schedule.step_at(self.state.global_step)
        for batch in batches:
            _, targets = split_window(batch["input_ids"], batch["bag_size"], step.mode, batch.get("target_mask"))
            targets = targets if targets.dim() == 3 else targets.unsqueeze(-1)
            positions += count_positions(targets, target_weights(targets, step.weighting))
        return batches, self.accelerator.gather(positions.to(device)).sum()

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Adds what a step reads, and names a bag's loss what it is."""
        if "loss" in logs and self.state.global_step:
            step = self.state.global_step
            sizes = {self.schedule.bag_size_at(done) for done in range(min(self.logged, step - 1), step)}
            logs["bag_size"] = self.schedule.bag_size_at(step - 1)
            self.logged = step
            if len(sizes) > 1:  # of steps that drew their sizes
                logs["mixed_loss"] = logs.pop("loss")
            elif sizes != {1}:
                logs["bag_loss"] = logs.pop("loss")
            if "learning_rate" in logs:
                logs["learning_rate"] *= self.schedule.step_at(step - 1).lr_factor
            logs["raw_tokens"] = self.plan.raw_tokens(step)
            logs["latents"] = step * self.plan.rows * self.plan.latents
        super().log(logs, *arguments, **named)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of a forward and a backward pass: latents count, not the tokens in their bags."""
        if "bag_size" not in inputs:
            return int(super().floating_point_ops(inputs))
        return round(len(inputs["input_ids"]) * self.plan.latents * self._flops_per_latent)

    @cached_property
    def _flops_per_latent(self) -> float:
        return model_flops_per_latent(self.accelerator.unwrap_model(self.model), self.plan.latents)


def training_view(model: nn.Module) -> nn.Module:
    """The same model, with a forward pass that, given a window, is that of its `SuperposedLM`.

    The loss has to be computed inside the forward pass of the module that DDP, FSDP or torch.compile wraps. A wrapper
    around the model would do that, but Trainer, its callbacks and accelerate look for the model's class, its methods
    and the names of its parameters in what they train and save. So this is a second object on the same layers and
    parameters, of a subclass with the model's own name; the model and its class are left as they are.
    """
    kind: Any = type(model)
    replaced = vars(model).get("forward")  # as Liger does with the models it speeds up

    @wraps(kind.forward)
    def forward(self: Any, *arguments: Any, window: Tensor | None = None, **named: Any) -> Any:
        if window is not None:
            return self.superposed(window, **named)
        return kind.forward(self, *arguments, **named) if replaced is None else replaced(*arguments, **named)

    names = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    names["_get_name"] = lambda self: kind.__name__  # by which Trainer knows, also under FSDP, that labels are shifted
    view = copy.copy(model)
    vars(view).pop("forward", None)
    view.__class__ = type(kind.__name__, (kind,), names)
    return view


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
