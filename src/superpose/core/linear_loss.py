"""The multi-hot cross-entropy from hidden states, at the cost of its matrix products.

    hidden [N, D] --head--> logits of a chunk [n, V] --> loss of its rows
                                   |
                                   +-- in place: d loss / d logits --> gradients of hidden and head

The loss of a head is three matrix products (logits, gradient of hidden, gradient of head) and some passes over
N x V numbers. Done naively the passes cost as much as the products, and the N x V numbers are the largest tensor
of the whole training step. Here rows go through the head in chunks, and while a chunk's logits are at hand

    1. one pass finds each row's maximum, one exponentiates in place, one sums: value and softmax from one exp;
    2. one pass scales the exponentials to the softmax, and at the S targets of a row their shares are taken off;
    3. two products turn that into the chunk's gradients, added up in float32.

So the forward pass does all the work, the backward pass only scales two gradients, nothing is computed twice, and
two chunks of rows x V are the largest temporary there is. docs/loss.md has the argument with its measurements.

Precision
    Logits are float32 (float64 for float64), and so are the sums over the vocabulary, the loss, and the head's
    gradient until it is returned. The products run in the dtype of their operands or of autocast; on a CPU that
    cannot multiply in half precision, in float32, which is both faster there and closer.

Order
    No operation depends on the order in which threads arrive: the same input gives the same bits, also where a
    bag holds a token twice.

torch.compile sees one operator, `superpose::linear_multi_hot`, with a shape function and a backward pass: the graph
stays whole and the operator is not traced into.

Shapes: N rows, S targets of a row, D width, V vocabulary, n rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpose.core.fold import IGNORE_INDEX
from superpose.core.loss import Reduction, Variant, bagged, count_rows, target_shares


def _cpu_halves() -> set[torch.dtype]:
    """Half precisions that this CPU has instructions to multiply matrices in; where PyTorch cannot tell, none."""
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    of = {torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"), torch.float16: ("avx512_fp16", "amx_fp16", "fp16")}
    return {dtype for dtype, names in of.items() if any(can.get(name) for name in names)}


_CPU_HALVES = _cpu_halves()


def linear_multi_hot_cross_entropy(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
    variant: Variant = "mce",
    z_loss: float = 0.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """`multi_hot_cross_entropy(F.linear(hidden, lm_head_weight, bias), targets, ...)` without the N x V logits.

    Equivalent plain PyTorch::

        logits = F.linear(hidden, lm_head_weight, bias)[..., :vocab_size].float()
        logits = softcap * torch.tanh(logits / softcap)                             # if there is a cap
        multi_hot_cross_entropy(logits, targets, weights, ignore_index, reduction, variant, z_loss)

    Under `torch.no_grad()` it does the first product only; a hidden, head or bias that needs no gradient costs
    none. It belongs outside activation checkpointing, which would do the forward pass, gradients and all, twice.

    Args:
        hidden: [..., D], the model's last hidden states.
        lm_head_weight: [V, D]. Tied to the embedding or not.
        targets: [..., S], or [...] for one target a row; ids of 0 to V - 1 or `ignore_index`.
        weights: [S], see `bag_weights`; uniform if not given.
        bias: [V] of the head, if it has one.
        ignore_index: marks targets that take no part.
        reduction: "mean" or "sum", see the normalisation of `superpose.core.loss`. "none" forms its gradients in
            the backward pass, from logits computed again, since rows then meet different gradients.
        variant: "mce", or "mce_alt" for the bag's total probability, see `superpose.core.loss`.
        z_loss: adds z_loss * logsumexp^2 to each row that counts.
        softcap: logits are softcap * tanh(logits / softcap), as Gemma 2 has them (arXiv 2408.00118, section 2).
        vocab_size: rows of the head from here on are padding: no probability, and a gradient of zero.
        chunk_rows: rows at a time, by default chosen from the shapes; it changes speed and memory, not results.

    Returns:
        A scalar in float32 (float64 for float64), or [...] for "none" (0 for rows without a valid target).

    Raises:
        ValueError: shapes that do not belong together, a setting out of range, or a head that is a DTensor.
    """
    return _linear_loss(
        hidden, lm_head_weight, targets, weights, bias, ignore_index, reduction, variant, z_loss, softcap,
        lm_head_weight.shape[0] if vocab_size is None else vocab_size, 0, "", chunk_rows,
    )  # fmt: skip


def vocab_parallel_multi_hot_cross_entropy(
    hidden: Tensor,
    lm_head_shard: Tensor,
    targets: Tensor,
    vocab_start: int,
    group: dist.ProcessGroup,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
    variant: Variant = "mce",
    z_loss: float = 0.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """`linear_multi_hot_cross_entropy` over a head whose rows are spread over the ranks of a group.

    Every rank gives the same hidden states and targets, and its own rows of the head. For each chunk the ranks
    exchange a maximum and, in one sum, the normaliser and the targets' logits: n (S + 2) numbers, never logits.

    Args:
        hidden: [..., D], the same on every rank of the group.
        lm_head_shard: [V / ranks, D], this rank's rows; shards may differ in size and even be empty.
        targets: [..., S] or [...], the same on every rank; ids of the whole vocabulary.
        vocab_start: id of the shard's first row.
        group: the ranks that share the head.
        bias: [V / ranks], this rank's part.
        vocab_size: of the whole head without padding; by default nothing is padding.
        weights, ignore_index, reduction, variant, z_loss, softcap, chunk_rows: as without shards.

    Returns:
        The loss, the same on every rank. Backward gives each rank the gradient of its own shard and the whole
        gradient of hidden, so nothing before the head has to be summed over the group.

    Raises:
        ValueError: as without shards.
    """
    return _linear_loss(
        hidden, lm_head_shard, targets, weights, bias, ignore_index, reduction, variant, z_loss, softcap,
        vocab_start + lm_head_shard.shape[0] if vocab_size is None else vocab_size,
        vocab_start, group.group_name, chunk_rows,
    )  # fmt: skip


def _linear_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    variant: Variant,
    z_loss: float,
    softcap: float | None,
    vocab_size: int,
    vocab_start: int,
    group: str,
    chunk_rows: int | None,
) -> Tensor:
    targets = bagged(hidden, targets, weights, reduction, variant)
    _check_head(hidden, weight, bias, softcap, vocab_size, chunk_rows, bool(group))
    leading = hidden.shape[:-1]
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1, targets.shape[-1])
    product_dtype = _product_dtype(hidden, weight)
    shares = target_shares(targets, weights, ignore_index, _wide(product_dtype))
    total, rows, *_ = _linear_multi_hot(
        hidden,
        weight,
        bias,
        targets.masked_fill(targets == ignore_index, 0),
        shares,
        torch.is_grad_enabled() and reduction != "none",
        None,
        [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)],
        variant == "mce_alt",
        z_loss,
        softcap or 0.0,
        max(0, min(vocab_size - vocab_start, weight.shape[0])),
        vocab_start,
        group,
        product_dtype,
        chunk_rows or _chunk_rows(hidden, weight),
    )
    loss: Tensor = rows.reshape(leading) if reduction == "none" else total
    return loss / count_rows(targets, weights, ignore_index).clamp(min=1) if reduction == "mean" else loss


@torch.library.custom_op("superpose::linear_multi_hot", mutates_args=())
def _linear_multi_hot(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    form_gradients: bool,
    upstream: Tensor | None,
    wanted: Sequence[bool],
    total_probability: bool,
    z_loss: float,
    softcap: float,
    vocab_size: int,
    vocab_start: int,
    group: str,
    product_dtype: torch.dtype,
    chunk_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of the rows' losses [], the rows [N], and, if they are to be formed, the gradients of the sum.

    Args:
        targets: [N, S], token 0 in place of ignored ones.
        shares: [N, S] of each target in its row, 0 for ignored ones.
        form_gradients: of hidden, weight and bias, those that are `wanted`; the others come back empty.
        upstream: [N], a factor for each row in the gradients; 1 if not given.
        vocab_size: rows of `weight` that are vocabulary, the rest is padding.
        vocab_start: id of the first of them, where the others are on other ranks.
        group: name of the process group of those ranks; "" if there are none.
    """
    wide = shares.dtype
    wants_hidden, wants_weight, wants_bias = (form_gradients and want for want in wanted)
    grad_hidden = torch.zeros_like(hidden) if wants_hidden else hidden.new_empty(0)
    grad_weight = torch.empty_like(weight, dtype=wide) if wants_weight else weight.new_empty(0)
    grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wants_bias else weight.new_empty(0)

    head = weight[:vocab_size].to(product_dtype)
    rows = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
    # Written anew for each chunk: memory that is asked for again and again is cleared again and again.
    chunk_rows = max(1, min(chunk_rows, hidden.shape[0]))
    buffer = torch.empty(chunk_rows, vocab_size, dtype=wide, device=hidden.device)
    narrow_buffer = buffer if product_dtype == wide else torch.empty_like(buffer, dtype=product_dtype)

    for start in range(0, hidden.shape[0], chunk_rows):
        part = slice(start, start + chunk_rows)
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

        if total_probability:
            joint = picked + share.log()
            bag = joint.logsumexp(-1, keepdim=True)
            share = (joint - bag).exp()
        else:
            bag = (share * picked).sum(-1, keepdim=True)
        rows[part] = torch.where(counts, lse - bag + z_loss * lse.square(), 0).squeeze(-1)
        if not form_gradients or vocab_size == 0:
            continue

        # d row / d logits = (1 + 2 z_loss lse) softmax - shares at the targets
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
    return rows.sum(), rows, grad_hidden, grad_weight, grad_bias


