"""Value and gradients of the loss in one sweep over the positions, a chunk of them at a time.

While a chunk's logits are at hand

    1. one pass reads them: the logits at the targets, maxima and normalisers, hence the losses;
    2. one pass turns them into their gradients, in place (`superpose.core.passes`);
    3. two products turn those into the chunk's gradients, added up in float32.

No operation depends on the order in which threads arrive: the same input gives the same bits, also where a bag holds
a token twice.

Shapes: N positions (B rows x L latents), n of a chunk, S targets of a position (a bag), D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from superpose.core.passes import blocks, passes_for

_CACHED = 2**19
"""Numbers in half precision, 1 MiB: half of what the cache of a core holds."""
_FEWEST = 256
"""Rows of a product below which it loses speed."""


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


def sweep(
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
    vocab_size, dtype = settings.vocab_size, settings.product_dtype
    losses = shares.new_empty(len(hidden))
    gradients = grad_hidden, grad_weight, grad_bias = room_for_gradients(hidden, weight, bias, shares, settings)
    grad_hidden.zero_()
    grad_bias.zero_()
    chunk_positions = max(1, min(settings.chunk_positions, len(hidden)))
    head = _aligned_head(weight[:vocab_size], dtype)
    has_more_rows = len(head) > vocab_size
    total = (
        torch.empty_like(head, dtype=grad_weight.dtype) if wants_weight and has_more_rows else grad_weight[:vocab_size]
    )
    bias = None if bias is None else bias[:vocab_size]
    # Written anew for each chunk: memory that is asked for again and again is cleared again and again.
    buffer = head.new_empty(chunk_positions, len(head))
    for start in range(0, len(hidden), chunk_positions):
        part = slice(start, start + chunk_positions)
        states = hidden[part]
        padded = torch.mm(states.to(dtype), head.t(), out=buffer[: len(states)])
        logits = padded[:, :vocab_size]
        bags = _bags(targets[part], shares[part], settings)
        sums = _read(logits, bias, bags, settings)
        losses[part] = _losses(bags, sums, settings)
        if not any(settings.wanted) or vocab_size == 0:
            continue
        multiplier = _write(logits, bias, bags, sums, None if upstream is None else upstream[part], settings)
        if wants_hidden:
            grad_hidden[part] = _times(padded @ head, multiplier)
        if wants_weight:
            _add_product(total, padded.t(), _times(states, multiplier).to(dtype), first=start == 0)
        if wants_bias:
            _add_rows(grad_bias[:vocab_size], logits, multiplier)

    if wants_weight:
        if has_more_rows:
            grad_weight[:vocab_size] = total[:vocab_size]
        grad_weight[vocab_size if len(hidden) else 0 :] = 0  # what no product has written
    if settings.group and wants_hidden:
        dist.all_reduce(grad_hidden, group=_group(settings.group))
    return losses, gradients


def _aligned_head(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The head in the dtype of the products, below it the missing rows as zeros.

    Their columns of logits are 0 and stay so, and add nothing to any gradient.
    """
    missing = _missing_rows(weight, dtype)
    if not missing:
        return weight.to(dtype)
    head = weight.new_empty(len(weight) + missing, weight.shape[1], dtype=dtype)
    head[len(weight) :] = 0
    head[: len(weight)] = weight
    return head


