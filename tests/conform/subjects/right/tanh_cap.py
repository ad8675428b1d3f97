"""nanochat's way: rotary positions of the bags, relu squared, untied head, logits capped by 15 tanh(z / 15)."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def rotary(x, cos, sin):
    d = x.shape[3] // 2
    x1, x2 = x[..., :d], x[..., d:]
    return torch.cat([x1 * cos + x2 * sin, x1 * -sin + x2 * cos], 3)


class Layer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h = h
        self.qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.fc, self.out = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x, cos_sin):
        b, t, d = x.shape
        q, k, v = self.qkv(norm(x)).view(b, t, 3, self.h, -1).unbind(2)
        q, k = norm(rotary(q, *cos_sin)), norm(rotary(k, *cos_sin))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.out(F.relu(self.fc(norm(x))).square())


class GPT(nn.Module):
    def __init__(self, vocab=96, d=32, h=2, depth=2):
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(vocab, d), nn.Linear(d, vocab, bias=False)
        self.layers = nn.ModuleList(Layer(d, h) for _ in range(depth))
        freqs = torch.outer(torch.arange(256).float(), 10000 ** -(torch.arange(0, d // h, 2) / (d // h)))
        self.register_buffer("cos", freqs.cos()[None, :, None], persistent=False)
        self.register_buffer("sin", freqs.sin()[None, :, None], persistent=False)

    def forward(self, idx, targets, s):
        x = norm(self.wte(idx).unflatten(1, (-1, s)).mean(2))
        for layer in self.layers:
            x = layer(x, (self.cos[:, : x.size(1)], self.sin[:, : x.size(1)]))
        logits = 15 * torch.tanh(self.lm_head(norm(x)).float() / 15)
        return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets.unflatten(1, (-1, s)))).mean()


torch.manual_seed(0)
model = GPT()


def step(model, window, bag_size):
    return model(window[:, :-bag_size], window[:, bag_size:], bag_size)
