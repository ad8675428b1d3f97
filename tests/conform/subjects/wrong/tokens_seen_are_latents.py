"""tokens_seen += batch_size * block_size, in both phases; a bare loss and fold beside it."""
# Error 12: raw tokens of superposition are counted as latents.


def counts(total_steps, bag_size, ratio, latents_per_step):
    tokens_seen = 0
    for _ in range(total_steps):
        tokens_seen += latents_per_step
    return {"raw_tokens": tokens_seen, "latents": tokens_seen}


def fold(window, bag_size):
    bags = window.reshape(window.size(0), -1, bag_size)
    return bags[:, :-1], bags[:, 1:]


def loss(logits, targets):
    keep = targets.ne(-100)
    nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, targets.clamp(min=0))
    return (nll * keep).sum() / keep.sum().clamp(min=1)
