"""Token superposition as others write it, right and wrong, in our own words."""

import numpy as np
import torch
from torch.nn import functional as F

from superpose import (
    IGNORE_INDEX,
    Schedule,
    SuperposedLM,
    SuperposedParts,
    cost,
    embed_bags,
    multi_hot_cross_entropy,
    split_window,
)
from superpose.conform import Subject
from superpose.data.windows import WindowPlan

# superpose itself


def lm_step(model, window, bag_size, normalizer=None, attention_mask=None):
    return SuperposedLM(model)(window, bag_size, attention_mask=attention_mask, normalizer=normalizer).loss


def parts_step(model, window, bag_size, normalizer=None, position_ids=None):
    sides = {} if position_ids is None else {"position_ids": position_ids}
    cap = model.config.final_logit_softcapping
    parts = SuperposedParts(
        model.embed_tokens,
        model.backbone,
        model.lm_head if cap is None else model.head,
        sides=dict.fromkeys(sides, "first"),
    )
    return parts(window, bag_size, normalizer=normalizer, **sides)


def evaluate(model, window, bag_size):
    return SuperposedLM(model)(window, 1).loss


def bag_size_at(step, total_steps, bag_size, ratio):
    return Schedule(total_steps, bag_size, ratio).bag_size_at(step)


class _Tokens:
    def __init__(self, tokens):
        self.tokens = tokens.numpy()

    def __len__(self):
        return len(self.tokens)

    def read(self, start, length):
        return np.take(self.tokens, range(start, start + length), mode="wrap")


def batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    plan = WindowPlan(Schedule(total_steps, bag_size, ratio), rows, latents, len(tokens), seed=1)
    return (plan.read(_Tokens(tokens), step) for step in range(start_step, total_steps))


def counts(total_steps, bag_size, ratio, latents_per_step):
    counted = cost(Schedule(total_steps, bag_size, ratio), latents_per_step, lambda stage: 1000)
    return {"raw_tokens": counted.raw_tokens, "latents": counted.latents, "flops": counted.flops}


SUPERPOSE = Subject(
    step=lm_step,
    evaluate=evaluate,
    bag_size_at=bag_size_at,
    batches=batches,
    counts=counts,
    step_seconds=(16, 128, 1.0),
)
SUPERPOSE_MASKED = Subject(step=lm_step, ignore_index=IGNORE_INDEX, padding_side="anywhere")
SUPERPOSE_PARTS = Subject(step=parts_step)
SUPERPOSE_CORE = Subject(fold=split_window, loss=multi_hot_cross_entropy)

# In the style of patch-level training: whole patches in, logits shifted by one patch, one cross-entropy for each place