def _missing_rows(weight: Tensor, dtype: torch.dtype) -> int:
    """Rows that a head lacks for rows of logits to begin at multiples of 16 bytes, as a GPU reads them.

    Else the product alone takes seven times as long, of V 50,257 against V 50,304 on an H200.
    """
    return -len(weight) % (16 // dtype.itemsize) if weight.is_cuda else 0


def room_for_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, shares: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of hidden, weight and bias; none for those that are not wanted.

    Products in half precision are summed in float32. A single one in bfloat16 may stay what it is; in float16 it may
    be too large, as long as the loss has not been divided by its positions.
    """
    single = settings.chunk_positions >= hidden.shape[0]
    narrow = single and weight.dtype == settings.product_dtype == torch.bfloat16
    weight_dtype = torch.bfloat16 if narrow else shares.dtype
    like = (hidden, hidden.dtype), (weight, weight_dtype), (bias, shares.dtype)
    hidden_grad, weight_grad, bias_grad = (
        torch.empty_like(of, dtype=dtype) if want and of is not None else shares.new_empty(0)
        for (of, dtype), want in zip(like, settings.wanted, strict=True)
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


@dataclass(frozen=True)
class _Sums:
    """What has been read off a chunk's logits.

    Attributes:
        own: [n, S] logits in the columns `places`, whose they may be; see `_Bags`.
        picked: [n, S] logits of the targets.
        point: [n, 1], where this rank's exponentials have their origin.
        lse: [n, 1] logarithm of the sum of exp(logits).
        to_softmax: [n, 1], by which this rank's exponentials become probabilities.
    """

    own: Tensor
    picked: Tensor
    point: Tensor
    lse: Tensor
    to_softmax: Tensor


def _read(logits: Tensor, bias: Tensor | None, bags: _Bags, settings: Settings) -> _Sums:
    keep = any(settings.wanted)
    read = passes_for(logits).read_logits
    own, point, normalizer = read(logits, bias, settings.softcap, bags.places, bags.share.dtype, keep)
    if bags.owned is None:
        return _Sums(own, own, point, point + normalizer.log(), 1 / normalizer)
    group, top = _group(settings.group), point.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
    moved = (point - top).exp()
    sums = torch.cat([own.masked_fill(~bags.owned, 0), normalizer * moved], dim=-1)
    dist.all_reduce(sums, group=group)
    return _Sums(own, sums[:, :-1], point, top + sums[:, -1:].log(), moved / sums[:, -1:])


def _losses(bags: _Bags, sums: _Sums, settings: Settings) -> Tensor:
    losses = sums.lse - (bags.share * sums.picked).sum(-1, keepdim=True)
    if settings.z_loss:
        losses += settings.z_loss * sums.lse.square()
    return torch.where(bags.counts, losses, 0).squeeze(-1)


def _write(
    logits: Tensor,
    bias: Tensor | None,
    bags: _Bags,
    sums: _Sums,
    upstream: Tensor | None,
    settings: Settings,
) -> Tensor | None:
    """d loss / d logits in place of the logits, but for what rows are still to be multiplied by [n, 1]; None for 1.

    It is (1 + 2 z_loss lse) softmax - shares at the targets, times the position's upstream gradient.
    """
    factor = bags.counts.to(sums.lse.dtype) if upstream is None else bags.counts * upstream.unsqueeze(-1)
    taken_off = _merged(factor * bags.share, bags.places, bags.owned)
    if settings.z_loss:
        factor = factor * (1 + 2 * settings.z_loss * sums.lse)
    write = passes_for(logits).write_gradient
    return write(logits, bias, settings.softcap, sums.own, sums.point, factor * sums.to_softmax, bags.places, taken_off)


def _merged(share: Tensor, places: Tensor, owned: Tensor | None) -> Tensor:
    """At each target, the shares of all targets that are the same token [n, S].

    Targets then write their whole gradient instead of adding to it: duplicates write the same value, so the
    order in which they do is of no matter.
    """
    if owned is not None:
        share = share.masked_fill(~owned, 0)
    if share.shape[-1] == 1:
        return share
    ids = places.to(share.dtype)  # exact up to 2^24, and several times faster to compare
    same = torch.eq(ids.unsqueeze(-1), ids.unsqueeze(-2), out=share.new_empty(*ids.shape, ids.shape[-1]))
    return torch.bmm(same, share.unsqueeze(-1)).squeeze(-1)


def _times(rows: Tensor, multiplier: Tensor | None) -> Tensor:
    return rows if multiplier is None else rows * multiplier


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b, or total = a @ b at first, which saves clearing and reading a gradient as large as the head."""
    beta = 0 if first else 1
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)
    else:
        # A CPU's half-precision products come rounded: a few rows at a time, which are still in cache when added.
        few = max(_FEWEST, _CACHED // b.shape[1])
        room = b.new_empty(few, b.shape[1])
        for start in range(0, len(a), few):
            rows = total[start : start + few]
            product = torch.mm(a[start : start + few], b, out=room[: len(rows)])
            rows.copy_(product) if first else rows.add_(product)


def _add_rows(total: Tensor, rows: Tensor, multiplier: Tensor | None) -> None:
    """total [V] += the sum of rows [n, V], each times its multiplier [n, 1]."""
    if multiplier is None:
        total += rows.sum(dim=0, dtype=total.dtype)
        return
    for part in blocks(rows):
        total += torch.mv(rows[part].t().to(total.dtype), multiplier[part].squeeze(-1))


def _group(name: str) -> dist.ProcessGroup:
    # A custom operator takes no process group, so it is found by its name, as PyTorch's functional collectives do.
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
