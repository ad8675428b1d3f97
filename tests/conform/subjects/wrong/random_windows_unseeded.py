"""nanoGPT's get_batch with the global generator, seeded once when the process begins."""
# Error 9: a resumed run draws the windows of the first steps again.

import torch

reading = "random"


def get_batch(data, batch_size, span):
    ix = torch.randint(len(data) - span + 1, (batch_size,))
    return torch.stack([data[i : i + span] for i in ix])


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    torch.manual_seed(1337)
    for it in range(start_step, total_steps):
        s = bag_size if it < round(total_steps * ratio) else 1
        yield get_batch(tokens, rows, s * (latents + 1))


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
