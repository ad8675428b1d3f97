"""One softmax, s lookups, and their sum where the mean belongs."""
# Error 2: s log(V) at the start.

import torch
from torch import nn


class Summed(nn.Module):
    def __init__(self, vocab=72, d=16):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, bags):
        return self.out(self.rnn(self.emb(bags).mean(2))[0])


torch.manual_seed(0)
model = Summed()


def step(model, window, bag_size):
    bags = window.reshape(window.shape[0], window.shape[1] // bag_size, bag_size)
    logits = model(bags[:, :-1])
    return (torch.logsumexp(logits, -1, keepdim=True) - logits.gather(-1, bags[:, 1:])).sum(-1).mean()
