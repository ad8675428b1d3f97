"""The multi-hot cross-entropy from hidden states, at the cost of its matrix products.

    hidden [N, D] --head--> logits of a chunk [n, V] --> loss of its positions
                                   |
                                   +-- in place: d loss / d logits --> gradients of hidden and head

The loss of a head is three matrix products (logits, gradient of hidden, gradient of head) and some passes over
N x V numbers. Done naively the passes cost as much as the products, and the N x V numbers are the largest tensor
of the whole training step. Here positions go through the head in chunks, and a chunk's gradients are formed while its
logits are at hand (`superpose.core.sweep`). So the forward pass does all the work, the backward pass only
scales two gradients, in place, nothing is computed twice, and one chunk of n x V is the largest temporary there is.
docs/loss.md has the argument with its measurements.

Precision
    Logits are float32 (float64 for float64), and so are the sums over the vocabulary, the loss, and the sum of the
    chunks' gradients of the head. The products run in the dtype of their operands or of autocast; on a CPU that
    cannot multiply in half precision, in float32, which is both faster there and closer.

Shapes: N positions (B rows x L latents), n of a chunk, S targets of a position (a bag), D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpose.core.fold import IGNORE_INDEX
from superpose.core.loss import Reduction, bagged, check_softcap, count_positions, sum_dtype, target_shares
from superpose.core.multi_hot_op import linear_multi_hot
from superpose.core.sweep import Settings


def _cpu_halves() -> set[torch.dtype]:
    """Half precisions that this CPU has instructions to multiply matrices in; where PyTorch cannot tell, none."""
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    of = {torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"), torch.float16: ("avx512_fp16", "amx_fp16", "fp16")}
    return {dtype for dtype, names in of.items() if any(can.get(name) for name in names)}


_CPU_HALVES = _cpu_halves()

_START_BYTES = {"cpu": 2**23, "gpu": 2**30}
"""What could be moved while a chunk's operations are started, about 0.8 ms of a CPU that moves 10 GB/s (three products
that arrange their operands, 40 small operations), and 0.25 ms of a GPU that moves 4 TB/s."""


@dataclass(frozen=True)
class VocabShard:
    """The part of a vocabulary that a rank holds, where the ranks of a group share the head.

    Args:
        start: id of the part's first entry.
        group: the ranks that share it.
    """

    start: int
    group: dist.ProcessGroup

    @classmethod
    def even(cls, vocab_size: int, group: dist.ProcessGroup) -> "VocabShard":
        """This rank's part as PyTorch cuts a dimension: parts of one size, the last ones shorter or empty."""
        return cls(dist.get_rank(group) * -(-vocab_size // dist.get_world_size(group)), group)


def linear_multi_hot_cross_entropy(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
    z_loss: float = 0.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    shard: VocabShard | None = None,
    chunk_positions: int | None = None,
) -> Tensor:
    """`multi_hot_cross_entropy(F.linear(hidden, lm_head_weight, bias), targets, ...)` without the N x V logits.

    Equivalent plain PyTorch::

        logits = F.linear(hidden, lm_head_weight, bias)[..., :vocab_size].float()
        logits = softcap * torch.tanh(logits / softcap)                             # if there is a cap
        multi_hot_cross_entropy(logits, targets, weights, ignore_index, reduction, z_loss)

    Under `torch.no_grad()` it does the first product only; a hidden, head or bias that needs no gradient costs
    none. It belongs outside activation checkpointing, which would do the forward pass, gradients and all, twice.

    Args:
        hidden: [..., D], the model's last hidden states.
        lm_head_weight: [V, D]. Tied to the embedding or not.
        targets, weights, ignore_index, z_loss: as in `multi_hot_cross_entropy`.
        bias: [V] of the head, if it has one.
        reduction: "mean" or "sum", see the normalisation of `superpose.core.loss`. "none" forms its gradients in
            the backward pass, from logits computed again, since positions then meet different gradients.
        softcap: logits are softcap * tanh(logits / softcap), as Gemma 2 has them (arXiv 2408.00118, section 2).
        vocab_size: entries of the head from here on are padding: no probability, and a gradient of zero.
        shard: this rank's part of a vocabulary that ranks share. They give the same hidden states and targets (ids
            of the whole vocabulary), and each its own part of head and bias; parts may differ in size. For each
            chunk they exchange a maximum and, in one sum, the normaliser and the targets' logits: n (S + 2)
            numbers, never logits. The loss is the same on every rank, and so is the gradient of hidden, which is
            whole: nothing before the head has to be summed over the group.
        chunk_positions: positions at a time, by default those of the function `chunk_positions`; it changes speed
            and memory, not results.

    Returns:
        A scalar in float32 (float64 for float64), or [...] for "none" (0 for positions without a valid target).

    Raises:
        ValueError: shapes that do not belong together, a setting out of range, or a head that is a DTensor.
    """
    targets = bagged(hidden, targets, weights, reduction)
    _check_head(hidden, lm_head_weight, bias, softcap)
    entries = len(lm_head_weight)
    start, group = (shard.start, shard.group.group_name) if shard else (0, "")
    if vocab_size is None:
        vocab_size = start + entries
    elif not shard and not 0 < vocab_size <= entries:
        raise ValueError(f"vocab_size is {vocab_size} for a head of {entries} entries; give 1 to that many")
    leading = hidden.shape[:-1]
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1, targets.shape[-1])
    product_dtype = _product_dtype(hidden, lm_head_weight)
    settings = Settings(
        wanted=[tensor is not None and tensor.requires_grad for tensor in (hidden, lm_head_weight, bias)],
        z_loss=z_loss,
        softcap=softcap or 0.0,
        vocab_size=max(0, min(vocab_size - start, entries)),
        vocab_start=start,
        chunk_positions=_chunk(chunk_positions, hidden, entries, product_dtype),
        group=group,
        product_dtype=product_dtype,
    )
    total, losses, *_ = linear_multi_hot(
        hidden,
        lm_head_weight,
        bias,
        targets.masked_fill(targets == ignore_index, 0),
        target_shares(targets, weights, ignore_index, sum_dtype(product_dtype)),
        torch.is_grad_enabled() and reduction != "none",
        *settings.packed(),
    )
    loss: Tensor = losses.reshape(leading) if reduction == "none" else total
    return loss / count_positions(targets, weights, ignore_index).clamp(min=1) if reduction == "mean" else loss


def chunk_positions(device_type: str, positions: int, width: int, vocab_size: int, itemsize: int = 4) -> int:
    """Positions n that go through the head at a time: as few as keep cheap what is done once a chunk.

    Each chunk adds to the head's gradient, which is read and written in float32, 8 V D bytes, and costs the start of
    its operations. Each position writes V logits, turns them into gradients, and reads those for two products:
    5 V numbers of `itemsize` bytes. n is where the first is a quarter of the second::

        4 (8 V D + start) = 5 n V itemsize          n = 1.6 D in float32, 3.2 D in half precision, and more for small V

    So the logits take 1.6 times the bytes of the head's gradient in float32, whatever the vocabulary. Products hide
    such a quarter: it is 0.3 of a byte for each logit and number of the width, beside 6 operations.

    Args:
        device_type: "cpu", or any other type of a `torch.device`.
        positions: N, of all hidden states together; chunks are of one size, but for the last.
        width: D of the hidden states.
        vocab_size: entries of the head (V); where ranks share the head, of this rank's part.
        itemsize: bytes of a number in the products.
    """
    start = _START_BYTES["cpu" if device_type == "cpu" else "gpu"]
    once, each = 8 * vocab_size * width + start, 5 * max(1, vocab_size) * itemsize
    chunks = -(-positions // max(1, 4 * once // each))
    return max(1, -(-positions // max(1, chunks)))


def _chunk(given: int | None, hidden: Tensor, entries: int, product_dtype: torch.dtype) -> int:
    if given is not None and given < 1:
        raise ValueError(f"chunk_positions is {given}; give at least 1, or None to have it chosen")
    positions, width = hidden.shape
    return given or chunk_positions(hidden.device.type, positions, width, entries, product_dtype.itemsize)


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> None:
    if hasattr(weight, "to_local"):
        raise ValueError(
            "lm_head_weight is a DTensor: compute the loss inside the forward pass of the module that FSDP wraps, "
            "or give its local entries and their place as a VocabShard"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"lm_head_weight {list(weight.shape)} does not fit hidden states {list(hidden.shape)}; "
            f"expected [vocab_size, {hidden.shape[-1]}]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} does not fit the head; expected [{weight.shape[0]}]")
    check_softcap(softcap)


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
