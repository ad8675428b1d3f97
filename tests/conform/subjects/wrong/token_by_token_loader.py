"""Python loops over single tokens of a list."""
# Error 10: reading a step of bags takes longer than the step.

import torch

step_seconds = (8, 64, 0.02)


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    text = iter(())
    sizes = [bag_size if it < round(total_steps * ratio) else 1 for it in range(total_steps)]
    at = sum(sizes[:start_step]) * rows * latents
    for s in sizes[start_step:]:
        window = []
        for row in range(rows):
            text = (int(tokens[at + row * latents * s + i]) for i in range(s * (latents + 1)))
            window.append(list(text))
        at += rows * latents * s
        yield torch.tensor(window)


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
