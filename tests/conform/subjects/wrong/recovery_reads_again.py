"""Phase two makes its own loader, from the start of the same text."""
# Error 9: recovery reads what superposition has read.

from itertools import islice

import torch


def loader(tokens, rows, latents, s):
    n = rows * s * latents
    for start in range(0, len(tokens) - n - s, n):
        yield torch.stack([tokens[start + r * s * latents :][: s * (latents + 1)] for r in range(rows)])


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    boundary = round(total_steps * ratio)
    if start_step < boundary:
        yield from islice(loader(tokens, rows, latents, bag_size), start_step, boundary)
    yield from islice(loader(tokens, rows, latents, 1), max(0, start_step - boundary), total_steps - boundary)


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
