"""Other losses of a bag that the paper tried (arXiv 2605.06546, appendix C): none is better than the one of `loss`.

They are here so that this can be seen again. All compute whole logits, so they take the memory that
`superpose.core.linear_loss` saves.

mce_alt
    asks for the bag's total probability instead of each token's; in the paper it ended equal. For logits z and a bag
    y with weights w_i it is logsumexp(z) - log(sum_i w_i exp(z[y_i]) / sum_i w_i). With weights that sum to 1 it
    differs from -log of the sum of the bag's probabilities by the constant log S, which gives it MCE's scale: log V
    at initialisation, and cross-entropy at S = 1.
hinge
    for each target, by how much the entries outside the bag come closer to it than a margin of 1; mean over targets,
    mean over entries.
bce
    binary cross-entropy of each entry's sigmoid, summed over entries and divided by the number of targets.

The last two ask of every vocabulary entry on its own whether it is in the bag, and ended above ordinary training. The
paper names them without their normalisation; the one chosen here gives each target about the gradient it has in MCE.

Shapes: N positions, S targets of a position, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from superpose.core.fold import IGNORE_INDEX
from superpose.core.loss import sum_dtype, target_shares

Variant = Literal["mce", "mce_alt", "hinge", "bce"]
"""Of the loss of a bag: "mce" is `superpose.multi_hot_cross_entropy`, the one to train with."""

WEIGHTED: tuple[Variant, ...] = ("mce", "mce_alt")
"""Variants that weigh a bag's targets by their place; they are cross-entropies, log V at initialisation."""


def ablated_loss(
    logits: Tensor, targets: Tensor, variant: Variant, weights: Tensor | None = None, z_loss: float = 0.0
) -> Tensor:
    """Sum over positions of a loss of logits [N, V] against bags of targets [N, S], a scalar.

    Args:
        targets: ids of 0 to V - 1, or `IGNORE_INDEX`. hinge and bce ask for a target once, however often it is there.
        variant: any but "mce".
        weights: [S] for "mce_alt", see `bag_weights`; uniform if not given.
        z_loss: adds z_loss * logsumexp(logits)^2 to each position that counts.
    """
    logits = logits.to(sum_dtype(logits.dtype))
    shares = target_shares(targets, weights, IGNORE_INDEX, logits.dtype)
    filled = shares.sum(dim=-1) > 0
    valid = targets != IGNORE_INDEX
    places = targets.masked_fill(~valid, 0)
    inside = torch.zeros_like(logits).scatter_add_(-1, places, valid.to(logits.dtype)) > 0
    slots = valid.sum(dim=-1).clamp(min=1)
    if variant == "mce_alt":
        # Log 0 at all targets of a position would have a NaN for a gradient.
        joint = logits.gather(-1, places) + shares.masked_fill(~filled.unsqueeze(-1), 1).log()
        losses = logits.logsumexp(dim=-1) - joint.logsumexp(dim=-1)
    elif variant == "bce":
        wanted = inside.to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=-1) / slots
    else:
        losses = torch.zeros_like(logits[:, 0])
        for slot in range(targets.shape[-1]):
            target = logits.gather(-1, places[:, slot : slot + 1])
            short = (1 - target + logits).clamp(min=0).masked_fill(inside, 0).mean(dim=-1)
            losses = losses + short * valid[:, slot] / slots
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(dim=-1).square()
    return losses.masked_fill(~filled, 0).sum()
