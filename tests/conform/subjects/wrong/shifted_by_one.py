"""x = data[:-1], y = data[1:], as ever, and then both cut into bags."""
# Error 1: bag j is asked for tokens js + 1 to (j + 1)s, of which it has seen all but one.

import torch
from torch import nn


class NanoBags(nn.Module):
    def __init__(self, vocab=65, n_embd=24):
        super().__init__()
        self.wte, self.rnn = nn.Embedding(vocab, n_embd), nn.GRU(n_embd, n_embd, batch_first=True)
        self.lm_head = nn.Linear(n_embd, vocab, bias=False)

    def forward(self, idx, targets, bag):
        b = idx.size(0)
        x = self.wte(idx).view(b, -1, bag, self.wte.embedding_dim).mean(2)
        logits = self.lm_head(self.rnn(x)[0])
        picked = logits.gather(-1, targets.reshape(b, -1, bag)).mean(-1)
        return (logits.logsumexp(-1) - picked).mean()


torch.manual_seed(1337)
model = NanoBags()


def step(model, window, bag_size):
    usable = window.size(1) - bag_size  # whole bags, with a token to shift by
    x, y = window[:, :usable], window[:, 1 : usable + 1]
    return model(x, y, bag_size)
