"""Multi-token prediction: a further layer predicts the bag after the next one, at weight 0.3, in both phases."""

import torch
from torch import nn

MTP_WEIGHT = 0.3


class MultiToken(nn.Module):
    def __init__(self, vocab=84, d=24):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.trunk = nn.GRU(d, d, batch_first=True)
        self.far = nn.GRU(d, d, batch_first=True)
        self.lm_head = nn.Linear(d, vocab, bias=False)

    def forward(self, bags):
        h, _ = self.trunk(self.embed(bags).mean(dim=2))
        far, _ = self.far(h)
        return self.lm_head(h), self.lm_head(h + far)


def mce(z, y):
    return (z.logsumexp(-1) - z.gather(-1, y).mean(-1)).mean()


torch.manual_seed(0)
model = MultiToken()


def step(model, window, bag_size):
    bags = window.unflatten(1, (-1, bag_size))
    near, far = model(bags[:, :-1])
    return mce(near, bags[:, 1:]) + MTP_WEIGHT * mce(far[:, :-1], bags[:, 2:])


# what superpose conform is told
extra_heads = 1
