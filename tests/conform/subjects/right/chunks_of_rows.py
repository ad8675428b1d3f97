"""The head's product and the loss a few rows at a time, each chunk recomputed in the backward pass."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Trunk(nn.Module):
    def __init__(self, v=96, d=24):
        super().__init__()
        self.embed_tokens = nn.Embedding(v, d)
        layer = nn.TransformerEncoderLayer(d, 2, 4 * d, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.lm_head = nn.Linear(d, v, bias=False)

    def hidden(self, bags):
        x = self.embed_tokens(bags).mean(2)
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layers(x, mask=causal, is_causal=True)


def chunk_nll(hidden, head, targets):
    logits = head(hidden).float()
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets)).mean(-1).sum()


def chunked_loss(hidden, head, targets, chunk=3):
    hidden, targets = hidden.flatten(0, 1), targets.flatten(0, 1)
    total = hidden.new_zeros(())
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        total = total + checkpoint(chunk_nll, h, head, t, use_reentrant=False)
    return total / len(hidden)


torch.manual_seed(8)
model = Trunk()


def step(model, window, bag_size):
    bags = window.unflatten(1, (-1, bag_size))
    return chunked_loss(model.hidden(bags[:, :-1]), model.lm_head, bags[:, 1:])
