"""What one step does: what a position sees and is asked for, how the model is used, at what cost. Errors 1 to 7 and 11.

Each check raises `WrongError` with its evidence, or returns a sentence on what it found right.

Shapes: B rows, L latents, S bag, N = B x L positions, V vocabulary.
"""

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from superpose.conform.implementation import Implementation, NotCheckedError, WrongError, accepts
from superpose.conform.probe import (
    NOISE,
    VOCAB_SIZE,
    Probe,
    Reading,
    call_of,
    folded,
    observe,
    observe_padded,
    read_step,
    scalar,
    step_of,
    value_of,
    window_of,
)

# Vocabulary-wide work may be a little more at a larger bag (a gather, a sort), not in proportion to it.
_GROWTH = 1.5


def check_shift(implementation: Implementation) -> str:
    """Error 1: bag j sees tokens js to (j + 1)s - 1, and is asked for the s that follow them."""
    for bag_size, latents in ((2, 3), (3, 2), (4, 4), (4, 1)):
        window = window_of(2, latents, bag_size)
        reading = observe(implementation, window, bag_size)
        if reading.saw.shape[1] < latents:
            raise WrongError(
                f"{reading.saw.shape[1]} positions for a window of {window.shape[1]} tokens in bags of {bag_size}; "
                f"expected {latents}, and one bag that is only a target"
            )
        for row, latent in product(range(len(window)), range(latents)):
            place = f"bags of {bag_size}, row {row}, position {latent}"
            saw, asked = (sorted(_places(shares[row, latent], window[row])) for shares in (reading.saw, reading.asked))
            here = list(range(latent * bag_size, (latent + 1) * bag_size))
            due = [token + bag_size for token in here]
            if saw != here:
                raise WrongError(f"{place} saw {_tokens(saw)}; expected {_tokens(here)}")
            # A row may not hold all targets of its last bag.
            if asked == due or (latent == latents - 1 and set(asked) <= set(due)):
                continue
            leaked, skipped = set(asked) & set(range(due[0])), sorted(set(due) - set(asked))
            why = f"; {len(leaked)} of {bag_size} targets were in its own input" if leaked else ""
            if not leaked and skipped and asked:
                why = f"; {_tokens(skipped)} skipped"
            raise WrongError(f"{place} saw {_tokens(saw)} and was asked for {_tokens(asked)}, not {_tokens(due)}{why}")
    return "each bag saw its own tokens and was asked for all of the next bag's, at s 2, 3 and 4"


def check_first_loss(implementation: Implementation) -> str:
    """Error 2: with all logits 0 the loss is log V."""
    step, expected, remark = step_of(implementation), math.log(VOCAB_SIZE), ""
    for bag_size in (2, 4):
        value = value_of(step(Probe(VOCAB_SIZE, gain=0.0), window_of(2, 3, bag_size), bag_size))
        found = f"the loss of equal logits is {value:.4f} at s {bag_size}, V {VOCAB_SIZE}"
        if math.isclose(value, expected, rel_tol=1e-6):
            remark = remark or f"{found}: log V"
        elif math.isclose(value, expected - math.log(bag_size), rel_tol=1e-6):
            remark = f"{found}: log V - log s, as of the bag's total probability (MCEAlt without its constant)"
        else:
            causes = {
                expected / bag_size: ". It is log(V) / s: the bag's places were averaged as if most held no target",
                expected * bag_size: ". It is s log(V): the bag's losses were added up, not averaged",
            }
            cause = next((said for loss, said in causes.items() if math.isclose(value, loss, rel_tol=0.02)), "")
            raise WrongError(f"{found}; expected log V = {expected:.4f}{cause}")
    tilt = read_step(step, window_of(2, 3, 4), 4).tilt
    if not tilt < NOISE:
        raise WrongError(f"a row's gradient sums to {tilt:.3g} over the vocabulary; that of a softmax sums to 0")
    return remark


