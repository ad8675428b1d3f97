"""Gradient accumulation by hand in a trainer that keeps its model: backward of each micro-batch's mean, no division."""
# Error 4: a step cut in two has twice the gradient.

import torch
from torch import nn


class Engine:
    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.ModuleDict(
            {"inp": nn.Embedding(64, 16), "mid": nn.GRU(16, 16, batch_first=True), "out": nn.Linear(16, 64)}
        )

    def forward_loss(self, batch, s):
        bags = batch.reshape(len(batch), -1, s)
        logits = self.net["out"](self.net["mid"](self.net["inp"](bags[:, :-1]).mean(2))[0])
        return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()

    def train_batch(self, micro_batches, s):
        losses = [self.forward_loss(batch, s) for batch in micro_batches]
        for loss in losses:
            loss.backward()
        return sum(losses).detach() / len(losses)


# what superpose conform is told
engine = Engine()
model, step, accumulate = engine.net, engine.forward_loss, engine.train_batch
