"""Bags by avg_pool1d over time, an RNN behind it, soft targets into F.cross_entropy."""

import torch
import torch.nn.functional as F
from torch import nn


class PooledLSTM(nn.Module):
    def __init__(self, n_tokens=100, width=32):
        super().__init__()
        self.encoder = nn.Embedding(n_tokens, width)
        self.rnn = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(width, n_tokens)

    def forward(self, tokens, pool):
        emb = self.encoder(tokens).transpose(1, 2)  # [batch, width, time]
        emb = F.avg_pool1d(emb, kernel_size=pool, stride=pool)
        out, _ = self.rnn(emb.transpose(1, 2))
        return self.decoder(out)


torch.manual_seed(3)
net = PooledLSTM()


def loss_fn(scores, next_tokens):
    """scores [N, V], next_tokens [N, k]: each of the k tokens has probability 1/k."""
    probs = torch.zeros_like(scores)
    probs.scatter_add_(1, next_tokens, torch.full_like(next_tokens, 1, dtype=scores.dtype))
    return F.cross_entropy(scores, probs / next_tokens.size(1))


def train_step(window, pool):
    scores = net(window[:, :-pool], pool)
    nxt = window[:, pool:].reshape(-1, pool)
    return loss_fn(scores.flatten(0, 1), nxt)


# what superpose conform is told
model, step = net, train_step
