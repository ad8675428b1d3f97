"""The multi-hot cross-entropy as a loss of TorchTitan: a sum over positions, over whole or sharded vocabularies.

TorchTitan divides a step's loss by the labels that are not -100, counted over all ranks and parts of the step. A
superposition step is to be divided by its positions (`superpose.core.loss` on normalisation). The loader therefore
marks what is missing in a bag that has a target by `NO_TARGET`, which TorchTitan counts, and only bags without any by
-100: then a position counts S times, and S is known.

Inside `ChunkedLossWrapper` only the logits of a chunk exist. The loss itself holds one tensor of their size, the
exponentials, from which the backward pass makes the gradient.

Shapes: B rows, L latents, N = B x L positions, S targets of a position (a bag), V vocabulary, or a rank's part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import CrossEntropyLoss, cross_entropy_loss
from torchtitan.config import CompileConfig
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size

from superpose.core.fold import IGNORE_INDEX
from superpose.core.linear_loss import VocabShard
from superpose.core.loss import Weighting, bag_weights, sum_dtype, target_shares

NO_TARGET = -1
"""Label of a place that asks for nothing, in a bag that asks for something."""


def mark_positions(targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Labels [..., S] of which TorchTitan counts S for each position that has a target, and 0 for any other.

    Args:
        targets: [..., S], with `IGNORE_INDEX` where there is none.
        weights: [S], see `bag_weights`; a target of weight 0 is none.
    """
    valid = targets != IGNORE_INDEX
    asked = valid if weights is None else valid & (weights > 0)
    missing = targets.masked_fill(~valid, NO_TARGET)
    return missing.masked_fill(~asked.any(dim=-1, keepdim=True), IGNORE_INDEX)


class MultiHotLoss(CrossEntropyLoss):
    """Sum over positions of the multi-hot cross-entropy, divided by the step's (arXiv 2605.06546, section 3.2).

    Labels [B, L, S] are bags, as `mark_positions` gives them; labels [B, L] are TorchTitan's, and so is their loss.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        weighting: Weighting = "uniform"
        """Of a bag's targets, see `superpose.bag_weights`; the trainer sets that of each step."""
        z_loss: float = 0.0
        """Times the squared logsumexp of the logits, added to each position's loss (`superpose.SuperposedLM`)."""

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        super().__init__(config)
        self.weighting: Weighting | Sequence[float] = config.weighting
        self.z_loss = config.z_loss
        self.fn = sum_of_losses
        self._maybe_compile(compile_config)

    def __call__(
        self, pred: Tensor, labels: Tensor, global_valid_tokens: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of logits pred [B, L, V] and no metrics; `global_valid_tokens` counts a bag's position S times."""
        # The validator asks without gradients, for the loss of the next token and nothing else.
        z_loss = self.z_loss if pred.requires_grad else 0.0
        if labels.dim() == 2:
            if not z_loss:
                return super().__call__(pred, labels, global_valid_tokens)
            labels = labels.unsqueeze(-1)
        bags = labels.shape[-1] > 1 and self.weighting != "uniform"
        weights = _weights(labels.shape[-1], self.weighting, labels.device) if bags else None
        total = self.fn(pred, labels, global_vocab_size=self.global_vocab_size, weights=weights, z_loss=z_loss)
        return total if global_valid_tokens is None else total * labels.shape[-1] / global_valid_tokens, {}


@lru_cache(maxsize=16)  # copied to a device once: a CUDA graph takes no copy from the host
def _weights(bag_size: int, weighting: Weighting | Sequence[float], device: torch.device) -> Tensor:
    return bag_weights(bag_size, weighting).to(device)


def sum_of_losses(
    pred: Tensor,
    labels: Tensor,
    *,
    global_vocab_size: int | None = None,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum of the positions' losses of logits [B, L, V], a scalar in float32 (float64 for float64).

    The vocabulary may be sharded over the tensor-parallel ranks, as TorchTitan's head leaves it; then every rank
    returns the whole sum, and its backward pass gives the gradient of its own shard.

    Args:
        labels: [B, L] or, as `mark_positions` gives them, [B, L, S].
        global_vocab_size: of all ranks together, where `pred` does not tell.
        weights: [S], see `bag_weights`; uniform if not given.
        z_loss: of labels [B, L, S] alone, see `superpose.multi_hot_cross_entropy`.
    """
    if labels.dim() == 2:
        return cross_entropy_loss(pred, labels, global_vocab_size=global_vocab_size)
    group: dist.ProcessGroup | None = None
    if isinstance(pred, DTensor):
        global_vocab_size = pred.shape[-1]
        if any(placement.is_shard(pred.dim() - 1) for placement in pred.placements):
            group = pred.device_mesh.get_group("tp")
        pred = pred.to_local()
    elif spmd_mesh_size("tp") > 1:
        group = current_spmd_mesh().get_group("tp")
    start = 0
    if group is not None:
        if global_vocab_size is None:
            raise ValueError("the vocabulary is sharded; give loss.loss_fn.global_vocab_size, the size of the whole")
        start = VocabShard.even(global_vocab_size, group).start
    logits = pred.flatten(0, 1).to(sum_dtype(pred.dtype))
    targets = labels.flatten(0, 1)
    targets = targets.masked_fill(targets < 0, IGNORE_INDEX)
    shares = target_shares(targets, weights, IGNORE_INDEX, logits.dtype)
    places = targets - start
    owned = (places >= 0) & (places < logits.shape[-1])
    filled = shares.sum(dim=-1, keepdim=True) > 0
    total: Tensor = _MultiHot.apply(logits, places.masked_fill(~owned, 0), shares * owned, filled, group, z_loss)
    return total


class _MultiHot(torch.autograd.Function):
    """sum of (logsumexp(z) - sum of shares x z at the targets); its gradient in z is softmax(z) - shares.

    With a z-loss c, c x logsumexp(z)^2 more, and 2 c logsumexp(z) x softmax(z) in the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        places: Tensor,
        shares: Tensor,
        filled: Tensor,
        group: dist.ProcessGroup | None,
        z_loss: float,
    ) -> Tensor:
        top = logits.amax(dim=-1, keepdim=True)
        if group is not None:
            top = funcol.all_reduce(top, "max", group)
        exponentials = (logits - top).exp()
        picked = (shares * (logits.gather(-1, places) - top)).sum(dim=-1, keepdim=True)
        sums = torch.cat([exponentials.sum(dim=-1, keepdim=True), picked], dim=-1)
        if group is not None:
            sums = funcol.all_reduce(sums, "sum", group)
        normalizer, picked = sums.split(1, dim=-1)
        losses, factor = normalizer.log() - picked, filled / normalizer
        if z_loss:
            lse = normalizer.log() + top
            losses, factor = losses + z_loss * lse.square(), factor * (1 + 2 * z_loss * lse)
        ctx.save_for_backward(exponentials, factor, places, shares)
        return torch.where(filled, losses, 0).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        exponentials, factor, places, shares = ctx.saved_tensors
        logits_grad = exponentials * (factor * grad)
        return logits_grad.scatter_add_(-1, places, -shares * grad), None, None, None, None, None
