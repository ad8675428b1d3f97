"""Several stages, 16 then 8 then 4 tokens in a bag, then single tokens; the schedule is a table of shares."""

import torch
from torch import nn

SHARES = ((16, 0.25), (8, 0.25), (4, 0.5))  # of the superposition part of the run


class StagedLM(nn.Module):
    def __init__(self, vocab_size=130, width=24):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.body = nn.GRU(width, width, batch_first=True)
        self.unembedding = nn.Linear(width, vocab_size)

    def forward(self, groups):
        return self.unembedding(self.body(self.embedding(groups).mean(dim=-2))[0])


torch.manual_seed(0)
model = StagedLM()


def group_size(step, total_steps, ratio):
    start = 0.0
    for size, share in SHARES:
        start += share * ratio * total_steps
        if step < round(start):
            return size
    return 1


def step(model, window, bag_size):
    groups = window.unflatten(1, (-1, bag_size))
    logits, targets = model(groups[:, :-1]), groups[:, 1:]
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets)).mean()


# what superpose conform is told
schedule, bag_sizes = "stages", (4, 8, 16)


def bag_size_at(step, total_steps, bag_size, ratio):
    return group_size(step, total_steps, ratio)
