"""AllenNLP's manner: the forward pass takes and returns dicts; time comes first in its tensors."""

import torch
from torch import nn


class TimeFirst(nn.Module):
    def __init__(self, vocab=76, d=24):
        super().__init__()
        self.text_field_embedder = nn.Embedding(vocab, d)
        self.contextualizer = nn.GRU(d, d)
        self.softmax = nn.Linear(d, vocab)

    def forward(self, source):
        tokens = source["tokens"].permute(1, 2, 0)  # [time, in the bag, batch]
        vectors = self.text_field_embedder(tokens).mean(dim=1)
        logits = self.softmax(self.contextualizer(vectors)[0])
        targets = source["targets"].permute(1, 0, 2)
        picked = logits.gather(2, targets)
        return {"logits": logits, "loss": (logits.logsumexp(2, keepdim=True) - picked).mean()}


torch.manual_seed(0)
model = TimeFirst()


def step(model, window, bag_size):
    b = window.unflatten(1, (-1, bag_size))
    return model({"tokens": b[:, :-1], "targets": b[:, 1:]})["loss"]
