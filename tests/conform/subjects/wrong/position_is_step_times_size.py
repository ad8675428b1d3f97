"""Where to read is step * batch * length, with the length of the moment."""
# Error 9: at the switch it falls back, by steps * batch * (s - 1) * latents tokens.

import torch


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    for it in range(start_step, total_steps):
        s = bag_size if it < ratio * total_steps else 1
        T = latents * s
        start = it * rows * T
        yield torch.stack([tokens[start + r * T : start + (r + 1) * T + s] for r in range(rows)])


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
