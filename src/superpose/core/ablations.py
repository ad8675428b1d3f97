"""Losses of a bag that fail: the paper trained with them too, and ended above ordinary training.

They are here so that this can be seen again (arXiv 2605.06546, appendix C); `superpose.core.loss` holds the ones to
train with. Both ask of every vocabulary entry on its own whether it is in the bag, and compute whole logits. The
paper names them without their normalisation; the one chosen here gives each target about the gradient it has in MCE.

Shapes: N rows, S targets of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from superpose.core.fold import IGNORE_INDEX

Ablation = Literal["hinge", "bce"]


def ablated_loss(logits: Tensor, targets: Tensor, ablation: Ablation) -> Tensor:
    """Sum over rows of a loss of logits [N, V] against bags of targets [N, S]; a target is asked for once.

    hinge: for each target, by how much the entries outside the bag come closer to it than a margin of 1; mean over
    targets, mean over entries. bce: binary cross-entropy of each entry's sigmoid, summed over entries and divided by
    the number of targets.
    """
    logits = logits.float()
    valid = targets != IGNORE_INDEX
    places = targets.masked_fill(~valid, 0)
    counts = torch.zeros_like(logits).scatter_add_(-1, places, valid.float())
    inside = counts > 0
    slots = valid.sum(dim=-1).clamp(min=1)
    filled = valid.any(dim=-1)
    if ablation == "bce":
        rows = F.binary_cross_entropy_with_logits(logits, inside.float(), reduction="none").sum(dim=-1) / slots
    else:
        rows = torch.zeros_like(logits[:, 0])
        for slot in range(targets.shape[-1]):
            target = logits.gather(-1, places[:, slot : slot + 1])
            short = (1 - target + logits).clamp(min=0).masked_fill(inside, 0).mean(dim=-1)
            rows = rows + short * valid[:, slot] / slots
    return rows.masked_fill(~filled, 0).sum()
