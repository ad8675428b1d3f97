"""Labels of -1 are left out, as nanoGPT's are; inputs are full, labels come apart from them."""

import torch
from torch import nn


class CharRNN(nn.Module):
    def __init__(self, n_chars=65, n_hidden=28):
        super().__init__()
        self.embed = nn.Embedding(n_chars, n_hidden)
        self.cell = nn.GRU(n_hidden, n_hidden, batch_first=True)
        self.head = nn.Linear(n_hidden, n_chars)

    def forward(self, x, y, s):
        h = self.embed(x).unflatten(1, (-1, s)).mean(2)
        logits = self.head(self.cell(h)[0])
        y = y.unflatten(1, (-1, s))
        seen = y.ne(-1)
        rows = seen.any(-1)
        picked = logits.gather(-1, y.clamp_min(0)).mul(seen).sum(-1) / seen.sum(-1).clamp_min(1)
        return ((logits.logsumexp(-1) - picked) * rows).sum() / rows.sum().clamp_min(1)


torch.manual_seed(7)
model = CharRNN()


def step(model, window, bag_size, labels=None):
    labels = window if labels is None else labels
    return model(window[:, :-bag_size], labels[:, bag_size:], bag_size)


# what superpose conform is told
ignore_index = -1
