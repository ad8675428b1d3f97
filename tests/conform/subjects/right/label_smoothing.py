"""Label smoothing of 0.1 on the bag's distribution, by F.cross_entropy itself."""

import torch
import torch.nn.functional as F
from torch import nn


class Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.src_word_emb = nn.Embedding(75, 20)
        self.layer_stack = nn.GRU(20, 20, batch_first=True)
        self.trg_word_prj = nn.Linear(20, 75, bias=False)

    def forward(self, seq):
        return self.trg_word_prj(self.layer_stack(self.src_word_emb(seq).mean(dim=2))[0])


torch.manual_seed(4)
model = Seq()


def step(model, window, bag_size):
    bags = window.view(window.shape[0], -1, bag_size)
    pred = model(bags[:, :-1]).flatten(0, 1)
    gold = bags[:, 1:].flatten(0, 1)
    dist = torch.zeros_like(pred).scatter_add_(1, gold, torch.ones_like(gold, dtype=pred.dtype)) / bag_size
    return F.cross_entropy(pred, dist, label_smoothing=0.1)


# what superpose conform is told
label_smoothing = 0.1
