"""The load of a mixture of experts: router logits -> share of each expert, and the loss that evens the shares out.

Switch Transformer, arXiv 2101.03961, equations 4 to 6, over all layers together. A bag is one latent and counts once.

Shapes: B rows of a batch, L latents, N = B x L positions, E experts, K of them chosen for each latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def balance_loss(
    router_logits: Sequence[Tensor],
    chosen: int,
    attention_mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """E x sum over experts of (choices per latent) x (mean router probability), and the experts' loads.

    Args:
        router_logits: of each layer [N, E] or [B, L, E].
        chosen: K, experts a latent is sent to.
        attention_mask: 0 for latents that do not count [B, L].
        group: ranks among which a step's latents are divided. Choices are then counted over all of them, so that the
            mean of the ranks' losses, and of their gradients, is that of the whole step; counted on each rank alone,
            it would force every rank's share to be even. Each rank has as many latents.

    Returns:
        the loss, K where the load is even; and the share of all choices that fell on each expert [E].
    """
    logits = torch.stack([layer.flatten(0, -2) for layer in router_logits])
    probabilities = logits.float().softmax(dim=-1)
    weight = torch.ones(logits.shape[1], device=logits.device)
    if attention_mask is not None:
        weight = attention_mask.flatten().to(weight)
    latents = weight.sum().clamp(min=1) * len(router_logits)
    with torch.no_grad():
        picks = probabilities.topk(chosen, dim=-1).indices
        counts = torch.zeros(logits.shape[-1], device=logits.device)
        counts.scatter_add_(0, picks.flatten(), weight.view(1, -1, 1).expand_as(picks).flatten())
        choices = counts / latents
        if group is not None:
            dist.all_reduce(choices, group=group)
            choices = choices / group.size()
    mean_probability = (probabilities * weight.view(1, -1, 1)).sum(dim=(0, 1)) / latents
    return logits.shape[-1] * (choices * mean_probability).sum(), choices / chosen
