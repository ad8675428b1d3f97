"""A trainer that counts its own steps: after a restart the count, and superposition, begin again."""
# Error 8: the bag size depends on how often it was asked, not on the step.


class Schedule:
    def __init__(self):
        self.seen = 0

    def __call__(self, step, total_steps, bag_size, ratio):
        if step == 0:
            self.seen = 0
        size = bag_size if self.seen < ratio * total_steps else 1
        self.seen += 1
        return size


bag_size_at = Schedule()


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
