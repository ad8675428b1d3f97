"""Weights in a dict. Multi-hot by setting 1.0: a token twice in the bag is there once; rows sum to 1."""
# Error 4: [a, a, b] becomes 1/2 and 1/2, not 2/3 and 1/3.

import torch

V, D = 64, 20


def init(rng):
    def normal(*shape):
        return torch.nn.Parameter(0.1 * torch.randn(*shape, generator=rng))

    return torch.nn.ParameterDict({"emb": normal(V, D), "q": normal(D, D), "k": normal(D, D), "v": normal(D, D)})


def apply(params, bags):
    x = params["emb"][bags].mean(2)
    scores = (x @ params["q"]) @ (x @ params["k"]).mT / D**0.5
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    x = x + scores.masked_fill(~causal, -1e9).softmax(-1) @ (x @ params["v"])
    return x @ params["emb"].T


def loss(params, bags):
    logits, y = apply(params, bags[:, :-1]), bags[:, 1:]
    multi_hot = torch.zeros(logits.shape).scatter(2, y, 1.0)
    multi_hot = multi_hot / multi_hot.sum(2, keepdim=True)
    return -(multi_hot * torch.log_softmax(logits, 2)).sum(2).mean()


# what superpose conform is told
model = init(torch.Generator().manual_seed(0))


def step(model, window, bag_size):
    return loss(model, window.view(len(window), -1, bag_size))
