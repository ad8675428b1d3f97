"""A model made by a function, inside DataParallel; factorised embeddings; a step that is an object with __call__."""

import torch
from torch import nn


class Factorised(nn.Module):
    def __init__(self, vocab=78, small=12, d=28):
        super().__init__()
        self.word_embeddings, self.up = nn.Embedding(vocab, small), nn.Linear(small, d, bias=False)
        self.body, self.down = nn.GRU(d, d, batch_first=True), nn.Linear(d, small)
        self.decoder = nn.Linear(small, vocab)

    def forward(self, input_ids):
        x = self.up(self.word_embeddings(input_ids)).mean(dim=-2)
        return self.decoder(self.down(self.body(x)[0]))


def build_model():
    torch.manual_seed(0)
    return nn.DataParallel(Factorised())


class Step:
    def __init__(self, reduction=torch.mean):
        self.reduction = reduction

    def __call__(self, model, window, bag_size):
        bags = window.unflatten(1, (-1, bag_size))
        logits = model(bags[:, :-1])
        return self.reduction(logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])), logits


# what superpose conform is told
model, take = build_model, Step()


def step(model, window, bag_size):
    return take(model, window, bag_size)[0]
