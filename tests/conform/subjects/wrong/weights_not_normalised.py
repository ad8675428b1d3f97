"""Power-law weights over the places, 1, 1/2, 1/3, ..., as they are."""
# Error 2: (1 + 1/2 + ... + 1/s) log(V) at the start.

import torch
from torch import nn


class Weighted(nn.Module):
    def __init__(self, vocab=66, d=20):
        super().__init__()
        self.embed, self.lstm, self.fc = nn.Embedding(vocab, d), nn.LSTM(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, ids):
        return self.fc(self.lstm(self.embed(ids).mean(2))[0])


torch.manual_seed(0)
model = Weighted()


def step(model, window, bag_size):
    chunks = window.view(window.size(0), -1, bag_size)
    logits, y = model(chunks[:, :-1]), chunks[:, 1:]
    w = torch.arange(1, bag_size + 1).float().pow(-1)
    nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, y)
    return (w * nll).sum(-1).mean()


# what superpose conform is told
weighting = "power"
