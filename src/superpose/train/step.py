"""What is trained, and what is computed of it: optimizer steps, and validations, which are next-token in both phases.

recipe -> model (on the device, or sharded from the meta device) -> SuperposedLM -> optimizers
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from superpose.core.check import some_of
from superpose.core.fold import IGNORE_INDEX
from superpose.core.model import SuperposedLM
from superpose.core.parts import SuperposedOutput
from superpose.core.sharding import is_sharded, reshard
from superpose.core.stage import Step
from superpose.data.store import Split, TokenStore
from superpose.errors import UserError
from superpose.models.build import build_config, build_model
from superpose.models.load import load_weights
from superpose.train.checkpoint import Parts, State, training_state
from superpose.train.config import Recipe, TrainArgs
from superpose.train.distributed import Ranks, blocks, shard, share_gradients
from superpose.train.optim import Average, build_adamw, build_optimizers, clip_gradients, set_rates


@dataclass
class TrainState:
    """A model and all that changes with it; every rank holds its part."""

    recipe: Recipe
    model: nn.Module
    lm: SuperposedLM
    module: nn.Module
    """What to call for a loss that is trained on: `lm`, or DDP around it."""
    optimizers: list[torch.optim.Optimizer]
    average: Average | None
    ranks: Ranks
    shard: Callable[[nn.Module], Any] | None = None
    """Of a model that is sharded: does so with a module that joins it."""
    notes: Sequence[str] = ()
    """What to know of the model before it is trained, a sentence each."""

    @property
    def tensors(self) -> State:
        """What a checkpoint holds, see `training_state`."""
        average = self.average.tensors if self.average else None
        return training_state(self.model, self.optimizers, average, self.lm.extra_heads)

    @property
    def parts(self) -> Parts:
        """What a checkpoint is loaded into."""
        average = self.average.tensors if self.average else None
        return Parts(self.model, self.optimizer_of, average, self._extra_heads_after)

    def set_extra_heads(self, count: int) -> None:
        """So many extra heads from now on, updated by an optimizer of their own.

        Those there are stay as far as they go, with what the optimizer knows of them; of the others nothing is left.
        """
        before = self.lm.extra_heads
        if count == len(before):
            return
        self.lm.set_extra_heads(count)
        heads = self.lm.extra_heads
        for layer in heads.layers[len(before) :]:
            if self.shard is not None:
                self.shard(layer)
        known: dict[Any, Any] = {}
        if len(before):
            *self.optimizers, last = self.optimizers
            known = last.state
        if count:
            optimizer = build_adamw(self.recipe.train, [{"params": list(heads.parameters())}])
            optimizer.state.update({weight: known[weight] for weight in heads.parameters() if weight in known})
            self.optimizers = [*self.optimizers, optimizer]
        if isinstance(self.module, DistributedDataParallel):
            self.module = _data_parallel(self.lm, self.ranks, self.module.find_unused_parameters)

    def _extra_heads_after(self, steps: int) -> nn.Module:
        """Those of the stage that so many steps end in, and that a checkpoint therefore holds."""
        self.set_extra_heads(self.recipe.schedule.stage_at(max(0, steps - 1)).extra_heads)
        return self.lm.extra_heads

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Extra heads and their optimizer are afterwards what they were before."""
        before = self.lm.extra_heads, self.optimizers, self.module
        yield
        self.lm.extra_heads, self.optimizers, self.module = before

    def optimizer_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """The optimizer that updates a parameter."""
        groups = [(group, optimizer) for optimizer in self.optimizers for group in optimizer.param_groups]
        return {known: optimizer for group, optimizer in groups for known in group["params"]}[parameter]

    @torch.no_grad()
    def reinit_embeddings(self, seed: int) -> None:
        """Draws the embedding and the head afresh, the same on all ranks, and forgets their moments."""
        torch.manual_seed(seed)
        config: Any = self.model.config
        modules: Any = self.model.get_input_embeddings(), self.model.get_output_embeddings()  # type: ignore[operator]
        for weight in dict.fromkeys(module.weight for module in modules):
            weight.normal_(0, config.initializer_range)
            self.optimizer_of(weight).state.pop(weight, None)

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights, gathered into the memory of rank 0, tied ones once; empty on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any = get_model_state_dict(self.model, options=options)
        once = {name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        return {name: tensor for name, tensor in weights.items() if name in once}


def build_state(recipe: Recipe, store: TokenStore, ranks: Ranks) -> TrainState:
    """Model, loss and optimizers of a run; the weights depend on its seed or on `model.init_from` alone.

    Raises:
        UserError: the model cannot be built, or cannot be trained by its bags.
    """
    train = recipe.train
    config = build_config(recipe.model, store.vocab_size, train.latents, store.end_of_text)
    sharded = ranks.world_size > 1 and recipe.parallel.strategy == "fsdp"
    whole: nn.Module | None = None
    if ranks.main or not sharded:
        torch.manual_seed(train.seed)
        whole = load_weights(recipe.model.init_from, config) if recipe.model.init_from else build_model(config)
    if sharded:
        model = build_model(config, "meta")
    else:
        assert whole is not None
        model = whole.to(ranks.device)
    if train.checkpoint_activations:
        transformer: Any = model
        # Its name in newer versions of transformers, and the one before.
        enable = getattr(model, "activation_checkpointing_enable", None) or transformer.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if train.compile:
        for block in blocks(model):
            block.compile()
    end_of_text = store.end_of_text if train.attention == "document" else None
    group = dist.group.WORLD if ranks.world_size > 1 else None
    variant = recipe.superposition.variant
    lm = SuperposedLM(model.train(), variant=variant, end_of_text=end_of_text, group=group)
    module: nn.Module = lm
    shard_more = None
    if sharded:
        shard_more = shard(lm, recipe.parallel, ranks, train.precision)
        _fill(model, whole, ranks)
    try:
        untrained = lm.check()
    except ValueError as error:
        raise UserError(f"model.architecture: {error}") from None
    if ranks.world_size > 1 and not sharded:
        module = _data_parallel(lm, ranks, bool(untrained))
    notes = []
    if untrained:
        notes.append(f"the loss of a {config.model_type} trains no {some_of(untrained)}; they keep their first values")
    if lm.unbalanced:
        notes.append(f"nothing balances the load of a {config.model_type}'s experts: its family has nothing for it")
    average = Average(model, train.average) if train.average else None
    state = TrainState(recipe, model, lm, module, build_optimizers(train, model), average, ranks, shard_more, notes)
    state.set_extra_heads(recipe.schedule.stages[0].extra_heads)
    return state


def _data_parallel(lm: SuperposedLM, ranks: Ranks, find_unused: bool) -> DistributedDataParallel:
    on_device = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(lm, device_ids=on_device, find_unused_parameters=find_unused)


def _fill(model: nn.Module, whole: nn.Module | None, ranks: Ranks) -> None:
    """Gives a sharded model on the meta device its memory, and what rank 0's whole model holds."""
    # Swapped in place, so that tied weights stay tied.
    torch.__future__.set_swap_module_params_on_conversion(True)
    model.to_empty(device=ranks.device)
    torch.__future__.set_swap_module_params_on_conversion(False)
    set_model_state_dict(
        model,
        whole.state_dict() if whole is not None else {},
        # Buffers that are not saved are missing on purpose, they follow.
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False),
    )
    buffers = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in model.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, 0)


