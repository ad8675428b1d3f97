"""The paper's output-only: single tokens in, the next s tokens out, one head; rows of latents + s tokens."""

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
    logits = model(window[:, :-bag_size])
    future = window[:, 1:].unfold(1, bag_size, 1)  # [B, L, s]: the s tokens after each
    return (logits.logsumexp(-1) - logits.gather(-1, future).mean(-1)).mean()


# what superpose conform is told
mode = "output"
