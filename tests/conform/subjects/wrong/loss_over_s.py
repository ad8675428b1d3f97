"""A small GPT. F.cross_entropy on soft targets is a mean over the bag already; it is divided by s once more."""
# Error 2: log(V) / s at the start.

import torch
import torch.nn as nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.sa = nn.MultiheadAttention(n_embd, n_head, batch_first=True)
        self.ffwd = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x):
        T = x.shape[1]
        h = self.ln1(x)
        mask = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
        x = x + self.sa(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.ffwd(self.ln2(x))


class GPTLanguageModel(nn.Module):
    def __init__(self, vocab_size=65, n_embd=24, block_size=64):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(Block(n_embd, 2), Block(n_embd, 2))
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx, targets, bag_size):
        B, T = idx.shape
        x = self.token_embedding_table(idx.view(B, T // bag_size, bag_size)).mean(dim=2)
        x = self.blocks(x + self.position_embedding_table(torch.arange(T // bag_size)))
        logits = self.lm_head(x).flatten(0, 1)
        y = targets.reshape(-1, bag_size)
        soft = torch.zeros_like(logits).scatter_add_(1, y, torch.ones_like(y, dtype=logits.dtype)) / bag_size
        return F.cross_entropy(logits, soft) / bag_size


torch.manual_seed(1337)
model = GPTLanguageModel()


def step(model, window, bag_size):
    return model(window[:, :-bag_size], window[:, bag_size:], bag_size)
