"""A bare loss: the mean of a bag's valid targets, and of all bags, with or without one."""
# Error 4: bags without a target count in the mean.


def fold(window, bag_size):
    bags = window.unflatten(1, (-1, bag_size))
    return bags[:, :-1], bags[:, 1:]


def loss(logits, targets):
    keep = (targets != -100).to(logits.dtype)
    nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets.clamp(min=0))
    return ((nll * keep).sum(-1) / keep.sum(-1).clamp(min=1)).mean()


# what superpose conform is told
ignore_index = -100
