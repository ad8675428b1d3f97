"""The operator behind `linear_multi_hot_cross_entropy`: chunks of positions, value and gradients in one sweep.

While a chunk's logits are at hand

    1. one pass reads them: the logits at the targets, maxima and normalisers, hence the losses;
    2. one pass turns them into their gradients, in place (`superpose.core.passes`);
    3. two products turn those into the chunk's gradients, added up in float32.

torch.compile sees one operator, `superpose::linear_multi_hot`, with a shape function and a backward pass: the graph
stays whole and the operator is not traced into.

No operation depends on the order in which threads arrive: the same input gives the same bits, also where a bag holds
a token twice.

Shapes: N positions (B rows x L latents), n of a chunk, S targets of a position (a bag), D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpose.core.passes import passes_for


@dataclass(frozen=True)
class Settings:
    """What the loss is, beside its tensors. An operator takes no objects, so they travel `packed`.

    Args:
        wanted: of hidden, weight and bias, those that need a gradient.
        vocab_size: entries of the head that are vocabulary, the rest is padding.
        vocab_start: id of the first of them, where the others are on other ranks.
        group: name of the process group of those ranks; "" if there are none.
        product_dtype: of the operands of the matrix products.
        chunk_positions: positions at a time.
    """

    wanted: Sequence[bool]
    z_loss: float
    softcap: float
    vocab_size: int
    vocab_start: int
    chunk_positions: int
    group: str
    product_dtype: torch.dtype

    def packed(self) -> tuple[Sequence[bool], Sequence[float], Sequence[int], str, torch.dtype]:
        """The operators' last arguments."""
        sizes = self.vocab_size, self.vocab_start, self.chunk_positions
        return self.wanted, (self.z_loss, self.softcap), sizes, self.group, self.product_dtype

    @classmethod
    def of(
        cls, wanted: Sequence[bool], numbers: Sequence[float], sizes: Sequence[int], group: str, dtype: torch.dtype
    ) -> "Settings":
        """Undoes `packed`."""
        z_loss, softcap = numbers
        vocab_size, vocab_start, chunk_positions = sizes
        return cls(wanted, z_loss, softcap, vocab_size, vocab_start, chunk_positions, group, dtype)


