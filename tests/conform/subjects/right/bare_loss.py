"""A loss and a fold alone; padding is -100, a mean over the bags that have a target."""

import torch


def fold(window, bag_size):
    bags = window.unflatten(1, (-1, bag_size))
    return bags[:, :-1], bags[:, 1:]


def loss(logits, targets, normalizer=None):
    valid = targets != -100
    share = valid / valid.sum(-1, keepdim=True).clamp(min=1)
    at_targets = torch.take_along_dim(logits, targets.clamp(min=0), dim=-1)
    per_bag = torch.where(valid.any(-1), logits.logsumexp(-1) - (share * at_targets).sum(-1), 0)
    return per_bag.sum() / (valid.any(-1).sum().clamp(min=1) if normalizer is None else normalizer)


# what superpose conform is told
ignore_index = -100
