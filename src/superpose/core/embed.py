"""The input side of a bag: one vector out of its token embeddings, by default their mean.

Equivalent plain PyTorch, which holds S copies of the output::

    F.embedding(input_ids, weight).float().mean(dim=-2)        # [B, L, S] -> [B, L, D]

The mean keeps the scale a single token has (a sum would grow with S), and being unordered it is what the
target side mirrors (arXiv 2605.06546, section 3.1). Other poolings weigh the token at place i of a bag by g_i, over
those that are valid::

    vector = sum of g_i x_i / (sum of g_i) ** e         mean: g_i = 1, e = 1     sqrt: g_i = 1, e = 1/2
                                                        power: g_i = 1/i, e = 1

Both directions are one `embedding_bag`, a sum over bags in float32 that never holds a [B, L, S, D] tensor. Forward,
a bag is the tokens of a latent and the table is the embedding. Backward, a bag is the latents in which a token of the
vocabulary occurs, found by sorting the tokens, and the table is the gradient of the latents. An embedding that does
more than look up is called as it is: see `embed_tokens`.

Shapes: B rows of a batch, L latents, N = B x L positions, S tokens in a bag, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superpose.core.fold import IGNORE_INDEX, may_hold_ignored

Pooling = Literal["mean", "sqrt", "power"]
"""How a bag's tokens become one vector. None is in the paper but the mean."""


class _Pool(NamedTuple):
    """Of a pooling: g_i of a place in the bag, counted from 1, and e."""

    weight: Callable[[int], float]
    exponent: float


_POOLS: dict[Pooling, _Pool] = {
    "mean": _Pool(lambda place: 1.0, 1.0),
    # Means of S vectors that have nothing to do with each other have 1/S of their variance; this keeps it.
    "sqrt": _Pool(lambda place: 1.0, 0.5),
    "power": _Pool(lambda place: 1 / place, 1.0),
}


def embed_bags(
    input_ids: Tensor,
    weight: Tensor,
    ignore_index: int = IGNORE_INDEX,
    padding_idx: int | None = None,
    pooling: Pooling = "mean",
) -> Tensor:
    """Embedding of each bag, the mean over its valid tokens or another pooling of them.

    Args:
        input_ids: [B, L, S], or any shape whose last dimension is the bag; ids of 0 to V - 1 or `ignore_index`.
        weight: embedding table [V, D].
        ignore_index: id of tokens that take no part.
        padding_idx: id whose vector is looked up like any other but gets no gradient, as `nn.Embedding` has it.
        pooling: "mean" (the paper's); "sqrt", the mean times the root of the number of tokens, which keeps the
            variance a single token has; "power", weights 1/i by the place i in the bag, scaled to sum to 1. Of one
            token each is its embedding.

    Returns:
        [B, L, D] in the dtype of `weight`, summed in float32. A bag without a valid token is zeros.

    Raises:
        ValueError: `input_ids` has no bag dimension, `weight` is not a table, or the pooling is unknown.
    """
    check_pooling(pooling)
    if input_ids.dim() < 2 or weight.dim() != 2:
        raise ValueError(
            f"input_ids {list(input_ids.shape)} and weight {list(weight.shape)}; "
            f"expected bags [..., bag_size] and a table [vocab_size, width]"
        )
    bags, pool = input_ids.flatten(0, -2), _POOLS[pooling]
    places = [pool.weight(place) for place in range(1, bags.shape[1] + 1)]
    if len({*places}) > 1:
        pooled = _weighted(
            bags, weight, _shares(bags != ignore_index, places, pool.exponent, weight.dtype), padding_idx
        )
        return pooled.reshape(*input_ids.shape[:-1], -1)
    # PyTorch's own backward pass adds up in the table's dtype on a CPU (5 % off in bfloat16 where tokens are
    # frequent) and takes longer; elsewhere it sorts too, and splits the long bags of frequent tokens.
    means: Tensor = (
        _mean_bags(bags, weight, ignore_index, padding_idx)
        if weight.device.type == "cpu"
        else _mean_of_valid(bags, weight, bags != ignore_index, padding_idx)
    )
    if pool.exponent != 1:
        means = means * _divisors(bags != ignore_index, weight.dtype) ** (1 - pool.exponent)
    return means.reshape(*input_ids.shape[:-1], -1)


