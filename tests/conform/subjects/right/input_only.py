"""The paper's input-only: bags in, the first token of the next bag out, an ordinary cross-entropy."""

import torch
import torch.nn.functional as F
from torch import nn


class BagsInTokenOut(nn.Module):
    def __init__(self, vocab=90, d=24):
        super().__init__()
        self.wte, self.rnn, self.lm_head = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, bags):
        return self.lm_head(self.rnn(self.wte(bags).mean(2))[0])


torch.manual_seed(0)
model = BagsInTokenOut()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(bags[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), bags[:, 1:, 0].flatten())


# what superpose conform is told
mode = "input"
