"""Dropout of 0.1, in training mode: the loss is another one at each call."""

import torch
from torch import nn


class DropoutLM(nn.Module):
    def __init__(self, vocab=64, d=32):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.encoder = nn.Embedding(vocab, d)
        self.rnn = nn.GRU(d, d, 2, dropout=0.1, batch_first=True)
        self.decoder = nn.Linear(d, vocab)

    def forward(self, bags):
        return self.decoder(self.drop(self.rnn(self.drop(self.encoder(bags).mean(2)))[0]))


torch.manual_seed(0)
model = DropoutLM().train()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    z = model(bags[:, :-1])
    return (z.logsumexp(-1, keepdim=True) - z.gather(-1, bags[:, 1:])).mean()
