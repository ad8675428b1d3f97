"""Each token of the bag is set to 1/s; one that is there twice overwrites itself."""
# Error 4: the targets of a bag with duplicates do not sum to 1.

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, vocab=64, d=24):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.net = nn.GRU(d, d, batch_first=True)
        self.lm_head = nn.Linear(d, vocab)

    def forward(self, x):
        return self.lm_head(self.net(self.emb(x).mean(dim=-2))[0])


torch.manual_seed(0)
model = Net()


def soft_targets(y, vocab):
    t = torch.zeros(*y.shape[:-1], vocab)
    return t.scatter_(-1, y, 1.0 / y.shape[-1])


def step(model, window, bag_size):
    x = window.view(len(window), -1, bag_size)
    logits = model(x[:, :-1])
    return -(soft_targets(x[:, 1:], logits.shape[-1]) * logits.log_softmax(-1)).sum(-1).mean()
