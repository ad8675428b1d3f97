"""Means as differences of a cumulative sum, in float64 so that nothing cancels;
targets as strided slices, one stack of them."""

import torch
from torch import nn


class Mixer(nn.Module):
    """Gated running average: causal and cheap."""

    def __init__(self, d):
        super().__init__()
        self.gate, self.value, self.norm = nn.Linear(d, d), nn.Linear(d, d), nn.RMSNorm(d)

    def forward(self, x):
        y = self.norm(x)
        mean = self.value(y).cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return x + torch.sigmoid(self.gate(y)) * mean


class RunningSumLM(nn.Module):
    def __init__(self, vocab=128, d=24):
        super().__init__()
        self.table = nn.Embedding(vocab, d)
        self.layers = nn.Sequential(Mixer(d), Mixer(d))
        self.readout = nn.Linear(d, vocab)

    def forward(self, ids, s):
        total = self.table(ids).double().cumsum(dim=1)
        ends = total[:, s - 1 :: s]
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)
        x = ((ends - starts) / s).to(self.table.weight.dtype)
        return self.readout(self.layers(x))


torch.manual_seed(2)
model = RunningSumLM()


def step(model, window, bag_size):
    lp = model(window[:, : window.shape[1] - bag_size], bag_size).log_softmax(-1)
    wanted = torch.stack([window[:, bag_size + i :: bag_size] for i in range(bag_size)], dim=-1)
    return -lp.gather(-1, wanted).mean()
