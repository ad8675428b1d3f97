"""The input side of a bag: the mean of its token embeddings.

Equivalent plain PyTorch, which holds S copies of the output::

    F.embedding(input_ids, weight).float().mean(dim=-2)        # [B, L, S] -> [B, L, D]

The mean keeps the scale a single token has (a sum would grow with S), and being unordered it is what the
target side mirrors (arXiv 2605.06546, section 3.1).

Both directions are one `embedding_bag`, a sum over bags in float32 that never holds a [B, L, S, D] tensor. Forward,
a bag is the tokens of a latent and the table is the embedding. Backward, a bag is the latents in which a token of the
vocabulary occurs, found by sorting the tokens, and the table is the gradient of the latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from superpose.core.fold import IGNORE_INDEX


def embed_bags(input_ids: Tensor, weight: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean embedding of each bag over its valid tokens.

    Args:
        input_ids: [B, L, S], or any shape whose last dimension is the bag; ids of 0 to V - 1 or `ignore_index`.
        weight: embedding table [V, D].
        ignore_index: id of tokens that take no part in the mean.

    Returns:
        [B, L, D] in the dtype of `weight`, summed in float32. A bag without a valid token is zeros.

    Raises:
        ValueError: `input_ids` has no bag dimension or `weight` is not a table.
    """
    if input_ids.dim() < 2 or weight.dim() != 2:
        raise ValueError(
            f"input_ids {list(input_ids.shape)} and weight {list(weight.shape)}; "
            f"expected bags [..., bag_size] and a table [vocab_size, width]"
        )
    valid = input_ids != ignore_index
    bags, taken = input_ids.masked_fill(~valid, 0).flatten(0, -2), valid.flatten(0, -2)
    # PyTorch's own backward pass adds up in the table's dtype on a CPU (5 % off in bfloat16 where tokens are
    # frequent) and takes twice as long; elsewhere it sorts too, and splits the long bags of frequent tokens.
    sums = (_sum_bags if weight.device.type == "cpu" else _sum_bags_natively)(bags, taken, weight)
    counts = valid.sum(dim=-1).clamp(min=1)
    # A product in float32 rounds once more than the sum did; in bfloat16 that is the last bit.
    sums = sums.reshape(*input_ids.shape[:-1], -1)
    return sums / counts.unsqueeze(-1).to(weight.dtype)


def _sum_bags_natively(bags: Tensor, taken: Tensor, weight: Tensor) -> Tensor:
    """Sums [N, D] of the rows of `weight` that are in a bag [N, S] and taken [N, S]."""
    return F.embedding_bag(bags, weight, mode="sum", per_sample_weights=taken.to(weight.dtype))


@torch.library.custom_op("superpose::sum_bags", mutates_args=())
def _sum_bags(bags: Tensor, taken: Tensor, weight: Tensor) -> Tensor:
    return _sum_bags_natively(bags, taken, weight)


@torch.library.custom_op("superpose::sum_bags_backward", mutates_args=())
def _sum_bags_backward(bags: Tensor, taken: Tensor, grad: Tensor, vocab_size: int) -> Tensor:
    """Gradient [V, D] of the table: for each token the sum of the gradients [N, D] of the bags it is taken in."""
    # Tokens that are not taken sort behind the vocabulary, where no bag reaches. Sorting is stable, so the order
    # of the sums is that of the text.
    tokens, order = bags.masked_fill(~taken, vocab_size).flatten().sort(stable=True)
    starts = torch.searchsorted(tokens, torch.arange(vocab_size + 1, device=tokens.device))
    occurrences = torch.div(order, bags.shape[-1], rounding_mode="floor")[: int(starts[-1])]
    return F.embedding_bag(occurrences, grad.contiguous(), starts, mode="sum", include_last_offset=True)


@_sum_bags.register_fake
def _(bags: Tensor, taken: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(bags.shape[0], weight.shape[1])


@_sum_bags_backward.register_fake
def _(bags: Tensor, taken: Tensor, grad: Tensor, vocab_size: int) -> Tensor:
    return grad.new_empty(vocab_size, grad.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    bags, taken, weight = inputs
    ctx.save_for_backward(bags, taken)
    ctx.vocab_size = weight.shape[0]


def _backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
    return None, None, _sum_bags_backward(*ctx.saved_tensors, grad, ctx.vocab_size)


_sum_bags.register_autograd(torch.autograd.function.once_differentiable(_backward), setup_context=_keep)
