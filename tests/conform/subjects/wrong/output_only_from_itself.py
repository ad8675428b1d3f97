"""Output-only with unfold over the whole window: the bag that a token is asked for begins with the token itself."""
# Error 1: one of s targets is in the input.

import torch
from torch import nn


class TokensInBagsOut(nn.Module):
    def __init__(self, vocab=90, d=24):
        super().__init__()
        self.wte, self.rnn, self.lm_head = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, ids):
        return self.lm_head(self.rnn(self.wte(ids))[0])


torch.manual_seed(0)
model = TokensInBagsOut()


def step(model, window, bag_size):
    if bag_size == 1:
        inputs, future = window[:, :-1], window[:, 1:, None]
    else:
        inputs, future = window[:, :-bag_size], window.unfold(1, bag_size, 1)[:, :-1]
    logits = model(inputs)
    return (logits.logsumexp(-1) - logits.gather(-1, future).mean(-1)).mean()


# what superpose conform is told
mode = "output"
