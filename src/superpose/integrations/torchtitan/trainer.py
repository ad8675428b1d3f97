"""TorchTitan's trainer with a schedule of bag sizes, and any of its configs made into one of ours."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar

import tyro
from torch import Tensor
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import BaseLoss, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer
from torchtitan.config import Configurable
from torchtitan.distributed.cudagraph import wrap_with_cuda_graph
from torchtitan.models.common import Embedding
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from superpose.core.fold import Mode
from superpose.core.loss import Weighting
from superpose.core.schedule import Schedule
from superpose.core.stage import Stage, StageArgs
from superpose.data.windows import Expand, WindowPlan
from superpose.integrations.torchtitan.checkpoint import ScheduleCheckpoints
from superpose.integrations.torchtitan.embedding import BagEmbedding
from superpose.integrations.torchtitan.loader import HeldOutLoader, StoreLoader, open_store
from superpose.integrations.torchtitan.loss import MultiHotLoss
from superpose.integrations.torchtitan.rates import StageRates
from superpose.train.config import SHORT_FORM

_Config = TypeVar("_Config", bound=Configurable.Config)


@dataclass(kw_only=True, slots=True)
class Superposition:
    """The first phase, see `superpose.Schedule`; its steps are shares of `training.steps`; lists give stages."""

    bag_size: int | tuple[int, ...] = 4
    """Tokens in a bag (the paper's s); 1 is an ordinary run."""
    ratio: float | tuple[float, ...] = 0.3
    """Share of the steps spent in superposition (the paper's r)."""
    mode: Mode = "full"
    """What superposition changes: both sides, only the input side, only the output side."""
    weighting: Weighting = "uniform"
    """Of the tokens in a target bag, see `superpose.bag_weights`."""
    expand: Expand = "sequence"
    """How a step takes in more tokens: by longer rows, or by more of them, see `superpose.data.windows.WindowPlan`."""
    stages: Annotated[tuple[StageArgs, ...], tyro.conf.Suppress] = ()
    """In place of bag_size, ratio, mode and weighting: what each stage is, for configs in Python."""

    def schedule(self, total_steps: int, seed: int = 0) -> Schedule:
        """The run's schedule; bag sizes are drawn by the seed.

        Raises:
            ValueError: a setting is out of range, would be ignored, or is not served here.
        """
        if not self.stages:
            return Schedule(total_steps, self.bag_size, self.ratio, self.mode, self.weighting)
        if any(getattr(self, each.name) != each.default for each in fields(self) if each.name in SHORT_FORM):
            raise ValueError(
                "superposition.stages says what each stage is; leave out bag_size, ratio, mode and weighting"
            )
        return Schedule(total_steps, stages=self.stages, seed=seed)


_SERVED = {
    *(*SHORT_FORM, "bag_size_end", "weighting_end", "pooling", "ordinary_rows", "mixture"),
    *("lr_factor", "lr_blend_steps"),
}
"""Settings of a stage; others would be ignored here, and are refused."""


def _check_served(config: Any, schedule: Schedule) -> None:
    for number, stage in enumerate(schedule.args, 1):
        unserved = [name for name in stage.to_dict() if name not in _SERVED]
        if unserved:
            raise ValueError(
                f"stage {number}: {unserved[0]} is not served in TorchTitan; leave it out, or take `superpose train`"
            )
        if (stage.draws or stage.weighting_end is not None) and not config.training.disable_cuda_graphs:
            raise ValueError(
                f"stage {number}: bag sizes that are drawn and weights that change differ from step to step, and a "
                f"CUDA graph does not; set training.disable_cuda_graphs"
            )
    if config.superposition.expand == "sequence":
        return
    for name in ("pipeline_parallel_degree", "context_parallel_degree"):
        if getattr(config.parallelism, name) > 1:
            raise ValueError(
                f"superposition.expand is 'batch', whose rows have two lengths; leave out parallelism.{name}"
            )
    chunks = config.loss.num_chunks if isinstance(config.loss, ChunkedLossWrapper.Config) else 1
    for parts in {stage.raw_tokens_per_latent for stage, _ in schedule.counts()}:
        if config.training.seq_len % (parts * chunks):
            raise ValueError(
                f"superposition.expand is 'batch': give training.seq_len ({config.training.seq_len}) as a multiple of "
                f"the bag size times loss.num_chunks ({parts} x {chunks})"
            )


class SuperposeMetrics(MetricsProcessor):
    """TorchTitan's metrics, which count latents, with what superposition reads beside them.

    `superposition/bag_size` says what kind of loss a step's is, `superposition/raw_tokens` counts tokens of the text.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        pass

    plan: WindowPlan | None = None
    guess: float | None = None
    """Loss of a model that knows nothing, log V, if the first step's is to be compared with it."""

    def log(
        self, step: int, global_avg_loss: float, global_max_loss: float, grad_norm: float, extra_metrics: Any = None
    ) -> None:
        """As TorchTitan's; steps are counted from 1."""
        extra_metrics = dict(extra_metrics or {})
        if self.plan is not None:
            extra_metrics["superposition/bag_size"] = self.plan.schedule.bag_size_at(step - 1)
            extra_metrics["superposition/raw_tokens"] = self.plan.raw_tokens(step)
        # A pipeline's ranks before the last have no loss, which TorchTitan writes as -1.
        if step == 1 and self.guess and global_avg_loss > 0 and abs(global_avg_loss / self.guess - 1) > 0.2:
            logger.warning(
                f"the first loss is {global_avg_loss:.2f}, a fresh model's is log(vocabulary) = {self.guess:.2f}; "
                f"check the model's initialisation before trusting this run"
            )
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra_metrics)