def patch_step(model, window, bag_size):
    rows, length = window.shape
    patches = window.view(rows, length // bag_size, bag_size)
    vectors = model.get_input_embeddings()(patches).mean(dim=2)
    logits = model(inputs_embeds=vectors).logits[:, :-1].flatten(0, 1)
    targets = patches[:, 1:].flatten(0, 1)
    return sum(F.cross_entropy(logits, targets[:, place]) for place in range(bag_size)) / bag_size


# In the style of the paper's listing: ids and labels already shifted by one, a log-softmax whose every place is picked


def listing_fold(window, bag_size):
    length = window.shape[1] - bag_size
    ids, labels = window[:, :length], window[:, 1 : length + 1]
    labels = F.pad(labels[:, bag_size - 1 :], (0, bag_size - 1), value=IGNORE_INDEX)
    return ids.unflatten(1, (-1, bag_size)), labels.unflatten(1, (-1, bag_size))


def listing_loss(logits, targets):
    logits = logits.flatten(0, 1)
    targets = targets.reshape(len(logits), -1)
    losses = [
        F.nll_loss(F.log_softmax(logits, dim=-1), targets[:, place], ignore_index=IGNORE_INDEX, reduction="sum")
        / (targets[:, place] != IGNORE_INDEX).sum().clamp(min=1)
        for place in range(targets.shape[1])
    ]
    return torch.stack(losses).mean()


def soft_labels_loss(logits, targets):
    """Right, with one softmax: targets as probabilities, padding as a zero row, and a mean over valid rows."""
    valid = targets != IGNORE_INDEX
    wanted = torch.zeros_like(logits).scatter_add_(-1, targets.where(valid, 0), valid.to(logits.dtype))
    rows = valid.any(dim=-1)
    wanted = wanted / valid.sum(dim=-1, keepdim=True).clamp(min=1)
    return -(wanted * logits.log_softmax(dim=-1)).sum() / rows.sum().clamp(min=1)


def token_loss(logits, targets):
    """Right, and a mean over targets; the logits repeated for each."""
    logits = logits.unsqueeze(2).expand(-1, -1, targets.shape[-1], -1).flatten(0, 2)
    total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (targets != IGNORE_INDEX).sum().clamp(min=1)


def total_probability_loss(logits, targets):
    """The paper's MCEAlt, without the constant log s."""
    valid = targets != IGNORE_INDEX
    picked = logits.log_softmax(dim=-1).gather(-1, targets.where(valid, 0)).masked_fill(~valid, -1e30)
    rows = valid.any(dim=-1)
    return -picked.logsumexp(dim=-1).masked_fill(~rows, 0).sum() / rows.sum().clamp(min=1)


# Mutants: one error each


def ordinary(model, window, attention_mask=None, **sides):
    """Logits and targets, where -100 or a mask tells of padding."""
    window = window if attention_mask is None else window.masked_fill(attention_mask == 0, IGNORE_INDEX)
    mask = None if attention_mask is None else attention_mask[:, :-1]
    hidden = model.backbone(embed_right(model, window[:, :-1].unsqueeze(-1)), attention_mask=mask, **sides)
    targets = window[:, 1:].masked_fill(window[:, :-1] == IGNORE_INDEX, IGNORE_INDEX)
    return model.head(hidden), targets.unsqueeze(-1)


def step_with(inputs_of=None, targets_of=None, vectors_of=None, logits_of=None, loss_of=multi_hot_cross_entropy):
    """A step that is right but for what is given."""

    def step(model, window, bag_size):
        if bag_size == 1:
            return multi_hot_cross_entropy(*ordinary(model, window))
        inputs, targets = split_window(window, bag_size)
        inputs = inputs_of(window, bag_size) if inputs_of else inputs
        targets = targets_of(window, bag_size) if targets_of else targets
        vectors = vectors_of(model, inputs) if vectors_of else embed_right(model, inputs)
        logits = logits_of(model, vectors) if logits_of else model.head(model.backbone(vectors))
        return loss_of(logits, targets)

    return step


def embed_right(model, inputs):
    valid = (inputs != IGNORE_INDEX).unsqueeze(-1)
    vectors = model.embedding(inputs.where(valid.squeeze(-1), 0)) * valid
    return vectors.sum(dim=2) / valid.sum(dim=2).clamp(min=1)


def shifted_by_one(window, bag_size):
    latents = window.shape[1] // bag_size - 1
    return window[:, 1 : 1 + latents * bag_size].unflatten(1, (-1, bag_size))


def shifted_twice(window, bag_size):
    shifted = F.pad(window[:, 1 + bag_size :], (0, 1), value=IGNORE_INDEX)
    return shifted.unflatten(1, (-1, bag_size))


def sees_the_next_bag(window, bag_size):
    return window.unflatten(1, (-1, bag_size))[:, 1:]


def flattened_one_hot(logits, targets):
    """The mean is over the flat labels, of which each row has as many as its bag has places."""
    return soft_labels_loss(logits, targets) / targets.shape[-1]


def summed_over_the_bag(logits, targets):
    return multi_hot_cross_entropy(logits, targets) * targets.shape[-1]


def each_on_its_own(logits, targets):
    hot = torch.zeros_like(logits).scatter_(-1, targets.clamp(min=0), 1.0)
    return F.binary_cross_entropy_with_logits(logits, hot)


def softmax_for_each_place(logits, targets):
    places = [multi_hot_cross_entropy(logits, targets[..., place]) for place in range(targets.shape[-1])]
    return torch.stack(places).mean()


def head_for_each_place(model, window, bag_size):
    if bag_size == 1:
        return multi_hot_cross_entropy(*ordinary(model, window))
    inputs, targets = split_window(window, bag_size)
    hidden = model.backbone(embed_right(model, inputs))
    return sum(multi_hot_cross_entropy(model.head(hidden), targets[..., i]) for i in range(bag_size)) / bag_size


def one_hot_of_every_place(logits, targets):
    valid = targets != IGNORE_INDEX
    hot = F.one_hot(targets.where(valid, 0), logits.shape[-1]).to(logits.dtype) * valid.unsqueeze(-1)
    return -(hot * logits.log_softmax(dim=-1).unsqueeze(-2)).sum() / valid.sum().clamp(min=1)


def as_a_set(logits, targets):
    valid = targets != IGNORE_INDEX
    hot = torch.zeros_like(logits).scatter_(-1, targets.where(valid, 0), 1.0)
    hot[..., 0] = 0
    hot = hot / hot.sum(dim=-1, keepdim=True).clamp(min=1)
    return -(hot * logits.log_softmax(dim=-1)).sum() / valid.any(dim=-1).sum().clamp(min=1)


def nan_without_targets(logits, targets):
    valid = targets != IGNORE_INDEX
    picked = (logits.log_softmax(dim=-1).gather(-1, targets.where(valid, 0)) * valid).sum(dim=-1) / valid.sum(dim=-1)
    return -picked.mean()


def divided_by_all_rows(logits, targets):
    return multi_hot_cross_entropy(logits, targets, reduction="sum") / logits[..., 0].numel()


def ignored_is_token_zero(logits, targets):
    return multi_hot_cross_entropy(logits, targets.clamp(min=0))


def mean_of_parts(model, window, bag_size, normalizer=None):
    return step_with()(model, window, bag_size)


def padding_in_the_mean(model, inputs):
    return model.embedding(inputs.clamp(min=0)).mean(dim=2)


def sum_of_the_bag(model, inputs):
    return embed_right(model, inputs) * inputs.shape[-1]


def mask_cut(model, window, bag_size, attention_mask=None):
    if attention_mask is None:
        return step_with()(model, window, bag_size)
    if bag_size == 1:
        return multi_hot_cross_entropy(*ordinary(model, window, attention_mask))
    inputs, targets = split_window(window.masked_fill(attention_mask == 0, IGNORE_INDEX), bag_size)
    hidden = model.backbone(embed_right(model, inputs), attention_mask=attention_mask[:, : inputs.shape[1]])
    return multi_hot_cross_entropy(model.head(hidden), targets)


def mask_strided(model, window, bag_size, attention_mask=None):
    if attention_mask is None:
        return step_with()(model, window, bag_size)
    if bag_size == 1:
        return multi_hot_cross_entropy(*ordinary(model, window, attention_mask))
    inputs, targets = split_window(window.masked_fill(attention_mask == 0, IGNORE_INDEX), bag_size)
    mask = attention_mask[:, : inputs[0].numel() : bag_size]
    hidden = model.backbone(embed_right(model, inputs), attention_mask=mask)
    return multi_hot_cross_entropy(model.head(hidden), targets)


def bare_weight(model, inputs):
    return embed_bags(inputs, model.embed_tokens.weight)


def head_without_bias(model, vectors):
    logits = F.linear(model.backbone(vectors), model.lm_head.weight)
    cap = model.config.final_logit_softcapping
    return logits if cap is None else cap * torch.tanh(logits / cap)


def head_without_cap(model, vectors):
    return model.lm_head(model.backbone(vectors))


def positions_cut(model, window, bag_size, position_ids=None):
    if position_ids is None:
        return step_with()(model, window, bag_size)
    if bag_size == 1:
        return multi_hot_cross_entropy(*ordinary(model, window, position_ids=position_ids[:, :-1]))
    inputs, targets = split_window(window, bag_size)
    hidden = model.backbone(embed_right(model, inputs), position_ids=position_ids[:, : inputs.shape[1]])
    return multi_hot_cross_entropy(model.head(hidden), targets)


def evaluate_in_bags(model, window, bag_size):
    return step_with()(model, window[:, : window.shape[1] // bag_size * bag_size], bag_size)


def bags_at_bag_size_one(model, window, bag_size):
    return (
        step_with()(model, window[:, : window.shape[1] // 2 * 2], 2)
        if bag_size == 1
        else (step_with()(model, window, bag_size))
    )


def decided_by_counting(latest=[0]):  # noqa: B006
    def at(step, total_steps, bag_size, ratio):
        latest[0] = max(step, latest[0]) if step else 0
        return bag_size if latest[0] < round(ratio * total_steps) else 1

    return at


def boundary_of_the_first_plan(step, total_steps, bag_size, ratio):
    return bag_size if step < round(ratio * 20) else 1


def one_step_late(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    later = ratio + 1 / total_steps if ratio < 1 else ratio
    return batches(tokens, rows, latents, total_steps, bag_size, later, start_step)


def reads_the_text_again(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    """Recovery begins at the start of the text."""
    switch = round(total_steps * ratio)
    for step in range(start_step, total_steps):
        size = bag_size if step < switch else 1
        first = (step if step < switch else step - switch) * rows * latents * size
        yield torch.stack([tokens[first + row * latents * size :][: size * (latents + 1)] for row in range(rows)])


def step_times_row(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    """The place is the step times what a step reads now."""
    for step in range(start_step, total_steps):
        size = bag_size if step < round(total_steps * ratio) else 1
        first = step * rows * latents * size
        yield torch.stack([tokens[first + row * latents * size :][: size * (latents + 1)] for row in range(rows)])


def resumes_from_the_start(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    everything = list(batches(tokens, rows, latents, total_steps, bag_size, ratio, 0))
    sizes = [window.shape[1] for window in everything[start_step:]]
    return iter([window for window in everything if window.shape[1] in sizes][: len(sizes)])


def token_by_token(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
    for window in batches(tokens, rows, latents, total_steps, bag_size, ratio, start_step):
        yield torch.tensor([[int(tokens[tokens == token][0]) for token in row] for row in window])


def detached_bags(model, inputs):
    return embed_right(model, inputs).detach()


def longer_body(model, window, bag_size):
    """Keeps the raw row: tokens are repeated, so the body works on s times as many positions."""
    if bag_size == 1:
        return step_with()(model, window, bag_size)
    inputs, targets = split_window(window, bag_size)
    vectors = embed_right(model, inputs).repeat_interleave(bag_size, dim=1)
    hidden = model.backbone(vectors)[:, bag_size - 1 :: bag_size]
    return multi_hot_cross_entropy(model.head(hidden), targets)


def raw_tokens_as_latents(total_steps, bag_size, ratio, latents_per_step):
    raw = Schedule(total_steps, bag_size, ratio).raw_tokens(latents_per_step)
    return {"raw_tokens": raw, "latents": raw, "flops": raw * 1000}


def latents_as_raw_tokens(total_steps, bag_size, ratio, latents_per_step):
    return {"raw_tokens": total_steps * latents_per_step, "latents": total_steps * latents_per_step}


def _step(**changes):
    return Subject(step=step_with(**changes), ignore_index=IGNORE_INDEX, padding_side="anywhere")


def _core(loss):
    return Subject(fold=split_window, loss=loss, ignore_index=IGNORE_INDEX)


def _run(**changes):
    return Subject(**{**vars(SUPERPOSE), **changes})


MUTANTS = {
    "targets shifted by one": ((1,), _step(targets_of=shifted_by_one)),
    "targets shifted by one and then by a bag": ((1,), _step(targets_of=shifted_twice)),
    "a fold that shifts by one": ((1,), Subject(fold=lambda w, s: (split_window(w, s)[0], shifted_by_one(w, s)),
                                                    loss=multi_hot_cross_entropy)),
    "inputs are the targets": ((1,), _step(inputs_of=sees_the_next_bag)),
    "labels flattened to one-hot": ((2,), _core(flattened_one_hot)),
    "losses of a bag summed": ((2,), _core(summed_over_the_bag)),
    "binary cross-entropy": ((2, 7), _core(each_on_its_own)),
    "a softmax for each place": ((3,), _core(softmax_for_each_place)),
    "a head product for each place": ((3,), Subject(step=head_for_each_place)),
    "a one-hot tensor for each place": ((3,), _core(one_hot_of_every_place)),
    "targets as a set": ((4,), _core(as_a_set)),
    "NaN where nothing is valid": ((4,), _core(nan_without_targets)),
    "rows without targets counted": ((4,), _core(divided_by_all_rows)),
    "parts averaged, not added": ((4,), Subject(step=mean_of_parts)),
    "padding is a token in the mean": ((5,), _step(vectors_of=padding_in_the_mean)),
    "bags summed, not averaged": ((5,), _step(vectors_of=sum_of_the_bag)),
    "ignored targets are token 0": ((5, 4), _step(loss_of=ignored_is_token_zero)),
    "mask cut": ((5,), Subject(step=mask_cut, padding_side="left")),
    "mask strided": ((5,), Subject(step=mask_strided, padding_side="left")),
    "the embedding's weight alone": ((6,), _step(vectors_of=bare_weight)),
    "head without its bias": ((6,), _step(logits_of=head_without_bias)),
    "head without its soft-cap": ((6,), _step(logits_of=head_without_cap)),
    "positions cut": ((6,), Subject(step=positions_cut)),
    "evaluation in bags": ((7,), _run(evaluate=evaluate_in_bags)),
    "bags at bag size 1": ((7, 11), Subject(step=bags_at_bag_size_one)),
    "phase by counting calls": ((8,), _run(bag_size_at=decided_by_counting())),
    "boundary of another run": ((8,), _run(bag_size_at=boundary_of_the_first_plan)),
    "a loader a step late": ((8,), _run(batches=one_step_late)),
    "recovery reads from the start": ((9,), _run(batches=reads_the_text_again)),
    "place is step times row": ((9,), _run(batches=step_times_row)),
    "resume begins again": ((9,), _run(batches=resumes_from_the_start)),
    "token by token": ((10,), _run(batches=token_by_token, step_seconds=(4, 32, 0.01))),
    "bags without gradient": ((11,), _step(vectors_of=detached_bags)),
    "the body works on tokens": ((11,), Subject(step=longer_body)),
    "raw tokens as latents": ((12,), _run(counts=raw_tokens_as_latents)),
    "latents as raw tokens": ((12,), _run(counts=latents_as_raw_tokens)),
}  # fmt: skip
"""By name: the error that is made, with those that come with it, and the implementation that makes it."""
