"""nn.EmbeddingBag in mode "sum"."""
# Error 5: a sum in place of a mean, so the body sees vectors s times as long, and others after the switch.

import torch
import torch.nn.functional as F
from torch import nn


class SumLM(nn.Module):
    def __init__(self, vocab=64, d=24):
        super().__init__()
        self.embed = nn.EmbeddingBag(vocab, d, mode="sum")
        self.rnn, self.head = nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, bags):
        x = self.embed(bags.flatten(0, 1)).unflatten(0, bags.shape[:2])
        return self.head(self.rnn(x)[0])


torch.manual_seed(0)
model = SumLM()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    z = model(bags[:, :-1]).flatten(0, 1)
    y = bags[:, 1:].flatten(0, 1)
    p = torch.zeros_like(z).scatter_add_(1, y, torch.full(y.shape, 1 / bag_size))
    return F.cross_entropy(z, p)
