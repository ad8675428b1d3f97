"""Validation during training, which is next-token in both phases."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from superpose.core.fold import IGNORE_INDEX
from superpose.core.model import SuperposedLM
from superpose.data.store import Split
from superpose.train.distributed import Ranks, reshard


class HeldOutLoss(NamedTuple):
    """Next-token loss on held-out text.

    Attributes:
        loss: nats per token.
        bits_per_byte: the same in bits per UTF-8 byte of text; unlike the loss it can be compared between
            tokenizers. Predicting the ends of documents is part of it.
    """

    loss: float
    bits_per_byte: float


@torch.no_grad()
def validate(lm: SuperposedLM, split: Split, latents: int, rows: int, ranks: Ranks) -> HeldOutLoss:
    """Next-token loss over a whole split, every token but the first predicted once, in rows of `latents`.

    It does not know of bags: in either phase it measures the model that training is to end with. Ranks take turns at
    the batches; each computes as many, since a sharded model is computed by all or none.
    """
    training = lm.training
    lm.eval()
    total = torch.zeros((), dtype=torch.float64)
    tokens = torch.from_numpy(split.tokens.read(0, len(split.tokens)))
    batches = torch.split(next_token_rows(tokens, latents), rows)
    for turn in range(0, len(batches), ranks.world_size):
        number = turn + ranks.rank
        batch = batches[number] if number < len(batches) else torch.full_like(batches[0][:1], IGNORE_INDEX)
        total += lm(batch.to(ranks.device), bag_size=1, normalizer=1.0).cross_entropy.double().cpu()
    nats_of_all = float(ranks.total(total))
    reshard(lm)
    lm.train(training)
    nats = nats_of_all / (len(split.tokens) - 1)
    return HeldOutLoss(nats, nats_of_all / math.log(2) / split.bytes)


def next_token_rows(tokens: Tensor, latents: int) -> Tensor:
    """Rows that predict every token but the first once, each with as much context as its row has.

    Args:
        tokens: a whole text, int64 [N], two tokens or more.

    Returns:
        Rows of latents + 1 tokens that overlap by one, int64 [rows, latents + 1]; the last is filled with
        `IGNORE_INDEX`.
    """
    count = -(-(len(tokens) - 1) // latents)
    padded = torch.full((count * latents + 1,), IGNORE_INDEX)
    padded[: len(tokens)] = tokens
    return padded.unfold(0, latents + 1, latents)
