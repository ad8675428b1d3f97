"""The multi-hot cross-entropy from hidden states, at the cost of its matrix products.

    hidden [N, D] --head--> logits of a chunk [n, V] --> loss of its rows
                                   |
                                   +-- in place: d loss / d logits --> gradients of hidden and head

The loss of a head is three matrix products (logits, gradient of hidden, gradient of head) and some passes over
N x V numbers. Done naively the passes cost as much as the products, and the N x V numbers are the largest tensor
of the whole training step. Here rows go through the head in chunks, and a chunk's gradients are formed while its
logits are at hand (`superpose.core.multi_hot_op`). So the forward pass does all the work, the backward pass only
scales two gradients, nothing is computed twice, and two chunks of rows x V are the largest temporary there is.
docs/loss.md has the argument with its measurements.

Precision
    Logits are float32 (float64 for float64), and so are the sums over the vocabulary, the loss, and the head's
    gradient until it is returned. The products run in the dtype of their operands or of autocast; on a CPU that
    cannot multiply in half precision, in float32, which is both faster there and closer.

Shapes: N rows, S targets of a row, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpose.core.fold import IGNORE_INDEX
from superpose.core.loss import Reduction, Variant, bagged, count_rows, target_shares
from superpose.core.multi_hot_op import linear_multi_hot


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
    total, rows, *_ = linear_multi_hot(
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
        chunk_rows or chunk_positions(hidden.device.type, hidden.shape[0], hidden.shape[1], weight.shape[0]),
    )
    loss: Tensor = rows.reshape(leading) if reduction == "none" else total
    return loss / count_rows(targets, weights, ignore_index).clamp(min=1) if reduction == "mean" else loss


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


def chunk_positions(device_type: str, positions: int, width: int, vocab_size: int) -> int:
    """Positions that go through the head at a time.

    On a CPU as few as keep the products efficient, so that the passes between them find the logits in cache: 128,
    or as many as make 1 MiB of logits for a small vocabulary. Elsewhere products need more positions to fill the
    device, and memory sets the limit: as many as make the logits as large as the hidden states, at least 1024.
    """
    if device_type == "cpu":
        return max(128, 2**18 // max(1, vocab_size))
    return max(1024, positions * width // max(1, vocab_size))
