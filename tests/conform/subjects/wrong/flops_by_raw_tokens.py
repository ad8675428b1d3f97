"""6 N D with D the raw tokens read."""
# Error 12: superposition's FLOPs are those of its latents, as many as without bags.

PARAMETERS = 270_000_000


def counts(total_steps, bag_size, ratio, latents_per_step):
    phase1 = int(total_steps * ratio)
    tokens = latents_per_step * (phase1 * bag_size + total_steps - phase1)
    return {"raw_tokens": tokens, "latents": total_steps * latents_per_step, "flops": 6 * PARAMETERS * tokens}


def step(model, window, bag_size):
    bags = window.view(len(window), -1, bag_size)
    logits = model(inputs_embeds=model.get_input_embeddings()(bags[:, :-1]).mean(2)).logits
    return (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, bags[:, 1:])).mean()
