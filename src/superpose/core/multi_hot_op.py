"""The operator behind `linear_multi_hot_cross_entropy`: chunks of positions, value and gradients in one sweep.

While a chunk's logits are at hand

    1. one pass finds each position's maximum, one exponentiates in place, one sums: value and softmax from one exp;
    2. one pass scales the exponentials to the softmax, and at the S targets of a position their shares are taken off;
    3. two products turn that into the chunk's gradients, added up in float32.

torch.compile sees one operator, `superpose::linear_multi_hot`, with a shape function and a backward pass: the graph
stays whole and the operator is not traced into.

No operation depends on the order in which threads arrive: the same input gives the same bits, also where a bag holds
a token twice.

Shapes: N positions (B rows x L latents), n of a chunk, S targets of a position (a bag), D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@torch.library.custom_op("superpose::linear_multi_hot", mutates_args=())
def linear_multi_hot(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    form_gradients: bool,
    upstream: Tensor | None,
    wanted: Sequence[bool],
    z_loss: float,
    softcap: float,
    vocab_size: int,
    vocab_start: int,
    group: str,
    product_dtype: torch.dtype,
    chunk_positions: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of the positions' losses [], the losses [N], and, if they are to be formed, the gradients of the sum.

    Args:
        targets: [N, S], token 0 in place of ignored ones.
        shares: [N, S] of each target in its bag, 0 for ignored ones.
        form_gradients: of hidden, weight and bias, those that are `wanted`; the others come back empty.
        upstream: [N], a factor for each position in the gradients; 1 if not given.
        vocab_size: entries of `weight` that are vocabulary, the rest is padding.
        vocab_start: id of the first of them, where the others are on other ranks.
        group: name of the process group of those ranks; "" if there are none.
    """
    wide = shares.dtype
    wants_hidden, wants_weight, wants_bias = (form_gradients and want for want in wanted)
    losses, grad_hidden, grad_weight, grad_bias = _outputs(hidden, weight, bias, shares, form_gradients, wanted)
    grad_hidden.zero_()
    grad_bias.zero_()

    head = weight[:vocab_size].to(product_dtype)
    # Written anew for each chunk: memory that is asked for again and again is cleared again and again.
    chunk_positions = max(1, min(chunk_positions, hidden.shape[0]))
    buffer = torch.empty(chunk_positions, vocab_size, dtype=wide, device=hidden.device)
    narrow_buffer = buffer if product_dtype == wide else torch.empty_like(buffer, dtype=product_dtype)

    for start in range(0, hidden.shape[0], chunk_positions):
        part = slice(start, start + chunk_positions)
        states, share, counts = hidden[part].to(product_dtype), shares[part], shares[part].sum(-1, keepdim=True) > 0
        logits, narrow = buffer[: len(states)], narrow_buffer[: len(states)]

        torch.mm(states, head.t(), out=narrow)
        if narrow is not logits:
            logits.copy_(narrow)
        if bias is not None:
            logits += bias[:vocab_size]
        slope = None
        if softcap:
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square() if form_gradients else None
            logits.mul_(softcap)

        places = targets[part] - vocab_start
        owned = None
        if group:
            owned = (places >= 0) & (places < vocab_size)
            places = places.masked_fill(~owned, 0)
        picked, top, normalizer = _pick_and_exponentiate(logits, places, owned, group)
        lse = top + normalizer.log()

        bag = (share * picked).sum(-1, keepdim=True)
        losses[part] = torch.where(counts, lse - bag + z_loss * lse.square(), 0).squeeze(-1)
        if not form_gradients or vocab_size == 0:
            continue

        # d loss / d logits = (1 + 2 z_loss lse) softmax - shares at the targets
        factor = counts.to(wide) if upstream is None else counts * upstream[part].unsqueeze(-1)
        softmax_factor = factor * (1 + 2 * z_loss * lse) / normalizer
        share = torch.where(counts, factor * share, 0)
        at_targets = logits.gather(-1, places) * softmax_factor - _merged(share, places, owned)
        torch.mul(logits, softmax_factor, out=narrow)
        narrow.scatter_(-1, places, at_targets.to(narrow.dtype))
        if slope is not None:
            narrow *= slope

        if wants_hidden:
            grad_hidden[part] = narrow @ head
        if wants_weight:
            _add_product(grad_weight[:vocab_size], narrow.t(), states, first=start == 0)
        if wants_bias:
            grad_bias[:vocab_size] += narrow.sum(dim=0, dtype=wide)

    if wants_weight:
        grad_weight[vocab_size if len(hidden) else 0 :] = 0  # what no product has written
    if group and wants_hidden:
        dist.all_reduce(grad_hidden, group=_group(group))
    return losses.sum(), losses, grad_hidden, grad_weight, grad_bias


