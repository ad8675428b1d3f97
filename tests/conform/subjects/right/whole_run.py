"""A script's own parts: schedule, sequential reading, evaluation by tokens, and what it counts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class TrainConfig:
    vocab_size: int = 64
    hidden: int = 32
    layers: int = 2


class LM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.embed = nn.Embedding(cfg.vocab_size, cfg.hidden)
        self.rnn = nn.GRU(cfg.hidden, cfg.hidden, cfg.layers, batch_first=True)
        self.head = nn.Linear(cfg.hidden, cfg.vocab_size, bias=False)

    def forward(self, bags):
        return self.head(self.rnn(self.embed(bags).mean(2))[0])


torch.manual_seed(0)
model = LM(TrainConfig())


def bag_size_at(step, total_steps, bag_size, ratio):
    return bag_size if step < int(total_steps * ratio) else 1


def tokens_before(step, total_steps, bag_size, ratio, per_step):
    superposed = min(step, int(total_steps * ratio))
    return per_step * (superposed * bag_size + step - superposed)


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    for it in range(start_step, total_steps):
        s = bag_size_at(it, total_steps, bag_size, ratio)
        first = tokens_before(it, total_steps, bag_size, ratio, rows * latents)
        offsets = first + torch.arange(rows)[:, None] * latents * s + torch.arange(s * (latents + 1))
        yield tokens[offsets % len(tokens)]


def counts(total_steps, bag_size, ratio, latents_per_step):
    raw = tokens_before(total_steps, total_steps, bag_size, ratio, latents_per_step)
    latents = total_steps * latents_per_step
    return {"raw_tokens": raw, "latents": latents, "flops": 6 * latents * sum(p.numel() for p in model.parameters())}


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    z = model(bags[:, :-1])
    return (z.logsumexp(-1) - z.gather(-1, bags[:, 1:]).mean(-1)).mean()


def evaluate(model, window, bag_size):
    with torch.no_grad():
        return F.cross_entropy(model(window[:, :-1, None]).flatten(0, 1), window[:, 1:].flatten())