@dataclass(frozen=True)
class StepResult:
    """What a step measured, on the device: reading a value makes the device wait.

    Attributes:
        loss: mean (multi-hot) cross-entropy of this rank's rows; the mean over ranks is the step's.
        grad_norm: of all gradients, before clipping.
        router_loss: of a mixture of experts, mean over the parts of the step.
        expert_load: of a mixture of experts, share of the latents each expert got [experts], mean over layers.
        extra_loss: mean (multi-hot) cross-entropy of the extra heads, on this rank's rows.
    """

    loss: Tensor
    grad_norm: Tensor
    router_loss: Tensor | None = None
    expert_load: Tensor | None = None
    extra_loss: Tensor | None = None


def optimizer_step(state: TrainState, args: TrainArgs, step: Step, window: Tensor, lr: float) -> StepResult:
    """One optimizer step on this rank's rows [rows / ranks, length]."""
    total, outputs = accumulate_gradients(state, args, step, window)
    grad_norm = clip_gradients([*state.model.parameters(), *state.lm.extra_heads.parameters()], args.grad_clip)
    set_rates(state.optimizers, lr)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.lm.balance()
    if state.average is not None:
        state.average.update()
    return StepResult(
        total,
        grad_norm,
        _over_parts(torch.mean, [output.router_loss for output in outputs]),
        _over_parts(torch.mean, [output.expert_load for output in outputs]),
        _over_parts(torch.sum, [output.extra_loss for output in outputs]),
    )


