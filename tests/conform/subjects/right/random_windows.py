"""nanoGPT's get_batch: windows from anywhere in the text, drawn by a generator that is seeded with the step."""

import torch
from torch import nn

seed = 1337


class Bigram(nn.Module):
    def __init__(self, vocab=64, d=32):
        super().__init__()
        self.wte, self.rnn, self.lm_head = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)

    def forward(self, bags, targets):
        logits = self.lm_head(self.rnn(self.wte(bags).mean(2))[0])
        return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets)).mean()


torch.manual_seed(seed)
model = Bigram()


def bag_size_at(step, total_steps, bag_size, ratio):
    return bag_size if step < round(total_steps * ratio) else 1


def get_batch(data, batch_size, block_size, s, step):
    g = torch.Generator().manual_seed(seed + step)
    span = s * (block_size + 1)
    ix = torch.randint(len(data) - span + 1, (batch_size,), generator=g)
    return torch.stack([data[i : i + span] for i in ix])


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    for it in range(start_step, total_steps):
        yield get_batch(tokens, rows, latents, bag_size_at(it, total_steps, bag_size, ratio), it)


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    return model(bags[:, :-1], bags[:, 1:])


# what superpose conform is told
reading = "random"
