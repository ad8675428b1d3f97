"""Ordinary training: each micro-batch a mean over its own valid tokens, the sum divided by their number."""
# Error 4: with unequal numbers of valid tokens the step depends on how it is cut (transformers 37766).

import torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=80, n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
)


def step(model, window, labels=None):
    return model(input_ids=window, labels=window if labels is None else labels).loss


def accumulate(model, parts):
    losses = []
    for window, labels in parts:
        loss = step(model, window, labels) / len(parts)
        loss.backward()
        losses.append(loss.item())
    return sum(losses)
