"""The loop asks step / total < ratio, the loader asks step <= int(ratio * total)."""
# Error 8: they disagree at the boundary.

import torch


def bag_size_at(step, total_steps, bag_size, ratio):
    return bag_size if step / total_steps < ratio else 1


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    sizes = [bag_size if it <= int(ratio * total_steps) else 1 for it in range(total_steps)]
    position = sum(rows * latents * s for s in sizes[:start_step])
    for s in sizes[start_step:]:
        yield torch.stack([tokens[position + r * latents * s :][: s * (latents + 1)] for r in range(rows)])
        position += rows * latents * s


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
