"""Logits are capped on the ordinary path, and not on that of the bags."""
# Error 6: the head's soft-cap is missing in superposition.

import torch
import torch.nn.functional as F
from torch import nn


class Capped(nn.Module):
    def __init__(self, vocab=72, d=24, cap=2.0):
        super().__init__()
        self.cap = cap
        self.wte, self.rnn, self.lm_head = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)
        nn.init.normal_(self.lm_head.weight, std=1.0)

    def hidden(self, x):
        return self.rnn(x)[0]

    def forward(self, idx, targets):
        logits = self.lm_head(self.hidden(self.wte(idx)))
        logits = self.cap * torch.tanh(logits / self.cap)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def forward_bags(self, bags, targets):
        logits = self.lm_head(self.hidden(self.wte(bags).mean(2)))
        return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets)).mean()


torch.manual_seed(0)
model = Capped()


def step(model, window, bag_size):
    if bag_size == 1:
        return model(window[:, :-1], window[:, 1:])
    bags = window.view(len(window), -1, bag_size)
    return model.forward_bags(bags[:, :-1], bags[:, 1:])
