"""The bag shrinks as training goes: s, s - 1, ..., 2, each for an equal part of the first r, then single tokens."""

import torch
from torch import nn


class AnnealedLM(nn.Module):
    def __init__(self, vocab=90, d=32):
        super().__init__()
        self.tok, self.mix, self.out = nn.Embedding(vocab, d), nn.LSTM(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, tokens, s):
        b, t = tokens.shape
        x = self.tok(tokens).view(b, t // s, s, -1).sum(2) / s
        return self.out(self.mix(x)[0])


torch.manual_seed(0)
model = AnnealedLM()


def bag_size_at(step, total_steps, bag_size, ratio):
    boundary = round(ratio * total_steps)
    if step >= boundary or bag_size == 1:
        return 1
    return bag_size - step * (bag_size - 1) // boundary


def step(model, window, bag_size):
    z, y = model(window[:, :-bag_size], bag_size), window[:, bag_size:].unflatten(1, (-1, bag_size))
    return torch.mean(z.logsumexp(2) - z.gather(2, y).sum(2) / bag_size)


# what superpose conform is told
schedule = "stages"
