"""Bags at the input of TorchTitan's models: its embedding, which takes single tokens or bags of them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.models.common.embedding import Embedding

from superpose.core.embed import embed_bags
from superpose.core.fold import IGNORE_INDEX
from superpose.core.linear_loss import VocabShard


class BagEmbedding(Embedding):
    """TorchTitan's embedding; a bag's vector is the mean over its valid tokens (arXiv 2605.06546, section 3.1).

    Its parameter has the same name, sharding and initialisation, so a checkpoint does not tell the two apart.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Embedding.Config):
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Vectors [B, L, D] of tokens [B, L] or bags [B, L, S], in the dtype of the table, bags summed in float32.

        With the vocabulary sharded over tensor-parallel ranks it is this rank's share of the mean; TorchTitan sums
        the shares, as it does for single tokens.
        """
        if input.dim() == 2:
            return super().forward(input)
        weight = self.weight.to_local() if isinstance(self.weight, DTensor) else self.weight
        if self.tp_group is None:
            return embed_bags(input, weight).clone()  # FSDP hooks the output, and does not want a view
        start = VocabShard.even(self.num_embeddings, self.tp_group).start
        owned = (input >= start) & (input < start + weight.shape[0])
        means = embed_bags(torch.where(owned, input - start, IGNORE_INDEX), weight)
        # The mean over this rank's tokens of the bag, times their share of the whole bag's.
        valid = (input != IGNORE_INDEX).sum(dim=-1, keepdim=True).clamp(min=1)
        share = owned.sum(dim=-1, keepdim=True).to(torch.promote_types(means.dtype, torch.float32)) / valid
        return (means * share).to(means.dtype)
