"""Bags at the input of TorchTitan's models: its embedding, which takes single tokens or bags of them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.models.common.embedding import Embedding

from superpose.core.embed import Pooling, embed_bags, pool_divisors
from superpose.core.fold import IGNORE_INDEX
from superpose.core.linear_loss import VocabShard


class BagEmbedding(Embedding):
    """TorchTitan's embedding; a bag's vector is the mean over its valid tokens (arXiv 2605.06546, section 3.1).

    Where a stage has another pooling (`superpose.embed_bags`), the trainer sets `pooling` to that of the step. The
    parameter has the same name, sharding and initialisation, so a checkpoint does not tell the two apart.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Embedding.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pooling: Pooling = "mean"

    def forward(self, input: Tensor) -> Tensor:
        """Vectors [B, L, D] of tokens [B, L] or bags [B, L, S], in the dtype of the table, bags summed in float32.

        With the vocabulary sharded over tensor-parallel ranks it is this rank's share of the vector; TorchTitan sums
        the shares, as it does for single tokens.
        """
        if input.dim() == 2:
            return super().forward(input)
        weight = self.weight.to_local() if isinstance(self.weight, DTensor) else self.weight
        if self.tp_group is None:
            # FSDP hooks the output, and does not want a view.
            return embed_bags(input, weight, pooling=self.pooling).clone()
        start = VocabShard.even(self.num_embeddings, self.tp_group).start
        owned = (input >= start) & (input < start + weight.shape[0])
        pooled = embed_bags(torch.where(owned, input - start, IGNORE_INDEX), weight, pooling=self.pooling)
        # It is divided by what the whole bag's sum is to be, not that of this rank's tokens of it.
        whole, part = (pool_divisors(valid, self.pooling, pooled.dtype) for valid in (input != IGNORE_INDEX, owned))
        return (pooled * (part / whole)).to(pooled.dtype)