def accumulate_gradients(
    state: TrainState, args: TrainArgs, step: Step, window: Tensor
) -> tuple[Tensor, list[SuperposedOutput]]:
    """Forward and backward passes of all parts of a step; see `share_gradients` for the ranks'."""
    ranks = state.ranks
    state.set_extra_heads(step.extra_heads)
    # In training every latent has a target, so every latent counts, in whatever parts the step is computed. Ranks
    # average their gradients, so each divides by its own share of the step's latents.
    positions = args.batch_size * args.latents / ranks.world_size
    total = torch.zeros((), device=ranks.device)
    outputs: list[SuperposedOutput] = []
    parts = window.chunk(args.accumulate)
    for number, part in enumerate(parts):
        share_gradients(state.module, state.recipe.parallel, last=number == len(parts) - 1)
        with autocast(state.lm, args.precision, ranks.device):
            output: SuperposedOutput = state.module(
                part,
                step.bag_size,
                step.mode,
                normalizer=positions,
                weighting=step.weighting,
                pooling=step.pooling,
                extra_heads_weight=step.extra_heads_weight,
            )
        output.loss.backward()
        total += output.cross_entropy.detach()
        extra = None if output.extra_loss is None else output.extra_loss.detach()
        outputs.append(output._replace(loss=total, cross_entropy=total, extra_loss=extra))  # lets the graph go
    return total, outputs


def autocast(lm: SuperposedLM, precision: str, device: torch.device) -> torch.autocast:
    """What a forward pass runs under, in training and validation alike; FSDP2 brings a precision of its own."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16" and not is_sharded(lm))


def _over_parts(reduce: Callable[..., Tensor], values: list[Tensor | None]) -> Tensor | None:
    known = [value.detach() for value in values if value is not None]
    return reduce(torch.stack(known), dim=0) if known else None


class HeldOutLoss(NamedTuple):
    """Next-token loss on held-out text.

    Attributes:
        loss: nats per token.
        bits_per_byte: the same in bits per UTF-8 byte of text; unlike the loss it can be compared between
            tokenizers. Predicting the ends of documents is part of it.
        loss_by_source: the loss on what is held out of each named source, read by itself; None where sources have no
            names.
    """

    loss: float
    bits_per_byte: float
    loss_by_source: dict[str, float] | None = None


@torch.no_grad()
def validate(
    lm: SuperposedLM, split: Split, latents: int, rows: int, ranks: Ranks, precision: str = "float32"
) -> HeldOutLoss:
    """Next-token loss over a whole split, every token but the first predicted once, in rows of `latents`.

    It does not know of bags: in either phase it measures the model that training is to end with. Ranks take turns at
    the batches; each computes as many, since a sharded model is computed by all or none. The precision is that of
    training, however the model is spread over ranks.
    """
    training = lm.training
    lm.eval()
    total = torch.zeros((), dtype=torch.float64)
    tokens = torch.from_numpy(split.tokens.read(0, len(split.tokens)))
    batches = torch.split(next_token_rows(tokens, latents), rows)
    for turn in range(0, len(batches), ranks.world_size):
        number = turn + ranks.rank
        batch = batches[number] if number < len(batches) else torch.full_like(batches[0][:1], IGNORE_INDEX)
        with autocast(lm, precision, ranks.device):
            output = lm(batch.to(ranks.device), bag_size=1, normalizer=1.0)
        total += output.cross_entropy.double().cpu()
    nats = float(ranks.total(total))
    reshard(lm)
    lm.train(training)
    # Of one token there is nothing to predict.
    named = [name for name, source in split.sources.items() if source.num_tokens > 1]
    by_source = {name: validate(lm, split.alone(name), latents, rows, ranks, precision).loss for name in named}
    return HeldOutLoss(nats / (len(split.tokens) - 1), nats / math.log(2) / split.bytes, by_source or None)


def next_token_rows(tokens: Tensor, latents: int) -> Tensor:
    """Rows that predict every token of a text but the first once, each with as much context as its row has.

    From int64 [N], two tokens or more, to rows that overlap by one, int64 [rows, latents + 1]; the last is filled with
    `IGNORE_INDEX`.
    """
    count = -(-(len(tokens) - 1) // latents)
    padded = torch.full((count * latents + 1,), IGNORE_INDEX)
    padded[: len(tokens)] = tokens
    return padded.unfold(0, latents + 1, latents)
