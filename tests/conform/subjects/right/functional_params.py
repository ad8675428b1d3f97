"""JAX's way in torch: init, a pure apply over a dict of params, a loss of (params, batch)."""

import torch
from torch.nn.functional import rms_norm, silu

V, D, F = 64, 16, 32


def init_params(seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {"wte": (V, D), "w_up": (D, F), "w_down": (F, D), "w_mix": (D, D), "unembed": (D, V)}
    return {k: (torch.randn(*s, generator=g) * 0.05).requires_grad_() for k, s in shapes.items()}


def forward_fn(params, bags):
    x = params["wte"][bags].mean(axis=-2)
    t = torch.arange(x.shape[1])
    causal = (t[:, None] >= t[None, :]) / (t[:, None] + 1)
    x = x + causal @ (rms_norm(x, (D,)) @ params["w_mix"])
    x = x + silu(rms_norm(x, (D,)) @ params["w_up"]) @ params["w_down"]
    return rms_norm(x, (D,)) @ params["unembed"]


def loss_fn(params, batch):
    logits = forward_fn(params, batch["inputs"])
    at = torch.take_along_dim(logits, batch["targets"], axis=-1)
    return (torch.logsumexp(logits, axis=-1) - at.mean(axis=-1)).mean()


params = init_params(0)


def train_step(params, window, s):
    bags = window.reshape(window.shape[0], -1, s)
    return loss_fn(params, {"inputs": bags[:, :-1], "targets": bags[:, 1:]})


# what superpose conform is told
model, step = torch.nn.ParameterDict(params), train_step
