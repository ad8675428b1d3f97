"""What is computed of a model: an optimizer step, and the validation, which is next-token in both phases."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from superpose.core.fold import IGNORE_INDEX
from superpose.core.model import SuperposedLM
from superpose.core.parts import SuperposedOutput
from superpose.core.schedule import Stage
from superpose.data.store import Split
from superpose.train.config import TrainArgs
from superpose.train.distributed import Ranks, reshard
from superpose.train.optim import clip_gradients
from superpose.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What a step measured, on the device: reading a value makes the device wait.

    Attributes:
        loss: mean (multi-hot) cross-entropy of this rank's rows; the mean over ranks is the step's.
        grad_norm: of all gradients, before clipping.
        router_loss: of a mixture of experts, mean over the parts of the step.
        expert_load: of a mixture of experts, share of the latents each expert got [experts], mean over layers.
    """

    loss: Tensor
    grad_norm: Tensor
    router_loss: Tensor | None = None
    expert_load: Tensor | None = None


def optimizer_step(state: TrainState, args: TrainArgs, stage: Stage, window: Tensor, lr: float) -> StepResult:
    """One optimizer step on this rank's rows [rows / ranks, length]."""
    total, outputs = accumulate_gradients(state, args, stage, window)
    grad_norm = clip_gradients(list(state.model.parameters()), args.grad_clip)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.update()
    return StepResult(
        total,
        grad_norm,
        _mean([output.router_loss for output in outputs]),
        _mean([output.expert_load for output in outputs]),
    )


def accumulate_gradients(
    state: TrainState, args: TrainArgs, stage: Stage, window: Tensor
) -> tuple[Tensor, list[SuperposedOutput]]:
    """Forward and backward passes of all parts of a step; gradients are shared among ranks with the last."""
    ranks = state.ranks
    # In training every latent has a target, so every latent counts, in whatever parts the step is computed. Ranks
    # average their gradients, so each divides by its own share of the step's latents.
    positions = args.latents_per_step / ranks.world_size
    total = torch.zeros((), device=ranks.device)
    outputs: list[SuperposedOutput] = []
    parts = window.chunk(args.accumulate)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(state.module, FSDPModule):
            state.module.set_requires_gradient_sync(last)
        waiting: Any = nullcontext()
        if isinstance(state.module, DistributedDataParallel) and not last:
            waiting = state.module.no_sync()
        # FSDP2 brings a precision of its own.
        cast = args.precision == "bfloat16" and not isinstance(state.module, FSDPModule)
        with waiting:
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=cast):
                output: SuperposedOutput = state.module(part, stage.bag_size, stage.mode, normalizer=positions)
            output.loss.backward()
        total += output.cross_entropy.detach()
        outputs.append(output._replace(loss=total, cross_entropy=total))  # lets the graph go
    return total, outputs


def _mean(values: list[Tensor | None]) -> Tensor | None:
    known = [value.detach() for value in values if value is not None]
    return torch.stack(known).mean(dim=0) if known else None


class HeldOutLoss(NamedTuple):
    """Next-token loss on held-out text.

    Attributes:
        loss: nats per token.
        bits_per_byte: the same in bits per UTF-8 byte of text; unlike the loss it can be compared between
            tokenizers. Predicting the ends of documents is part of it.
    """

    loss: float
    bits_per_byte: float


@torch.no_grad()
def validate(lm: SuperposedLM, split: Split, latents: int, rows: int, ranks: Ranks) -> HeldOutLoss:
    """Next-token loss over a whole split, every token but the first predicted once, in rows of `latents`.

    It does not know of bags: in either phase it measures the model that training is to end with. Ranks take turns at
    the batches; each computes as many, since a sharded model is computed by all or none.
    """
    training = lm.training
    lm.eval()
    total = torch.zeros((), dtype=torch.float64)
    tokens = torch.from_numpy(split.tokens.read(0, len(split.tokens)))
    batches = torch.split(next_token_rows(tokens, latents), rows)
    for turn in range(0, len(batches), ranks.world_size):
        number = turn + ranks.rank
        batch = batches[number] if number < len(batches) else torch.full_like(batches[0][:1], IGNORE_INDEX)
        total += lm(batch.to(ranks.device), bag_size=1, normalizer=1.0).cross_entropy.double().cpu()
    nats_of_all = float(ranks.total(total))
    reshard(lm)
    lm.train(training)
    nats = nats_of_all / (len(split.tokens) - 1)
    return HeldOutLoss(nats, nats_of_all / math.log(2) / split.bytes)


def next_token_rows(tokens: Tensor, latents: int) -> Tensor:
    """Rows that predict every token but the first once, each with as much context as its row has.

    Args:
        tokens: a whole text, int64 [N], two tokens or more.

    Returns:
        Rows of latents + 1 tokens that overlap by one, int64 [rows, latents + 1]; the last is filled with
        `IGNORE_INDEX`.
    """
    count = -(-(len(tokens) - 1) // latents)
    padded = torch.full((count * latents + 1,), IGNORE_INDEX)
    padded[: len(tokens)] = tokens
    return padded.unfold(0, latents + 1, latents)
