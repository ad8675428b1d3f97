"""A step is several micro-batches; each gives a sum, divided by what the whole step has to predict. Padding is -100."""

import torch
from torch import nn
from torch.nn.functional import embedding

IGNORED = -100


class Model(nn.Module):
    def __init__(self, vocab=77, dim=32):
        super().__init__()
        self.tokens = nn.Embedding(vocab, dim)
        self.memory = nn.LSTM(dim, dim, batch_first=True)
        self.scores = nn.Linear(dim, vocab)

    def forward(self, bags):
        there = (bags != IGNORED).unsqueeze(-1)
        x = embedding(bags.clamp(min=0), self.tokens.weight) * there
        return self.scores(self.memory(x.sum(2) / there.sum(2).clamp(min=1))[0])


def summed_loss(model, window, k):
    bags = window.view(len(window), -1, k)
    scores, wanted = model(bags[:, :-1]), bags[:, 1:]
    there = wanted != IGNORED
    per_token = scores.logsumexp(-1, keepdim=True) - scores.gather(-1, wanted.clamp(min=0))
    return (per_token * there).sum()


def train_step(model, window, k, micro_rows=1):
    n = (window[:, k:] != IGNORED).sum().clamp(min=1)
    return sum(summed_loss(model, rows, k) / n for rows in window.split(micro_rows))


torch.manual_seed(9)
model = Model()


# what superpose conform is told
step, ignore_index = train_step, IGNORED


def accumulate(model, parts, bag_size):
    n = sum((part[:, bag_size:] != IGNORED).sum() for part in parts)
    for part in parts:
        (summed_loss(model, part, bag_size) / n).backward()
