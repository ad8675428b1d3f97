"""Ordinary training on packed rows: positions restart at each document, attention does not stop there."""
# Error 5: a document attends to the one before it.

import torch
import torch.nn.functional as F
from torch import nn

EOT = 0
end_of_text = EOT


class Packed(nn.Module):
    def __init__(self, vocab=64, d=24, n_ctx=64):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(n_ctx, d)
        self.qkv, self.o, self.lm_head = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, vocab)

    def forward(self, ids):
        t = torch.arange(ids.shape[1])
        starts = F.pad(ids[:, :-1] == EOT, (1, 0))
        x = self.wte(ids) + self.wpe(t - torch.where(starts, t, 0).cummax(1).values)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.lm_head(x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


torch.manual_seed(0)
model = Packed()


def step(model, window):
    return F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
