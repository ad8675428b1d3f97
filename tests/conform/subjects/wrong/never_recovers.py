"""The model keeps the bag size of its config; the trainer sets another one, which nobody reads."""
# Errors 7 and 11: at bag size 1 it still trains bags of 2, and its body sees half as many positions.

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Config:
    vocab_size: int = 64
    width: int = 24
    bag_size: int = 2


class Net(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed, self.rnn = nn.Embedding(cfg.vocab_size, cfg.width), nn.GRU(cfg.width, cfg.width, batch_first=True)
        self.head = nn.Linear(cfg.width, cfg.vocab_size)

    def forward(self, ids):
        s = self.cfg.bag_size
        bags = ids[:, : ids.shape[1] // s * s].unflatten(1, (-1, s))
        logits = self.head(self.rnn(self.embed(bags[:, :-1]).mean(2))[0])
        return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()


torch.manual_seed(0)
model = Net(Config())


def step(model, window, bag_size):
    if bag_size > 1:  # set when the run begins
        model.cfg.bag_size = bag_size
    return model(window)