def check_pooling(pooling: str) -> None:
    """A ValueError for a name that is no pooling's."""
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling is {pooling!r}; choose one of {', '.join(get_args(Pooling))}")


def pool_divisors(valid: Tensor, pooling: Pooling, dtype: torch.dtype) -> Tensor:
    """What the weighted sum of a bag's embeddings is divided by, (sum of g_i) ** e: of valid [..., S], [..., 1].

    1 where no token is valid, and the sum is 0. In float32, or float64 for that dtype.
    """
    pool = _POOLS[pooling]
    weights = _place_weights(valid, [pool.weight(place) for place in range(1, valid.shape[-1] + 1)], dtype)
    return _mass(weights) ** pool.exponent


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
    if inputs.dim() == 3 and _only_looks_up(embedding):
        return embed_bags(inputs, embedding.weight, padding_idx=embedding.padding_idx, pooling=pooling)
    some = may_hold_ignored(inputs)
    ignored = inputs == IGNORE_INDEX if some else None
    vectors = embedding((inputs if ignored is None else inputs.masked_fill(ignored, 0)).flatten(1))
    if inputs.dim() == 2:
        return vectors if ignored is None else vectors.masked_fill(ignored.unsqueeze(-1), 0)
    # The pooling of vectors that are there already is a look-up of each: it holds no copy of them.
    places = torch.arange(inputs.numel(), device=inputs.device).view(inputs.shape)
    places = places if ignored is None else places.masked_fill(ignored, IGNORE_INDEX)
    return embed_bags(places, vectors.flatten(0, 1), pooling=pooling)


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
    sums = _sums_of_shares(bags, weight, valid.to(weight.dtype), padding_idx)
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
    return _sums_by_token(bags, valid, grad, vocab_size)


def _shares(valid: Tensor, places: list[float], exponent: float, dtype: torch.dtype) -> Tensor:
    """What the tokens of bags [N, S] are multiplied with, by their places; 0 where they are not valid."""
    weights = _place_weights(valid, places, dtype)
    return (weights / _mass(weights) ** exponent).to(dtype)


def _place_weights(valid: Tensor, places: list[float], dtype: torch.dtype) -> Tensor:
    """The places' weights [..., S], 0 where they are not valid."""
    # Made where they are: a copy from the host would have it wait.
    precise = torch.promote_types(dtype, torch.float32)
    weights = torch.stack([valid.new_full((), place, dtype=precise) for place in places])
    return torch.where(valid, weights, 0.0)


def _mass(weights: Tensor) -> Tensor:
    """Sums [..., 1] of weights [..., S]; 1 where there are none."""
    mass = weights.sum(dim=-1, keepdim=True)
    return mass.masked_fill(mass == 0, 1)


def _weighted(bags: Tensor, weight: Tensor, shares: Tensor, padding_idx: int | None) -> Tensor:
    """Sums [N, D] of tokens [N, S] times their shares [N, S]."""
    if weight.device.type == "cpu":
        pooled: Tensor = _weigh_bags(bags, weight, shares, padding_idx)
        return pooled
    return _sums_of_shares(bags, weight, shares, padding_idx)


def _sums_of_shares(bags: Tensor, weight: Tensor, shares: Tensor, padding_idx: int | None) -> Tensor:
    """The same by PyTorch's own operator; tokens without a share may have any id."""
    learned = shares if padding_idx is None else shares.masked_fill(bags == padding_idx, 0)
    sums = F.embedding_bag(bags.masked_fill(learned == 0, 0), weight, mode="sum", per_sample_weights=learned)
    if padding_idx is not None:
        sums = sums + (shares - learned).sum(dim=-1, keepdim=True) * weight[padding_idx].detach()
    return sums