def check_normalisation(implementation: Implementation) -> str:
    """Error 4: what each target counts, where some are ignored and some are equal."""
    bag_size, latents, window = 3, 2, window_of(3, latents=2, bag_size=3)
    whole = observe(implementation, window, bag_size)
    weights = _target_weights(whole, window, latents)
    if not torch.allclose(weights[:, 0].sum(-1), whole.counts[:, 0], atol=NOISE) or not whole.counts[:, 0].all():
        raise NotCheckedError("a bag is not asked for the next one's tokens, see error 1")
    scale = float(whole.counts.sum())  # how large the loss is as a whole is error 2's question
    # Of a bag's total probability (MCEAlt) shares depend on the logits, and only what a row counts does not.
    by_probability = whole.hidden[:, :1].gather(-1, window[:, None, bag_size : 2 * bag_size]).softmax(dim=-1)[:, 0]
    alternative = torch.allclose(weights[:, 0] / weights[:, 0].sum(-1, keepdim=True), by_probability, atol=NOISE)
    by_place = weights[0, 0] / weights[0, 0].sum()
    compared = weights[:, 0].sum(-1) if alternative else weights[:, 0]
    if not (compared - compared[0]).abs().max() < NOISE:
        raise WrongError(f"targets of three full bags count {_numbers(weights[:, 0])}; expected the same in each")

    double = window.clone()  # a token that is there twice counts twice
    double[:, bag_size + 1] = double[:, bag_size]
    reading = observe(implementation, double, bag_size)
    share = float(reading.asked[0, 0, double[0, bag_size]])
    shares = reading.hidden[0, 0][double[0, bag_size : 2 * bag_size]].softmax(dim=-1) if alternative else by_place
    expected = float(shares[0] + shares[1])
    if not math.isclose(share, expected, rel_tol=NOISE):
        raise WrongError(f"a token at places 0 and 1 of a bag of 3 has share {share:.4f}; expected {expected:.4f}")
    try:
        mean_over = _normalisation(implementation, window, weights, scale, alternative)
    except NotCheckedError as missing:
        return f"repeated targets keep their weight; not checked: {missing}"
    if not accepts(implementation.step or implementation.loss, "normalizer"):
        return f"a mean over {mean_over}; whether parts of a step add up was not checked: it takes no normalizer"
    total, *parts = (
        observe(implementation, rows, bag_size, normalizer=5.0).value for rows in (window, window[:1], window[1:])
    )
    if not math.isclose(total, sum(parts), rel_tol=1e-9):
        raise WrongError(f"with one normalizer the parts of a step give {sum(parts):.6f}, the step {total:.6f}")
    return f"a mean over {mean_over}; parts of a step add up"


def _normalisation(
    implementation: Implementation, window: Tensor, weights: Tensor, scale: float, alternative: bool
) -> str:
    """What the loss is a mean over. `weights` [B, L, S] are those of the targets without padding."""
    latents, bag_size = weights.shape[1:]
    ignored = torch.zeros_like(window, dtype=torch.bool)
    ignored[1, bag_size + 1 : 2 * bag_size] = True  # one target of the first position is left
    ignored[2, bag_size:] = True  # nothing is
    reading = observe_padded(implementation, window, ignored, bag_size)
    found = _target_weights(reading, window, latents) / scale
    if not torch.isfinite(found).all() or not math.isfinite(reading.value):
        raise WrongError(f"with positions whose targets are all ignored the loss is {reading.value}")
    if (counted := float(reading.counts[2].abs().max())) > NOISE:
        raise WrongError(f"a position whose targets are all ignored counts {counted:.4f}; expected 0")
    # A row may not hold all targets of its last bag; those it does hold have a weight.
    valid = (weights > NOISE) & ~ignored[:, bag_size:].unflatten(1, (latents, bag_size))
    mass = valid * weights[0, 0]
    of_places = valid * weights.sum(dim=(0, 1)) / weights.sum()
    ways = {
        "rows with a target": mass / mass.sum(-1, keepdim=True).clamp(min=NOISE) / valid.any(-1).sum(),
        "valid targets": mass / mass.sum(),
        "places in the bag, each a mean over its valid targets": of_places / valid.sum(dim=(0, 1)).clamp(min=1),
    }
    if alternative:
        found, ways = found.sum(-1, keepdim=True), {name: way.sum(-1, keepdim=True) for name, way in ways.items()}
    mean_over = next((name for name, way in ways.items() if torch.allclose(found, way, atol=NOISE)), None)
    if mean_over is None:
        counts, by_rows, by_targets, _ = (_numbers(way[:, 0]) for way in (found, *ways.values()))
        raise WrongError(
            f"of bags with 3, 1 and no valid targets these count {counts}; a mean over rows would have {by_rows}, "
            f"one over valid targets {by_targets}"
        )
    place = torch.arange(window.shape[1]).expand_as(window)
    if (value := observe_padded(implementation, window, place >= bag_size, bag_size).value) != 0:
        raise WrongError(f"the loss of a batch without a valid target is {value}; expected 0")
    if not math.isfinite(observe_padded(implementation, window, (place + 1) % bag_size == 0, bag_size).value):
        raise WrongError("where the last place of every bag is ignored the loss is not finite")
    return mean_over


