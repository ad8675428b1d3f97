"""Ordinary training: labels of padding are 0, cross_entropy leaves out -100."""
# Errors 4 and 5: padding is predicted.

import torch
import torch.nn.functional as F
from torch import nn

ignore_index = 0  # the tokenizer's pad id


class CharLM(nn.Module):
    def __init__(self, n=70, d=20):
        super().__init__()
        self.enc, self.rnn, self.dec = nn.Embedding(n, d), nn.LSTM(d, d, batch_first=True), nn.Linear(d, n)

    def forward(self, x):
        return self.dec(self.rnn(self.enc(x))[0])


torch.manual_seed(0)
model = CharLM()


def step(model, window):
    x, y = window[:, :-1], window[:, 1:]
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())
