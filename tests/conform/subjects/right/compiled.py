"""torch.compile around the model, as most scripts do; the eager backend, to need no compiler."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, vocab=64, d=16):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.lm_head = nn.Linear(d, vocab, bias=False)

    def forward(self, bags, targets):
        x = self.emb(bags).mean(2)
        x = x + self.down(torch.relu(self.up(x.cumsum(1)))) / 4
        logits = self.lm_head(x)
        return (logits.logsumexp(-1) - logits.gather(-1, targets).mean(-1)).mean()


torch.manual_seed(0)
model = torch.compile(Net(), backend="eager", dynamic=False)


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    return model(bags[:, :-1], bags[:, 1:])
