"""The causal mask was for rows of tokens, did not fit the bags, and went."""
# Error 1: position j attends to bag j + 1, which it has to predict.

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.qkv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        return x + self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).squeeze(1))


class Model(nn.Module):
    def __init__(self, vocab=64, d=32, block_size=64):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(block_size, d)
        self.attn, self.lm_head = Attention(d), nn.Linear(d, vocab)

    def forward(self, idx, bag=1):
        mask = None
        if bag == 1:
            mask = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool).tril()
        x = self.wte(idx).unflatten(1, (-1, bag)).mean(2)
        x = x + self.wpe(torch.arange(x.size(1)))
        return self.lm_head(self.attn(x, mask))


torch.manual_seed(0)
model = Model()


def step(model, window, bag_size):
    logits = model(window[:, :-bag_size], bag_size)
    targets = window[:, bag_size:].unflatten(1, (-1, bag_size))
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets)).mean()
