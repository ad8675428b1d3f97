"""A dataclass of logits, loss and hidden comes back; labels go in unshifted, and the model shifts them by a bag."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None
    hidden: Tensor | None = None


class BagLM(nn.Module):
    def __init__(self, vocab: int = 66, dim: int = 22):
        super().__init__()
        self.embeddings = nn.Embedding(vocab, dim)
        self.encoder = nn.GRU(dim, dim, batch_first=True)
        self.cls = nn.Linear(dim, vocab)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, bag: int = 1) -> Output:
        hidden = self.encoder(self.embeddings(input_ids.unflatten(1, (-1, bag))).mean(dim=2))[0]
        out = Output(self.cls(hidden), hidden=hidden)
        if labels is not None:
            z, y = out.logits[:, :-1], labels.unflatten(1, (-1, bag))[:, 1:]
            valid = (y != -100).to(z.dtype)
            nll = z.logsumexp(-1, keepdim=True) - z.gather(-1, y.clamp(min=0))
            out.loss = (nll * valid).sum() / valid.sum().clamp(min=1)
        return out


torch.manual_seed(0)
model = BagLM()


def step(model, window, bag_size, labels=None):
    return model(window, labels=window if labels is None else labels, bag=bag_size).loss
