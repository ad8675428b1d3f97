"""Optimizers and learning rates: AdamW or Muon, warmup-stable-decay or cosine, an average of the weights."""

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

Optimizer = Literal["adamw", "muon"]
_PER_LAYER = "embed_tokens_per_layer"
"""Of Gemma 3n and 4, by its name in transformers: vectors of all layers for each token, folded like the embedding."""


class OptimArgs(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How weights are updated. By default nothing here changes at the switch."""

    lr: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 200
    """Steps of linear warmup."""
    lr_schedule: Literal["wsd", "cosine"] = "wsd"
    """wsd: constant after warmup, then a linear decay to 0. cosine: a half wave from the end of the warmup on."""
    decay_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Of wsd: share of the steps, at the end, over which the learning rate falls."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of cosine: where it ends, as a share of `lr`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    optimizer: Optimizer = "adamw"
    """muon: matrices inside the blocks by Muon, scaled so that AdamW's `lr` suits it; the rest by AdamW."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Of Muon."""
    embedding_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """Of the learning rate of embedding and head, tied or not, and of per-layer embeddings; see `token_tables`."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999; 0 for none. It is exported as well."""
    rewarm_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """For ablations: steps over which the learning rate rises from 0 again after each boundary of phases."""
    reset_optimizer: bool = False
    """For ablations: forget the moments at each boundary of phases."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, setting, only in (
            ("decay_ratio", "lr_schedule", "wsd"),
            ("min_lr_ratio", "lr_schedule", "cosine"),
            ("momentum", "optimizer", "muon"),
        ):
            changed = getattr(self, name) != OptimArgs.model_fields[name].default
            if changed and getattr(self, setting) != only:
                raise ValueError(f"train.{name} is of {setting} = '{only}', so it would be ignored; leave it out")
        return self

    def decay_steps(self, total_steps: int) -> int:
        return round(self.decay_ratio * total_steps) if self.lr_schedule == "wsd" else 0


def learning_rate(args: OptimArgs, step: int, total_steps: int, boundaries: tuple[int, ...] = ()) -> float:
    """Learning rate of step `step`, counted from 0; a pure function of the step."""
    warm = (step + 1) / args.warmup_steps if step < args.warmup_steps else 1.0
    if args.lr_schedule == "cosine":
        # As below, the last step is one short of the end.
        share = max(0, step - args.warmup_steps) / max(1, total_steps - args.warmup_steps)
        decayed = args.min_lr_ratio + (1 - args.min_lr_ratio) * (1 + math.cos(math.pi * share)) / 2
    else:
        decay_steps = args.decay_steps(total_steps)
        # The last step still moves: at step total_steps, which does not exist, the rate would be 0.
        decayed = (total_steps - step) / (decay_steps + 1) if step >= total_steps - decay_steps else 1.0
    since = step - max((boundary for boundary in boundaries if boundary <= step), default=-args.rewarm_steps)
    rewarmed = (since + 1) / args.rewarm_steps if since < args.rewarm_steps else 1.0
    return args.lr * min(warm, decayed) * rewarmed


def build_optimizers(args: OptimArgs, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Optimizers that update each parameter once. Matrices and tables decay; vectors (norms, biases) do not.

    Muon takes matrices that map hidden states to hidden states. The embedding, the head, tables of positions, and
    experts that are stacked into one tensor are left to AdamW.

    A group's `lr_factor` is what a step's learning rate is multiplied by for it, its `lr` the peak with that in it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if args.optimizer == "muon":
        head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers' base class
        outer = [head, *(module for module in model.modules() if isinstance(module, nn.Embedding))]
        kept = {id(parameter) for module in outer for parameter in module.parameters()}
        inner = [p for p in parameters if p.dim() == 2 and id(p) not in kept]
        parameters = [p for p in parameters if p.dim() != 2 or id(p) in kept]
        decay, momentum = args.weight_decay, args.momentum
        optimizers.append(torch.optim.Muon(inner, args.lr, decay, momentum, adjust_lr_fn="match_rms_adamw"))
    tables = token_tables(model) if args.embedding_lr_factor != 1 else []
    factors = {p: args.embedding_lr_factor for module in tables for p in module.parameters()}
    groups = list[dict[str, Any]]()
    for factor, decays in itertools.product(dict.fromkeys((1.0, args.embedding_lr_factor)), (True, False)):
        chosen = [p for p in parameters if factors.get(p, 1.0) == factor and (p.dim() >= 2) == decays]
        decay = args.weight_decay if decays else 0.0
        groups.append({"params": chosen, "weight_decay": decay, "lr": args.lr * factor, "lr_factor": factor})
    return [*optimizers, build_adamw(args, groups)]


def build_adamw(args: OptimArgs, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW as all parameters have it that no other optimizer takes; extra heads, which are no part of a model, too."""
    return torch.optim.AdamW(groups, args.lr, args.betas, args.eps, args.weight_decay, fused=True)


def set_rates(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Gives all groups the learning rate of a step, each times its `lr_factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)


def token_tables(model: nn.Module) -> list[nn.Module]:
    """What has a row for each entry of the vocabulary: the embedding, the head, and the per-layer embeddings of Gemma.

    All of these move by the tokens that occur, so they share `embedding_lr_factor`. Tables of positions do not.
    """
    found: Any = model
    per_layer = [module for name, module in model.named_modules() if name.endswith(_PER_LAYER)]
    return [found.get_input_embeddings(), found.get_output_embeddings(), *per_layer]


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Scales gradients down to the norm `largest` (0: leaves them), over all shards; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, largest or math.inf)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


class Average:
    """An exponential moving average of a model's weights, in float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = dict(model.named_parameters())
        self.tensors = {name: parameter.detach().float().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self.tensors.values()), list(self._parameters.values()), 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average in the place of the weights for the length of the block."""
        weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self.tensors)
        try:
            yield
        finally:
            self._write(weights)

    @torch.no_grad()
    def _write(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._parameters[name].copy_(tensor)
