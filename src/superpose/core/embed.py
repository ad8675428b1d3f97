"""The input side of a bag: the mean of its token embeddings.

Equivalent plain PyTorch, which holds S copies of the output::

    F.embedding(input_ids, weight).float().mean(dim=-2)        # [B, L, S] -> [B, L, D]

The mean keeps the scale a single token has (a sum would grow with S), and being unordered it is what the
target side mirrors (arXiv 2605.06546, section 3.1).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from superpose.core.fold import IGNORE_INDEX


def embed_bags(input_ids: Tensor, weight: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean embedding of each bag over its valid tokens.

    One fused `embedding_bag` sums in float32 whatever the dtype of `weight`; no [B, L, S, D] tensor exists in
    the forward or the backward pass.

    Args:
        input_ids: [B, L, S], or any shape whose last dimension is the bag; ids of 0 to V - 1 or `ignore_index`.
        weight: embedding table [V, D].
        ignore_index: id of tokens that take no part in the mean.

    Returns:
        [B, L, D] in the dtype of `weight`. A bag without a valid token is zeros.

    Raises:
        ValueError: `input_ids` has no bag dimension or `weight` is not a table.
    """
    if input_ids.dim() < 2 or weight.dim() != 2:
        raise ValueError(
            f"input_ids {list(input_ids.shape)} and weight {list(weight.shape)}; "
            f"expected bags [..., bag_size] and a table [vocab_size, width]"
        )
    valid = input_ids != ignore_index
    sums = F.embedding_bag(
        input_ids.masked_fill(~valid, 0).flatten(0, -2),
        weight,
        mode="sum",
        per_sample_weights=valid.flatten(0, -2).to(weight.dtype),
    )
    counts = valid.sum(dim=-1).clamp(min=1)
    # A product in float32 rounds once more than the sum did; in bfloat16 that is the last bit.
    sums = sums.reshape(*input_ids.shape[:-1], -1)
    return sums / counts.unsqueeze(-1).to(weight.dtype)