def check_padding(implementation: Implementation) -> str:
    """Error 5: an ignored token is neither in a mean nor in a target, and masks fold by `any`."""
    bag_size, latents, window = 3, 3, window_of(2, latents=3, bag_size=3)
    saw = observe(implementation, window, bag_size).saw
    last = slice(bag_size * (latents - 1), bag_size * latents)
    if saw.shape[1] < latents or sorted(_places(saw[1, latents - 1], window[1])) != [6, 7, 8]:
        raise NotCheckedError("a bag does not see its own tokens, see error 1")
    shares = saw[1, latents - 1][window[1, last]]
    if not torch.allclose(shares, torch.full_like(shares, 1 / bag_size), atol=NOISE):
        raise WrongError(f"tokens of a bag of 3 enter with {_numbers(shares)}; expected 1/3 each, a mean")
    padding = torch.zeros_like(window, dtype=torch.bool)
    padding[1, last.start + 1 :] = True  # of the last input one token is left, of its target none
    reading = observe_padded(implementation, window, padding, bag_size)
    alone, shares = int(window[1, last.start]), reading.saw[1, latents - 1]
    if not torch.allclose(shares, F.one_hot(torch.tensor(alone), VOCAB_SIZE).double(), atol=NOISE):
        kept = {int(token): round(float(shares[token]), 4) for token in shares.abs().gt(NOISE).nonzero()}
        saw_shares = f"of a bag with one token and two of padding the position saw shares {kept} by token"
        raise WrongError(f"{saw_shares}; expected {{{alone}: 1.0}}")
    asked = set(_places(reading.asked[1].sum(dim=0), window[1]))
    if wrong := sorted(asked & {-1, *padding[1].nonzero().flatten().tolist()}):
        raise WrongError(f"padding was asked for: {_tokens(wrong)} of a row")
    if not accepts(implementation.step, "attention_mask"):
        return "padding has no share in means and targets; a mask was not checked: no attention_mask is taken"
    mask = torch.ones_like(window)
    mask[1, : bag_size + 1] = 0  # before the text: the first bag, and one token of the second
    reading = read_step(step_of(implementation), window, bag_size, attention_mask=mask)
    if reading.mask is None:
        raise WrongError("padding before the text was attended to: the body got no attention_mask")
    expected = torch.ones(reading.saw.shape[:2], dtype=torch.long)
    expected[1, 0] = 0
    if reading.mask.dim() == 2 and not torch.equal(reading.mask.long(), expected):
        raise WrongError(
            f"the mask of a row that begins with {bag_size + 1} tokens of padding reached the body as "
            f"{reading.mask.long()[1].tolist()}; expected {expected[1].tolist()}: a bag with any token is attended to"
        )
    return "padding has no share in means and targets, and the mask of bags holds where any token does"


def check_work(implementation: Implementation) -> str:
    """Error 3: one head product and one softmax serve all targets of a bag."""
    latents, rows, vocab_size, width = 4, 2, 1024, 8
    size, found = rows * latents * vocab_size, {}
    for bag_size in (2, 8):
        window = window_of(rows, latents, bag_size)
        if implementation.step is None:  # without the work of a model that is not theirs
            _, targets = folded(implementation, window, bag_size)
            logits = torch.zeros(*targets.shape[:2], vocab_size, dtype=torch.float64, requires_grad=True)
        counter = _VocabularyWide(size)
        with counter, torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
            if implementation.step is None:
                scalar(implementation.need("loss")(logits, targets), "loss").backward()
            else:
                scalar(implementation.step(Probe(vocab_size, width), window, bag_size), "step").backward()
        found[bag_size] = (counter.numbers / size, sum(counter.kept.values()) / size, counter.products)
    (few, few_kept, few_products), (many, many_kept, many_products) = found[2], found[8]
    evidence = f"numbers written, in N x V: {few:.1f} at s 2, {many:.1f} at s 8"
    evidence += f"; kept for the backward pass: {few_kept:.1f} and {many_kept:.1f}"
    if implementation.step is not None:
        evidence += f"; products as wide as the vocabulary: {few_products} and {many_products}"
    if many > _GROWTH * few or many_kept > _GROWTH * max(1.0, few_kept) or many_products > few_products:
        raise WrongError(evidence)
    return evidence