@torch.library.custom_op("superpose::linear_multi_hot", mutates_args=())
def linear_multi_hot(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    form_gradients: bool,
    wanted: Sequence[bool],
    numbers: Sequence[float],
    sizes: Sequence[int],
    group: str,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of the positions' losses [], the losses [N], and, if they are to be formed, the gradients of the sum.

    Args:
        targets: [N, S], token 0 in place of ignored ones.
        shares: [N, S] of each target in its bag, 0 for ignored ones; their dtype is that of all sums.
        form_gradients: of hidden, weight and bias, those that are `wanted`; the others come back empty.
        wanted, numbers, sizes, group, product_dtype: `Settings.packed`.
    """
    settings = Settings.of(wanted if form_gradients else [False] * 3, numbers, sizes, group, product_dtype)
    losses, gradients = _sweep(hidden, weight, bias, targets, shares, None, settings)
    return losses.sum(), losses, *gradients


@torch.library.custom_op("superpose::linear_multi_hot_gradients", mutates_args=())
def linear_multi_hot_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    upstream: Tensor,
    wanted: Sequence[bool],
    numbers: Sequence[float],
    sizes: Sequence[int],
    group: str,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, for an upstream gradient [N] that positions meet."""
    settings = Settings.of(wanted, numbers, sizes, group, product_dtype)
    return _sweep(hidden, weight, bias, targets, shares, upstream, settings)[1]


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    upstream: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The losses [N] and the gradients of their sum, or of their product with `upstream`."""
    wants_hidden, wants_weight, wants_bias = settings.wanted
    vocab_size = settings.vocab_size
    losses = shares.new_empty(len(hidden))
    gradients = grad_hidden, grad_weight, grad_bias = _gradients(hidden, weight, bias, shares, settings.wanted)
    grad_hidden.zero_()
    grad_bias.zero_()

    head = weight[:vocab_size].to(settings.product_dtype)
    bias = None if bias is None else bias[:vocab_size]
    # Written anew for each chunk: memory that is asked for again and again is cleared again and again.
    chunk_positions = max(1, min(settings.chunk_positions, len(hidden)))
    buffer = _aligned_rows(chunk_positions, vocab_size, head)
    buffers = passes_for(buffer).work_for(buffer, shares.dtype, settings.softcap)

    for start in range(0, len(hidden), chunk_positions):
        part = slice(start, start + chunk_positions)
        states = hidden[part].to(settings.product_dtype)
        logits, work = buffer[: len(states)], [room[: len(states)] for room in buffers]
        torch.mm(states, head.t(), out=logits)
        bags = _bags(targets[part], shares[part], settings)
        losses[part], lse, own_top, to_softmax = _forward(logits, work, bias, bags, settings)
        if not any(settings.wanted) or vocab_size == 0:
            continue
        factor = bags.counts.to(shares.dtype) if upstream is None else bags.counts * upstream[part].unsqueeze(-1)
        _gradient(logits, work, bias, bags, factor, lse, own_top, to_softmax, settings)
        if wants_hidden:
            grad_hidden[part] = logits @ head
        if wants_weight:
            _add_product(grad_weight[:vocab_size], logits.t(), states, first=start == 0)
        if wants_bias:
            grad_bias[:vocab_size] += logits.sum(dim=0, dtype=shares.dtype)

    if wants_weight:
        grad_weight[vocab_size if len(hidden) else 0 :] = 0  # what no product has written
    if settings.group and wants_hidden:
        dist.all_reduce(grad_hidden, group=_group(settings.group))
    return losses, gradients


def _aligned_rows(positions: int, vocab_size: int, like: Tensor) -> Tensor:
    """Room for logits [n, V], whose rows begin on a GPU where one of its 128-byte lines of memory does.

    Products and passes then read in vectors whatever V is.
    """
    line = 128 // like.element_size() if like.is_cuda else 1
    return like.new_empty(positions, -(-vocab_size // line) * line)[:, :vocab_size]


def _gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, shares: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of hidden, weight and bias; none for those that are not wanted."""
    like = (hidden, hidden.dtype), (weight, shares.dtype), (bias, shares.dtype)
    hidden_grad, weight_grad, bias_grad = (
        torch.empty_like(of, dtype=dtype) if want and of is not None else shares.new_empty(0)
        for (of, dtype), want in zip(like, wanted, strict=True)
    )
    return hidden_grad, weight_grad, bias_grad


@dataclass(frozen=True)
class _Bags:
    """Targets of a chunk.

    Attributes:
        places: [n, S], columns of this rank's logits.
        owned: [n, S], False where a target is another rank's; None where there are none.
        share: [n, S] in its position's loss.
        counts: [n, 1], whether a position has a target that counts.
    """

    places: Tensor
    owned: Tensor | None
    share: Tensor
    counts: Tensor


def _bags(targets: Tensor, share: Tensor, settings: Settings) -> _Bags:
    counts = share.sum(-1, keepdim=True) > 0
    if not settings.group:
        return _Bags(targets, None, share, counts)
    places = targets - settings.vocab_start
    owned = (places >= 0) & (places < settings.vocab_size)
    return _Bags(places.masked_fill(~owned, 0), owned, share, counts)


def _forward(
    logits: Tensor, work: list[Tensor], bias: Tensor | None, bags: _Bags, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of a chunk [n]; logsumexps, this rank's maxima, and what makes its exponentials probabilities [n, 1]."""
    picked, own_top, normalizer = passes_for(logits).read_logits(
        logits, work, bias, settings.softcap, bags.places, bags.owned
    )
    top, own = own_top, torch.ones_like(own_top)
    if settings.group:
        group = _group(settings.group)
        top = own_top.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        own = (own_top - top).exp()
        sums = torch.cat([picked, normalizer * own], dim=-1)
        dist.all_reduce(sums, group=group)
        picked, normalizer = sums[:, :-1], sums[:, -1:]
    lse = top + normalizer.log()
    bag = (bags.share * picked).sum(-1, keepdim=True)
    losses = torch.where(bags.counts, lse - bag + settings.z_loss * lse.square(), 0)
    return losses.squeeze(-1), lse, own_top, own / normalizer


def _gradient(
    logits: Tensor,
    work: list[Tensor],
    bias: Tensor | None,
    bags: _Bags,
    factor: Tensor,
    lse: Tensor,
    own_top: Tensor,
    to_softmax: Tensor,
    settings: Settings,
) -> None:
    """d loss / d logits = (1 + 2 z_loss lse) softmax - shares at the targets, times `factor`; in place."""
    share = torch.where(bags.counts, factor * bags.share, 0)
    softmax_factor = factor * (1 + 2 * settings.z_loss * lse) * to_softmax
    merged = _merged(share, bags.places, bags.owned)
    passes_for(logits).write_gradient(
        logits, work, bias, settings.softcap, own_top, softmax_factor, bags.places, merged
    )


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
    if a.is_cuda and first:
        torch.ops.aten.mm.dtype_out(a, b, total.dtype, out=total)
        return
    if a.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
        return
    product = a @ b
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
    wanted: Sequence[bool],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _gradients(hidden, weight, bias, shares, wanted if form_gradients else [False] * 3)
    return shares.new_empty(()), shares.new_empty(hidden.shape[0]), *gradients


@linear_multi_hot_gradients.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    upstream: Tensor,
    wanted: Sequence[bool],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(hidden, weight, bias, shares, wanted)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, shares, formed, *packed = inputs
    _, _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.formed, ctx.packed = formed, packed
    ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(*(gradients if formed else (hidden, weight, bias, targets, shares)))


def _backward(ctx: Any, grad_total: Tensor | None, grad_losses: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.packed[0]
    no_gradients = (None,) * (3 + len(ctx.packed))  # of targets, shares, form_gradients and the settings
    if (grad_total if ctx.formed else grad_losses) is None:
        return None, None, None, *no_gradients
    if ctx.formed:
        gradients = tuple(gradient * grad_total for gradient in ctx.saved_tensors)
    else:
        gradients = linear_multi_hot_gradients(*ctx.saved_tensors, grad_losses, *ctx.packed)
    weight_dtype, bias_dtype = ctx.dtypes
    dtypes = gradients[0].dtype, weight_dtype, bias_dtype
    return (
        *(g.to(dtype) if want else None for g, dtype, want in zip(gradients, dtypes, wanted, strict=True)),
        *no_gradients,
    )


linear_multi_hot.register_autograd(torch.autograd.function.once_differentiable(_backward), setup_context=_keep)


def _group(name: str) -> dist.ProcessGroup:
    # A custom operator takes no process group, so it is found by its name, as PyTorch's functional collectives do.
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
