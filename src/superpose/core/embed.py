"""The input side of a bag: the mean of its token embeddings.

Equivalent plain PyTorch, which holds S copies of the output::

    F.embedding(input_ids, weight).float().mean(dim=-2)        # [B, L, S] -> [B, L, D]

The mean keeps the scale a single token has (a sum would grow with S), and being unordered it is what the
target side mirrors (arXiv 2605.06546, section 3.1).

Both directions are one `embedding_bag`, a sum over bags in float32 that never holds a [B, L, S, D] tensor. Forward,
a bag is the tokens of a latent and the table is the embedding. Backward, a bag is the latents in which a token of the
vocabulary occurs, found by sorting the tokens, and the table is the gradient of the latents. An embedding that does
more than look up is called as it is: see `embed_tokens`.

Shapes: B rows of a batch, L latents, N = B x L positions, S tokens in a bag, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superpose.core.fold import IGNORE_INDEX, may_hold_ignored

Pooling = Literal["mean", "sqrt", "power"]
"""How a bag's tokens become one vector: their mean; the mean times the root of their number; weighed by 1/i."""


def embed_bags(
    input_ids: Tensor, weight: Tensor, ignore_index: int = IGNORE_INDEX, padding_idx: int | None = None
) -> Tensor:
    """Mean embedding of each bag over its valid tokens.

    Args:
        input_ids: [B, L, S], or any shape whose last dimension is the bag; ids of 0 to V - 1 or `ignore_index`.
        weight: embedding table [V, D].
        ignore_index: id of tokens that take no part in the mean.
        padding_idx: id whose vector is looked up like any other but gets no gradient, as `nn.Embedding` has it.

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
    bags = input_ids.flatten(0, -2)
    # PyTorch's own backward pass adds up in the table's dtype on a CPU (5 % off in bfloat16 where tokens are
    # frequent) and takes longer; elsewhere it sorts too, and splits the long bags of frequent tokens.
    means: Tensor = (
        _mean_bags(bags, weight, ignore_index, padding_idx)
        if weight.device.type == "cpu"
        else _mean_of_valid(bags, weight, bags != ignore_index, padding_idx)
    )
    return means.reshape(*input_ids.shape[:-1], -1)


def embed_tokens(inputs: Tensor, embedding: Callable[[Tensor], Tensor], pooling: Pooling = "mean") -> Tensor:
    """Embeddings [B, L, D] of bags [B, L, S] or single tokens [B, L]; zeros where all is ignored.

    A plain `nn.Embedding`, with a `padding_idx` or without, only lends its table to `embed_bags`. One that does more
    (scales, clips, has a hook) is called once, on the row's tokens [B, L x S], and hooks see these and their vectors
    [B, L x S, D], as in an ordinary forward pass over them.

    Args:
        inputs: as `split_window` gives them.
        embedding: a module or function from ids [...] to vectors [..., D].
        pooling: of the tokens of a bag, see `embed_bags`.
    """
    if pooling != "mean":
        raise ValueError(f"pooling is {pooling!r}; choose one of mean")
    if inputs.dim() == 3 and _only_looks_up(embedding):
        return embed_bags(inputs, embedding.weight, padding_idx=embedding.padding_idx)
    some = may_hold_ignored(inputs)
    ignored = inputs == IGNORE_INDEX if some else None
    vectors = embedding((inputs if ignored is None else inputs.masked_fill(ignored, 0)).flatten(1))
    if inputs.dim() == 2:
        return vectors if ignored is None else vectors.masked_fill(ignored.unsqueeze(-1), 0)
    # The mean of vectors that are there already is a look-up of each: it holds no copy of them.
    places = torch.arange(inputs.numel(), device=inputs.device).view(inputs.shape)
    return embed_bags(places if ignored is None else places.masked_fill(ignored, IGNORE_INDEX), vectors.flatten(0, 1))


def _only_looks_up(embedding: Callable[[Tensor], Tensor]) -> TypeGuard[nn.Embedding]:
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return False
    hooks = (
        *(embedding._forward_hooks, embedding._forward_pre_hooks),
        *(embedding._backward_hooks, embedding._backward_pre_hooks),
    )
    return not embedding.sparse and not any(hooks) and "forward" not in vars(embedding)


def _mean_of_valid(bags: Tensor, weight: Tensor, valid: Tensor, padding_idx: int | None = None) -> Tensor:
    """Means [N, D] over the valid [N, S] tokens of bags [N, S]; zeros where there is none."""
    learned = valid if padding_idx is None else valid & (bags != padding_idx)
    tokens = bags.masked_fill(~learned, 0)
    sums = F.embedding_bag(tokens, weight, mode="sum", per_sample_weights=learned.to(weight.dtype))
    if padding_idx is not None:
        padding = (valid & ~learned).sum(dim=-1, keepdim=True).to(weight.dtype)
        sums = sums + padding * weight[padding_idx].detach()
    # A product in float32 rounds once more than the sum did; in bfloat16 that is the last bit.
    return sums / _divisors(valid, weight.dtype)


def _divisors(valid: Tensor, dtype: torch.dtype) -> Tensor:
    return valid.sum(dim=-1, keepdim=True).clamp(min=1).to(dtype)


@torch.library.custom_op("superpose::mean_bags", mutates_args=())
def _mean_bags(bags: Tensor, weight: Tensor, ignore_index: int, padding_idx: int | None = None) -> Tensor:
    valid = bags != ignore_index
    if valid.all():  # as nearly always, and then there is nothing to weigh
        return F.embedding_bag(bags, weight.detach(), mode="sum").div_(bags.shape[-1])
    return _mean_of_valid(bags, weight.detach(), valid)  # padding is of matter to the gradient alone


@torch.library.custom_op("superpose::mean_bags_backward", mutates_args=())
def _mean_bags_backward(
    bags: Tensor, grad: Tensor, ignore_index: int, padding_idx: int | None, vocab_size: int
) -> Tensor:
    """Gradient [V, D] of the table: for each token the sum over its occurrences of the bag's gradient [N, D]."""
    valid = bags != ignore_index
    grad = grad / _divisors(valid, grad.dtype)
    if padding_idx is not None:
        valid &= bags != padding_idx
    # Tokens that get no gradient sort behind the vocabulary, where no bag reaches. A number holds a token and the
    # bag it is in, so that the order of the sums is that of the text, and NumPy sorts numbers several times as fast
    # as PyTorch sorts what has an order to keep.
    bits = len(bags).bit_length()
    occurrences = bags.long().masked_fill(~valid, vocab_size) << bits | torch.arange(len(bags)).unsqueeze(1)
    occurrences = occurrences.flatten()
    occurrences.numpy().sort()
    starts = F.pad(torch.bincount(occurrences >> bits, minlength=vocab_size + 1)[:vocab_size].cumsum(0), (1, 0))
    places = occurrences[: int(starts[-1])] & ((1 << bits) - 1)
    return F.embedding_bag(places, grad, starts, mode="sum", include_last_offset=True)


@_mean_bags.register_fake
def _(bags: Tensor, weight: Tensor, ignore_index: int, padding_idx: int | None = None) -> Tensor:
    return weight.new_empty(bags.shape[0], weight.shape[1])


@_mean_bags_backward.register_fake
def _(bags: Tensor, grad: Tensor, ignore_index: int, padding_idx: int | None, vocab_size: int) -> Tensor:
    return grad.new_empty(vocab_size, grad.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, int, int | None], output: Tensor) -> None:
    bags, weight, ignore_index, padding_idx = inputs
    ctx.save_for_backward(bags)
    ctx.settings = ignore_index, padding_idx, weight.shape[0]


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
    return None, _mean_bags_backward(*ctx.saved_tensors, grad, *ctx.settings), None, None


_mean_bags.register_autograd(torch.autograd.function.once_differentiable(_backward), setup_context=_keep)
