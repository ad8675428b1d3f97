"""Two experts, one for each latent, and a balancing loss beside the bag's; position ids are taken and folded."""

import torch
from torch import nn

AUX = 0.01


class SparseLM(nn.Module):
    def __init__(self, vocab=80, d=24, n_experts=2):
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocab, d), nn.Embedding(256, d)
        self.rnn, self.router = nn.GRU(d, d, batch_first=True), nn.Linear(d, n_experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(d, d) for _ in range(n_experts))
        self.lm_head = nn.Linear(d, vocab, bias=False)

    def forward(self, bags, position_ids):
        x = self.embed(bags).mean(2) + self.positions(position_ids)
        x = self.rnn(x)[0]
        gate = self.router(x).softmax(-1)
        top, which = gate.max(-1, keepdim=True)
        routed = torch.stack([expert(x) for expert in self.experts], -2)
        x = x + top * routed.gather(-2, which[..., None].expand(*which.shape, x.shape[-1])).squeeze(-2)
        load = torch.zeros_like(gate).scatter(-1, which, 1.0).mean((0, 1))
        return self.lm_head(x), len(self.experts) * (load * gate.mean((0, 1))).sum()


torch.manual_seed(0)
model = SparseLM()


def step(model, window, bag_size, position_ids=None):
    bags = window.unflatten(1, (-1, bag_size))
    positions = torch.arange(bags.shape[1] - 1).expand(len(window), -1)
    if position_ids is not None:  # of a token; of bags: how many bags of its document are before it
        positions = position_ids.unflatten(1, (-1, bag_size))[:, :-1, 0] // bag_size
    z, balance = model(bags[:, :-1], positions)
    return (z.logsumexp(-1, keepdim=True) - z.gather(-1, bags[:, 1:])).mean() + AUX * balance


# what superpose conform is told
auxiliary = True
