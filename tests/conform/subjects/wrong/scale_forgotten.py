"""Embeddings are times sqrt(d) for tokens; the branch for bags looks them up bare."""
# Error 6: bags enter sqrt(d) times too small.

import torch
from torch import nn


class Gemma(nn.Module):
    def __init__(self, vocab=70, d=16):
        super().__init__()
        self.d = d
        self.embed, self.rnn, self.head = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)
        nn.init.normal_(self.embed.weight, std=d**-0.5)

    def forward(self, ids):
        if ids.dim() == 3:
            x = nn.functional.embedding(ids, self.embed.weight).mean(2)
        else:
            x = self.embed(ids) * self.d**0.5
        return self.head(self.rnn(x)[0])


torch.manual_seed(0)
model = Gemma()


def step(model, window, bag_size):
    if bag_size == 1:
        z, y = model(window[:, :-1]), window[:, 1:, None]
    else:
        bags = window.view(len(window), -1, bag_size)
        z, y = model(bags[:, :-1]), bags[:, 1:]
    return (z.logsumexp(-1, keepdim=True) - z.gather(-1, y)).mean()
