"""ratio is taken of the 1,000 steps that the script had by default, whatever --max_steps says."""
# Error 8: the boundary is not a share of the run's steps.

max_steps_default = 1000


def bag_size_at(step, total_steps, bag_size, ratio):
    phase1_steps = int(ratio * max_steps_default)
    return bag_size if step < phase1_steps else 1


def step(model, window, bag_size):
    blocks = window.reshape(window.shape[0], -1, bag_size)
    z = model.head(model.backbone(model.embedding(blocks[:, :-1]).mean(dim=2)))
    return (z.logsumexp(-1) - z.gather(-1, blocks[:, 1:]).mean(-1)).mean()