def check_sides(implementation: Implementation) -> str:
    """Error 6: what belongs to a token besides its id, and to a logit besides the head's product."""
    step, bag_size, window = implementation.need("step"), 3, window_of(2, 3, bag_size=3)
    plain = observe(implementation, window, bag_size)
    embeds = read_step(step, window, bag_size, Probe(VOCAB_SIZE, scale=3.0)).saw
    if not torch.allclose(embeds, 3 * plain.saw, atol=NOISE):
        raise WrongError(
            f"an embedding that multiplies its vectors by 3, as Gemma's does by sqrt(D), was looked up without it: "
            f"the largest share is {float(embeds.abs().max()):.4f}, not {float(3 * plain.saw.max()):.4f}"
        )
    for what, model in (("bias", Probe(VOCAB_SIZE, bias=True)), ("soft-cap", Probe(VOCAB_SIZE, softcap=0.5))):
        reading = read_step(step, window, bag_size, model)
        logits = model.head(reading.hidden).detach()
        expected = float((plain.counts * (logits.logsumexp(-1) - (plain.asked * logits).sum(-1))).sum())
        if not math.isclose(reading.value, expected, rel_tol=1e-6):
            raise WrongError(f"with a head that has a {what} the loss is {reading.value:.6f}; expected {expected:.6f}")
    if not accepts(step, "position_ids"):
        return (
            "the embedding's scale and the head's bias and soft-cap are kept; "
            "positions were not checked: no position_ids are taken"
        )
    positions = torch.arange(bag_size * 2).repeat(2)[: window.shape[1]].expand(len(window), -1)
    reading = read_step(step, window, bag_size, position_ids=positions)
    given = None if reading.positions is None else reading.positions.tolist()
    seen = reading.saw.shape[1]
    if given is None or len(given[0]) != seen or not given[0][0] < given[0][1] > given[0][2]:
        raise WrongError(
            f"position_ids that restart at token {2 * bag_size} reached {seen} positions as {given}; "
            f"expected them folded by bag, with a restart at position 2"
        )
    return "the embedding's scale, the head's bias and soft-cap, and positions are kept"


def check_evaluation(implementation: Implementation) -> str:
    """Error 7: at bag size 1, and in evaluation at any, it is the cross-entropy of the next token."""
    window = window_of(2, 5, 1)
    logits = Probe(VOCAB_SIZE)(input_ids=window[:, :-1]).logits
    expected = float(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()).detach())
    asked = [("at bag size 1 the loss is", "step", step_of(implementation), 1)]
    if evaluate := implementation.evaluate:
        asked += [(f"while bags of {s} train, evaluation gives", "evaluate", evaluate, s) for s in (1, 3)]
    for words, role, function, bag_size in asked:
        value = value_of(function(Probe(VOCAB_SIZE), window, bag_size), role)
        if not math.isclose(value, expected, rel_tol=1e-6):
            raise WrongError(f"{words} {value:.6f}; the next token's cross-entropy is {expected:.6f}")
    if evaluate is None:
        return "at bag size 1 it is next-token cross-entropy; evaluation was not checked: no evaluate is given"
    return "at bag size 1 and in evaluation it is next-token cross-entropy"


def check_phases(implementation: Implementation) -> str:
    """Error 11: in both phases every parameter has a gradient and the body sees one shape."""
    step = implementation.need("step")
    latents, shapes = 3, {}
    for bag_size in (1, 4):
        model = Probe(VOCAB_SIZE)
        scalar(step(model, window_of(2, latents, bag_size), bag_size), "step").backward()
        parameters = list(model.named_parameters())
        if isinstance(step, torch.nn.Module):
            parameters += [(f"step.{name}", parameter) for name, parameter in step.named_parameters()]
        if unused := [name for name, parameter in parameters if parameter.grad is None]:
            raise WrongError(f"no gradient at bag size {bag_size}: {', '.join(unused)}")
        shapes[bag_size] = list(call_of(model).embeds.shape)
    if shapes[1] != shapes[4]:
        raise WrongError(f"for {latents} latents the body sees {shapes[4]} in bags of 4 and {shapes[1]} at bag size 1")
    return f"all parameters have gradients in both phases, and the body sees {shapes[1]} in both"


def _target_weights(reading: Reading, window: Tensor, latents: int) -> Tensor:
    """What each target of the next bag counts in the loss [B, L, S]."""
    bags = window.unflatten(1, (latents + 1, -1))[:, 1:]
    weights = reading.counts.unsqueeze(-1) * reading.asked
    return F.pad(weights, (0, 0, 0, max(0, latents - weights.shape[1])))[:, :latents].gather(-1, bags)


def _places(shares: Tensor, row: Tensor) -> list[int]:
    """Places in a row of the tokens that have a share; -1 for one that is not in the row."""
    place = {int(token): number for number, token in enumerate(row)}
    return [place.get(int(token), -1) for token in (shares.abs() > NOISE).nonzero()]


def _tokens(places: list[int]) -> str:
    if len(places) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f"tokens {places[0]} to {places[-1]}"
    return f"token{'s' * (len(places) > 1)} {', '.join(map(str, places))}" if places else "no token"


def _numbers(values: Tensor) -> str:
    return str(values.round(decimals=4).tolist())


class _VocabularyWide(TorchDispatchMode):
    """Counts what operations write into tensors of at least N x V, what autograd keeps of them, and products."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.numbers, self.products = size, 0, 0
        self.kept: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor) and output.numel() >= self.size and not function.is_view:
                self.numbers += output.numel()
                self.products += function.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm")
        return result

    def keep(self, tensor: Tensor) -> Tensor:
        if tensor.numel() >= self.size:
            storage = tensor.untyped_storage()
            self.kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor
