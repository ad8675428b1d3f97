"""A module in Lightning's form, without Lightning: training_step reads the batch's dict and logs."""

import torch
from torch import nn
from torch.nn import functional as F


class LitSuperposition(nn.Module):
    def __init__(self, vocab_size=68, hidden_dim=24, bag_size=4, ratio=0.3, max_steps=100):
        super().__init__()
        self.bag_size, self.boundary, self.global_step = bag_size, round(ratio * max_steps), 0
        self.embed = nn.Embedding(vocab_size, hidden_dim)
        self.backbone = nn.GRU(hidden_dim, hidden_dim, batch_first=True)
        self.classifier = nn.Linear(hidden_dim, vocab_size)
        self.logged = {}

    @property
    def current_bag_size(self):
        return self.bag_size if self.global_step < self.boundary else 1

    def log(self, name, value, prog_bar=False):
        self.logged[name] = float(value.detach())

    def forward(self, x):
        vectors = self.embed(x)
        return self.classifier(self.backbone(vectors.mean(-2) if x.dim() == 3 else vectors)[0])

    def training_step(self, batch, batch_idx):
        s, ids = self.current_bag_size, batch["input_ids"]
        if s == 1:
            loss = F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        else:
            bags = ids.unflatten(1, (-1, s))
            lp = self(bags[:, :-1]).log_softmax(-1)
            loss = lp.gather(-1, bags[:, 1:]).mean().neg()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        ids = batch["input_ids"]
        return F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


torch.manual_seed(0)
model = LitSuperposition()


def step(model, window, bag_size):
    model.bag_size, model.global_step = bag_size, 0 if bag_size > 1 else 99
    return model.training_step({"input_ids": window}, 0)


def evaluate(model, window, bag_size):
    model.bag_size, model.global_step = bag_size, 0
    return model.validation_step({"input_ids": window}, 0)