class SuperposeTrainer(Trainer):
    """TorchTitan's trainer; each step has the bag size of its `superpose.Schedule` (arXiv 2605.06546, section 3).

    Raises:
        ValueError: a setting is out of range, or a part of the config is not of superpose: `superposed` makes it so.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        superposition: Superposition = field(default_factory=Superposition)

    ntokens_seen: int
    """Latents this rank has computed."""

    def __init__(self, config: Config) -> None:
        # The seed of the data, which decides all else that a step reads.
        seed = getattr(config.dataloader, "seed", 0)
        self.schedule = config.superposition.schedule(config.training.steps, seed)
        _check_served(config, self.schedule)
        config = _bound(config, self.schedule)
        super().__init__(config)
        self._bag_loss: Any = getattr(self.loss_fn, "loss_fn", self.loss_fn)  # inside of the chunked wrapper
        plan = self.metrics_processor.plan = self.dataloader.plan
        if not getattr(config.checkpoint, "initial_load_path", None):
            self.metrics_processor.guess = math.log(self.model_config.vocab_size)
        modules = (module for part in self.model_parts for module in part.modules())
        self._embeddings = [module for module in modules if isinstance(module, BagEmbedding)]
        stages = ", ".join(f"{stage.steps:,} steps of bag size {_sizes(stage)}" for stage in plan.schedule.stages)
        text = f"{plan.raw_tokens():,} tokens of text, {plan.epochs:.2f} passes over it"
        logger.info(f"Superposition: {stages}; {text}")

    def batch_generator(self, data_iterable: Iterable[tuple[dict[str, Tensor], Tensor]]) -> Iterator[Any]:
        """Batches as TorchTitan yields them, counted in latents: throughput and MFU are those of the model."""
        for inputs, labels in super().batch_generator(data_iterable):
            self.metrics_processor.ntokens_since_last_log -= labels.numel() - labels.shape[:2].numel()
            yield inputs, labels

    def post_dataloading_process(self, input_dict: dict[str, Tensor], labels: Tensor) -> tuple[Any, Any, Any]:
        seen = self.ntokens_seen
        inputs, labels, named = super().post_dataloading_process(input_dict, labels)
        self.ntokens_seen = seen + labels.shape[:2].numel()
        return inputs, labels, named

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # TorchTitan takes up a rank's own count, which is wrong if there were more ranks, or fewer.
        ranks = self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard * self.parallel_dims.cp
        self.ntokens_seen = self.step * self.dataloader.plan.rows * self.dataloader.plan.latents // ranks

    def train_step(self, data_iterator: Iterator[Any]) -> None:
        computed = self.schedule.step_at(self.step - 1)
        self._bag_loss.weighting = computed.weighting
        for embedding in self._embeddings:
            embedding.pooling = computed.pooling
        if self.step - 1 in self.schedule.boundaries:
            stage = self.schedule.stage_at(self.step - 1)
            logger.info(f"step {self.step}: {stage.phase} begins, bag size {_sizes(stage)}")
            if not self.config.training.disable_cuda_graphs:
                # A graph has the shapes it was recorded with.
                self.fwd_bwd_fn = wrap_with_cuda_graph(self._forward_backward_body)
        super().train_step(data_iterator)


def _sizes(stage: Stage) -> str:
    return " or ".join(map(str, stage.sizes))


def superposed(
    config: Trainer.Config, superposition: Superposition | None = None, dataset_path: str | None = None
) -> SuperposeTrainer.Config:
    """A config of TorchTitan for a decoder, made to train with superposition; all else stays as it is.

    Args:
        config: of any language model that embeds by `tok_embeddings`; its cross-entropy may be chunked.
        superposition: the first phase.
        dataset_path: a store that `superpose prepare` made; it replaces the config's own data.

    Raises:
        ValueError: the model or the loss is of another kind.

    In a module of your own, which `--module` names::

        def my_8b():
            return superposed(llama3_8b(), Superposition(bag_size=6, ratio=0.3), "stores/dclm")
    """
    spec = config.model_spec
    embedding = getattr(getattr(spec, "model", None), "tok_embeddings", None)
    if spec is None or type(embedding) not in (Embedding.Config, BagEmbedding.Config):
        raise ValueError("this config has no language model with TorchTitan's embedding, so nothing to put bags into")
    model = replace(spec.model, tok_embeddings=_converted(embedding, BagEmbedding.Config))
    return _converted(
        config,
        SuperposeTrainer.Config,
        model_spec=replace(spec, model=model),
        loss=_map_loss(config.loss, lambda loss: _converted(loss, MultiHotLoss.Config)),
        dataloader=StoreLoader.Config(dataset_path=dataset_path),
        validator=replace(config.validator, dataloader=HeldOutLoader.Config()),
        metrics=_converted(config.metrics, SuperposeMetrics.Config),
        hf_assets_path="",
        superposition=superposition or Superposition(),
    )


def _bound(config: Any, schedule: Schedule) -> Any:
    """The config whose parts know the run's schedule, weighting and store."""
    if not isinstance(config.dataloader, StoreLoader.Config) or not isinstance(config.metrics, SuperposeMetrics.Config):
        raise ValueError("this config does not read a store of superpose; make it with `superposed`")
    if not isinstance(config.model_spec.model.tok_embeddings, BagEmbedding.Config):
        raise ValueError("this config's model takes no bags; make it with `superposed`")
    if config.parallelism.spmd_backend == "full_dtensor":
        raise ValueError("parallelism.spmd_backend is full_dtensor; choose spmd_types or partial_dtensor")
    store, vocab_size = open_store(config.dataloader.dataset_path), config.model_spec.model.vocab_size
    if store.vocab_size > vocab_size:
        raise ValueError(
            f"the model's vocabulary has {vocab_size:,} entries but the store's tokens {store.vocab_size:,}; "
            f"prepare the text with the model's tokenizer"
        )
    expand, validator = config.superposition.expand, config.validator
    reader = replace(config.dataloader, schedule=schedule, expand=expand)
    reader.rows, reader.rows_per_rank = config.training.global_batch_size, config.training.local_batch_size
    if isinstance(validator.dataloader, HeldOutLoader.Config):
        held_out = replace(validator.dataloader, attention=reader.attention)
        held_out.dataset_path = held_out.dataset_path or reader.dataset_path
        validator = replace(validator, dataloader=held_out)
    return replace(
        config,
        loss=_map_loss(config.loss, _checked),
        lr_scheduler=_with_factors(config.lr_scheduler, schedule),
        checkpoint=_with_schedule(config.checkpoint, schedule, expand),
        dataloader=reader,
        validator=validator,
        hf_assets_path=config.hf_assets_path or str(store.tokenizer_path),
    )