def _pick_and_exponentiate(
    logits: Tensor, places: Tensor, owned: Tensor | None, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the targets [n, S], row maxima [n, 1] and sums of exp(logits - maximum) [n, 1].

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


@_linear_multi_hot.register_fake
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
    wants_hidden, wants_weight, wants_bias = (form_gradients and want for want in wanted)
    rows = shares.new_empty(hidden.shape[0])
    grad_bias = torch.empty_like(bias, dtype=rows.dtype) if bias is not None and wants_bias else weight.new_empty(0)
    return (
        rows.new_empty(()),
        rows,
        torch.empty_like(hidden) if wants_hidden else hidden.new_empty(0),
        torch.empty_like(weight, dtype=rows.dtype) if wants_weight else weight.new_empty(0),
        grad_bias,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, shares, formed, _, *settings = inputs
    _, _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.formed, ctx.settings = formed, settings
    ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(*(gradients if formed else (hidden, weight, bias, targets, shares)))


def _backward(ctx: Any, grad_total: Tensor | None, grad_rows: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.settings[0]
    if (grad_total if ctx.formed else grad_rows) is None:
        return (None,) * (7 + len(ctx.settings))
    if ctx.formed:
        gradients = [gradient * grad_total for gradient in ctx.saved_tensors]
    else:
        _, _, *gradients = _linear_multi_hot(*ctx.saved_tensors, True, grad_rows, *ctx.settings)
    weight_dtype, bias_dtype = ctx.dtypes
    dtypes = gradients[0].dtype, weight_dtype, bias_dtype
    return (
        *(g.to(dtype) if want else None for g, dtype, want in zip(gradients, dtypes, wanted, strict=True)),
        *[None] * (4 + len(ctx.settings)),
    )


_linear_multi_hot.register_autograd(torch.autograd.function.once_differentiable(_backward), setup_context=_keep)


def _check_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    vocab_size: int,
    chunk_rows: int | None,
    sharded: bool,
) -> None:
    if hasattr(weight, "to_local"):
        raise ValueError(
            "lm_head_weight is a DTensor: compute the loss inside the forward pass of the module that FSDP wraps, "
            "or give its local rows to vocab_parallel_multi_hot_cross_entropy"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"lm_head_weight {list(weight.shape)} does not fit hidden states {list(hidden.shape)}; "
            f"expected [vocab_size, {hidden.shape[-1]}]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} does not fit the head; expected [{weight.shape[0]}]")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}; give a positive number, or None for no cap")
    if not sharded and not 0 < vocab_size <= weight.shape[0]:
        raise ValueError(f"vocab_size is {vocab_size} for a head of {weight.shape[0]} rows; give 1 to that many")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; give at least 1, or None to have it chosen")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Dtype of the matrix products' operands: autocast's, or that of hidden and head, see Precision above."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if device == "cpu" and dtype.itemsize == 2 and dtype not in _CPU_HALVES:
        return torch.float32
    return dtype


def _chunk_rows(hidden: Tensor, weight: Tensor) -> int:
    """Rows of a chunk.

    On a CPU as few as keep the products efficient, so that the passes between them find the logits in cache: 128,
    or as many as make 1 MiB of logits for a small vocabulary. Elsewhere products need more rows to fill the device,
    and memory sets the limit: as many as make the logits as large as the hidden states, at least 1024.
    """
    rows, width = hidden.shape
    vocab_size = max(1, weight.shape[0])
    if hidden.device.type == "cpu":
        return max(128, 2**18 // vocab_size)
    return max(1024, rows * width // vocab_size)


def _group(name: str) -> dist.ProcessGroup:
    # A custom operator takes no process group, so it is found by its name, as PyTorch's functional collectives do.
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
