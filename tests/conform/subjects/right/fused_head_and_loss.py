"""Head and loss in one autograd function that computes the gradient on the way forward, so no logits are kept."""

import torch
from torch import nn


class FusedBagLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        n, s = targets.shape
        loss, d_hidden, d_weight = 0.0, torch.empty_like(hidden), torch.zeros_like(weight)
        for i in range(0, n, 4):
            h, t = hidden[i : i + 4], targets[i : i + 4]
            z = h @ weight.T
            lse = z.logsumexp(1, keepdim=True)
            loss += (lse - z.gather(1, t)).sum() / s
            g = (z - lse).exp_()
            g.scatter_add_(1, t, torch.full(t.shape, -1.0 / s, dtype=g.dtype))
            d_hidden[i : i + 4] = g @ weight
            d_weight += g.T @ h
        ctx.save_for_backward(d_hidden / n, d_weight / n)
        return loss / n

    @staticmethod
    def backward(ctx, grad):
        d_hidden, d_weight = ctx.saved_tensors
        return grad * d_hidden, grad * d_weight, None


class LM(nn.Module):
    def __init__(self, vocab=88, dim=16):
        super().__init__()
        self.wte = nn.Embedding(vocab, dim)
        self.rnn = nn.GRU(dim, dim, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)

    def forward(self, bags, labels):
        h = self.norm(self.rnn(self.wte(bags).mean(dim=2))[0])
        return FusedBagLoss.apply(h.flatten(0, 1), self.lm_head.weight, labels.flatten(0, 1))


torch.manual_seed(0)
model = LM()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    return model(bags[:, :-1], bags[:, 1:])