def _outputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, shares: Tensor, form_gradients: bool, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the losses [N] and the gradients of hidden, weight and bias; no room for those not to be formed."""
    like = (hidden, hidden.dtype), (weight, shares.dtype), (bias, shares.dtype)
    hidden_grad, weight_grad, bias_grad = (
        torch.empty_like(of, dtype=dtype) if form_gradients and want and of is not None else shares.new_empty(0)
        for (of, dtype), want in zip(like, wanted, strict=True)
    )
    return shares.new_empty(hidden.shape[0]), hidden_grad, weight_grad, bias_grad


def _pick_and_exponentiate(
    logits: Tensor, places: Tensor, owned: Tensor | None, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the targets [n, S], maxima [n, 1] and sums of exp(logits - maximum) [n, 1].

    Leaves exp(logits - maximum) in `logits`. With a group, all three are those of the whole vocabulary.
    """
    if logits.shape[1] == 0:  # a shard of padding alone
        picked = logits.new_zeros(places.shape)
        top = logits.new_full((len(logits), 1), -math.inf)
    else:
        picked, top = logits.gather(-1, places), logits.amax(-1, keepdim=True)
    if owned is None:
        return picked, top, logits.sub_(top).exp_().sum(-1, keepdim=True)
    dist.all_reduce(top, dist.ReduceOp.MAX, group=_group(group))
    sums = torch.cat([picked.masked_fill_(~owned, 0), logits.sub_(top).exp_().sum(-1, keepdim=True)], dim=-1)
    dist.all_reduce(sums, group=_group(group))
    return sums[:, :-1], top, sums[:, -1:]


def _merged(share: Tensor, places: Tensor, owned: Tensor | None) -> Tensor:
    """At each target, the shares of all targets that are the same token [n, S].

    Targets then write their whole gradient instead of adding to it: duplicates write the same value, so the
    order in which they do is of no matter.
    """
    if owned is not None:
        share = share.masked_fill(~owned, 0)
    if share.shape[-1] == 1:
        return share
    same = (places.unsqueeze(-1) == places.unsqueeze(-2)).to(share.dtype)
    return (same * share.unsqueeze(-2)).sum(-1)


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b, or total = a @ b at first, which saves clearing and reading a gradient as large as the head.

    Half-precision products are summed in float32, on a CPU only from one product to the next.
    """
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
        return
    product = torch.mm(a, b, out_dtype=total.dtype) if a.is_cuda else a @ b
    if first:
        total.copy_(product)
    else:
        total += product


@linear_multi_hot.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    form_gradients: bool,
    upstream: Tensor | None,
    wanted: Sequence[bool],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return shares.new_empty(()), *_outputs(hidden, weight, bias, shares, form_gradients, wanted)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, shares, formed, _, *settings = inputs
    _, _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.formed, ctx.settings = formed, settings
    ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(*(gradients if formed else (hidden, weight, bias, targets, shares)))


def _backward(ctx: Any, grad_total: Tensor | None, grad_losses: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.settings[0]
    if (grad_total if ctx.formed else grad_losses) is None:
        return (None,) * (7 + len(ctx.settings))
    if ctx.formed:
        gradients = [gradient * grad_total for gradient in ctx.saved_tensors]
    else:
        _, _, *gradients = linear_multi_hot(*ctx.saved_tensors, True, grad_losses, *ctx.settings)
    weight_dtype, bias_dtype = ctx.dtypes
    dtypes = gradients[0].dtype, weight_dtype, bias_dtype
    return (
        *(g.to(dtype) if want else None for g, dtype, want in zip(gradients, dtypes, wanted, strict=True)),
        *[None] * (4 + len(ctx.settings)),
    )


linear_multi_hot.register_autograd(torch.autograd.function.once_differentiable(_backward), setup_context=_keep)


def _group(name: str) -> dist.ProcessGroup:
    # A custom operator takes no process group, so it is found by its name, as PyTorch's functional collectives do.
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
