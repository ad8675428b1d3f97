"""Logits repeated for each token of the bag, to have one flat cross-entropy; padding of -100 is left out of it."""
# Error 3: N x s x V logits and log-probabilities.

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, vocab=100, d=16):
        super().__init__()
        self.tok, self.enc, self.dec = nn.Embedding(vocab, d), nn.LSTM(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, bags):
        ok = (bags >= 0).unsqueeze(-1)
        x = (self.tok(bags.clamp(0)) * ok).sum(2) / ok.sum(2).clamp(1)
        return self.dec(self.enc(x)[0])


torch.manual_seed(0)
model = Net()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits, target = model(bags[:, :-1]), bags[:, 1:]
    logits = logits.unsqueeze(2).repeat(1, 1, bag_size, 1).flatten(0, 2)
    loss = F.cross_entropy(logits, target.flatten(), ignore_index=-100, reduction="sum")
    return loss / (target >= 0).sum().clamp(1)


# what superpose conform is told
ignore_index = -100
