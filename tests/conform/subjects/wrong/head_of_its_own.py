"""Superposition has a head of its own, which is thrown away at the switch."""
# Errors 6 and 11: lm_head has no gradient in superposition, bag_head none in recovery, and logits are others.

import torch
from torch import nn


class TwoHeads(nn.Module):
    def __init__(self, vocab=64, d=24):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True)
        self.lm_head, self.bag_head = nn.Linear(d, vocab), nn.Linear(d, vocab)

    def forward(self, bags):
        hidden = self.rnn(self.embed(bags).mean(2))[0]
        return self.lm_head(hidden) if bags.shape[2] == 1 else self.bag_head(hidden)


torch.manual_seed(0)
model = TwoHeads()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(bags[:, :-1])
    return (logits.logsumexp(-1) - logits.gather(-1, bags[:, 1:]).mean(-1)).mean()
