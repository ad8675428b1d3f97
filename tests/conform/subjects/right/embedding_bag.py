"""F.embedding_bag on the embedding's own weight while superposing, a plain lookup afterwards."""

import torch
import torch.nn.functional as F
from torch import nn


class BagGRU(nn.Module):
    def __init__(self, vocab_size: int = 90, hidden: int = 20):
        super().__init__()
        self.emb = nn.Embedding(vocab_size, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.proj = nn.Linear(hidden, vocab_size)

    def forward(self, ids):
        if ids.ndim == 3:
            b, n, s = ids.shape
            x = F.embedding_bag(ids.reshape(b * n, s), self.emb.weight, mode="mean").view(b, n, -1)
        else:
            x = self.emb(ids)
        return self.proj(self.gru(x)[0])


def bag_loss(logits, bag):
    logp = F.log_softmax(logits, dim=-1)
    counts = torch.zeros_like(logp).scatter_add(-1, bag, torch.ones(bag.shape))
    return -(counts * logp).sum(-1).div(bag.shape[-1]).mean()


torch.manual_seed(11)
model = BagGRU()


def step(model, window, bag_size):
    if bag_size == 1:
        logits = model(window[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), window[:, 1:])
    bags = window.view(window.shape[0], -1, bag_size)
    return bag_loss(model(bags[:, :-1]), bags[:, 1:])
