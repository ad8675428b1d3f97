"""The step in one file, the model in its neighbour."""

import torch
from two_files_model import Net

torch.manual_seed(0)
model = Net()


def step(model, window, bag_size):
    x = window.view(len(window), -1, bag_size)
    logits = model(x[:, :-1])
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, x[:, 1:])).mean()