def _checked(loss: Any) -> Any:
    if not 0 <= loss.z_loss < math.inf:
        raise ValueError(f"z_loss is {loss.z_loss}; give a number of 0 or more")
    return loss


def _with_schedule(checkpoint: Any, schedule: Schedule, expand: Expand) -> Any:
    if not isinstance(checkpoint, CheckpointManager.Config):
        raise ValueError(
            f"checkpoints of {type(checkpoint).__qualname__} have no place for the schedule; choose TorchTitan's "
            f"CheckpointManager"
        )
    return _converted(checkpoint, ScheduleCheckpoints.Config, schedule=schedule, expand=expand)


def _with_factors(rates: Any, schedule: Schedule) -> Any:
    """TorchTitan's own learning rates where no stage has a factor."""
    if all(stage.lr_factor == 1 for stage in schedule.args):
        return rates
    if type(rates) not in (LRSchedulersContainer.Config, StageRates.Config):
        raise ValueError(
            f"learning rates of {type(rates).__qualname__} know no lr_factor; choose TorchTitan's "
            f"LRSchedulersContainer, or leave lr_factor out"
        )
    return _converted(rates, StageRates.Config, schedule=schedule)


def _map_loss(loss: BaseLoss.Config, change: Any) -> BaseLoss.Config:
    """Changes a cross-entropy where it stands, inside the chunked wrapper or not."""
    if isinstance(loss, ChunkedLossWrapper.Config):
        return replace(loss, loss_fn=_map_loss(loss.loss_fn, change))
    if not isinstance(loss, CrossEntropyLoss.Config):
        raise ValueError(f"a loss of {type(loss).__qualname__} asks for no bags; choose TorchTitan's cross-entropy")
    return change(loss)


def _converted(config: Configurable.Config, to: type[_Config], **changes: Any) -> _Config:
    """The same settings, but for the changes, for a subclass."""
    kept = {item.name: getattr(config, item.name) for item in fields(to) if hasattr(config, item.name)}
    return to(**{**kept, **changes})
