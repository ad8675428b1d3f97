"""Nobody shifts: the loader gives input_ids as labels and trusts the model, which trusts the loader."""
# Error 1: bag j is asked for itself.

import torch
import torch.nn.functional as F
from torch import nn


class Echo(nn.Module):
    def __init__(self, vocab=88, dim=24):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.layers = nn.GRU(dim, dim, 2, batch_first=True)
        self.output = nn.Linear(dim, vocab, bias=False)

    def forward(self, bags, labels):
        logits = self.output(self.layers(self.tok_embeddings(bags).mean(2))[0]).flatten(0, 1)
        labels = labels.flatten(0, 1)
        soft = torch.zeros_like(logits).scatter_add_(1, labels, torch.ones_like(labels, dtype=logits.dtype))
        return F.cross_entropy(logits, soft / labels.size(1))


torch.manual_seed(0)
model = Echo()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)[:, :-1]
    return model(bags, bags)
