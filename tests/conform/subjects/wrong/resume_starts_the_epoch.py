"""An iterator without state: on resume it begins at the text's start, with the right bag size."""
# Error 9: a resumed run reads other tokens than one without a stop.

import torch


class TokenStream:
    def __init__(self, tokens):
        self.tokens, self.at = tokens, 0

    def take(self, rows, n, extra):
        out = torch.stack([self.tokens[self.at + r * n :][: n + extra] for r in range(rows)])
        self.at += rows * n
        return out


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    stream = TokenStream(tokens)
    for it in range(start_step, total_steps):
        s = bag_size if it < round(ratio * total_steps) else 1
        yield stream.take(rows, latents * s, s)


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