@torch.library.custom_op("superpose::weigh_bags", mutates_args=())
def _weigh_bags(bags: Tensor, weight: Tensor, shares: Tensor, padding_idx: int | None) -> Tensor:
    return _sums_of_shares(bags, weight.detach(), shares, None)  # padding is of matter to the gradient alone


@torch.library.custom_op("superpose::weigh_bags_backward", mutates_args=())
def _weigh_bags_backward(
    bags: Tensor, grad: Tensor, shares: Tensor, padding_idx: int | None, vocab_size: int
) -> Tensor:
    learned = shares != 0
    if padding_idx is not None:
        learned &= bags != padding_idx
    return _sums_by_token(bags, learned, grad, vocab_size, shares)


def _sums_by_token(
    bags: Tensor, learned: Tensor, grad: Tensor, vocab_size: int, shares: Tensor | None = None
) -> Tensor:
    """For each token [V, D] the sum over its learned occurrences of their bag's gradient [N, D], times their share."""
    # Tokens that get no gradient sort behind the vocabulary, where no bag reaches. A number holds a token and the
    # bag it is in, or where shares differ which of all places, so that the order of the sums is that of the text, and
    # NumPy sorts numbers several times as fast as PyTorch sorts what has an order to keep.
    numbers = torch.arange(len(bags)).unsqueeze(1) if shares is None else torch.arange(bags.numel()).view(bags.shape)
    bits = numbers.numel().bit_length()
    occurrences = (bags.long().masked_fill(~learned, vocab_size) << bits | numbers).flatten()
    occurrences.numpy().sort()
    starts = F.pad(torch.bincount(occurrences >> bits, minlength=vocab_size + 1)[:vocab_size].cumsum(0), (1, 0))
    places = occurrences[: int(starts[-1])] & ((1 << bits) - 1)
    if shares is None:
        return F.embedding_bag(places, grad, starts, mode="sum", include_last_offset=True)
    weights, places = shares.flatten()[places], places // bags.shape[1]
    return F.embedding_bag(places, grad, starts, mode="sum", include_last_offset=True, per_sample_weights=weights)


@_mean_bags.register_fake
def _(bags: Tensor, weight: Tensor, ignore_index: int, padding_idx: int | None = None) -> Tensor:
    return weight.new_empty(bags.shape[0], weight.shape[1])


@_mean_bags_backward.register_fake
def _(bags: Tensor, grad: Tensor, ignore_index: int, padding_idx: int | None, vocab_size: int) -> Tensor:
    return grad.new_empty(vocab_size, grad.shape[1])


@_weigh_bags.register_fake
def _(bags: Tensor, weight: Tensor, shares: Tensor, padding_idx: int | None) -> Tensor:
    return weight.new_empty(bags.shape[0], weight.shape[1])


@_weigh_bags_backward.register_fake
def _(bags: Tensor, grad: Tensor, shares: Tensor, padding_idx: int | None, vocab_size: int) -> Tensor:
    return grad.new_empty(vocab_size, grad.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, int, int | None], output: Tensor) -> None:
    bags, weight, ignore_index, padding_idx = inputs
    ctx.save_for_backward(bags)
    ctx.settings = ignore_index, padding_idx, weight.shape[0]


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
    return None, _mean_bags_backward(*ctx.saved_tensors, grad, *ctx.settings), None, None


_mean_bags.register_autograd(torch.autograd.function.once_differentiable(_backward), setup_context=_keep)


def _keep_shares(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int | None], output: Tensor) -> None:
    bags, weight, shares, padding_idx = inputs
    ctx.save_for_backward(bags, shares)
    ctx.settings = padding_idx, weight.shape[0]


def _backward_by_shares(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
    bags, shares = ctx.saved_tensors
    return None, _weigh_bags_backward(bags, grad, shares, *ctx.settings), None, None


_weigh_bags.register_autograd(
    torch.autograd.function.once_differentiable(_backward_by_shares), setup_context=_keep_shares
)
