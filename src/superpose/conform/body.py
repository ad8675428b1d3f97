"""How the model is used, and at what cost: errors 3, 6, 7 and 11.

Each check raises `WrongError` with its evidence, or returns a sentence on what it found right.

Shapes: B rows, L latents, S bag, N = B x L positions, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from superpose.conform.finding import WrongError
from superpose.conform.implementation import Implementation, accepts
from superpose.conform.observe import NOISE, VOCAB_SIZE, folded, observe, step_of, window_of
from superpose.conform.probe import Probe, calls, padded, scalar, value_of

# Vocabulary-wide work may be a little more at a larger bag (a gather, a sort), not in proportion to it.
_GROWTH = 1.5


def check_work(implementation: Implementation) -> str:
    """Error 3: one head product and one softmax serve all targets of a bag."""
    latents, rows, vocab_size, width = 4, 2, 1024, 8
    found = {}
    for bag_size in (2, 8):
        window = window_of(rows, latents, bag_size)
        counter = _VocabularyWide(rows * latents * vocab_size)
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            if tensor.numel() >= rows * latents * vocab_size:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
            return tensor

        if implementation.step is None:
            _, targets = folded(implementation, window, bag_size)
            logits = torch.zeros(*targets.shape[:2], vocab_size, dtype=torch.float64, requires_grad=True)
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if implementation.step is not None:
                loss = scalar(implementation.step(Probe(vocab_size, width), window, bag_size), "step")
            else:
                assert implementation.loss is not None
                loss = scalar(implementation.loss(logits, targets), "loss")
            loss.backward()
        size = rows * latents * vocab_size
        found[bag_size] = (counter.numbers / size, sum(saved.values()) / size, counter.products)
    (few, few_kept, few_products), (many, many_kept, many_products) = found[2], found[8]
    evidence = (
        f"numbers written, in N x V: {few:.1f} at s 2, {many:.1f} at s 8; kept for the backward pass: "
        f"{few_kept:.1f} and {many_kept:.1f}"
    )
    if implementation.step is not None:
        evidence += f"; products as wide as the vocabulary: {few_products} and {many_products}"
    if many > _GROWTH * few or many_kept > _GROWTH * max(1.0, few_kept) or many_products > few_products:
        raise WrongError(evidence)
    return evidence


def check_sides(implementation: Implementation) -> str:
    """Error 6: what belongs to a token besides its id, and to a logit besides the head's product."""
    step = step_of(implementation)
    bag_size, latents = 3, 3
    window = window_of(2, latents, bag_size)
    plain = observe(implementation, window, bag_size)
    scaled = Probe(VOCAB_SIZE, scale=3.0)
    step(scaled, window, bag_size)
    (seen,) = calls(scaled)
    assert plain.saw is not None
    if not torch.allclose(seen.embeds, 3 * plain.saw, atol=NOISE):
        largest = float(seen.embeds.abs().max())
        raise WrongError(
            f"an embedding that multiplies its vectors by 3, as Gemma's does by sqrt(D), was looked up without it: "
            f"the largest share is {largest:.4f}, not {float(3 * plain.saw.max()):.4f}"
        )
    for what, model in (("bias", Probe(VOCAB_SIZE, bias=True)), ("soft-cap", Probe(VOCAB_SIZE, softcap=0.5))):
        value = value_of(step(model, window, bag_size), "step")
        (seen,) = calls(model)
        logits = model.head(seen.hidden.detach()).detach()
        asked = padded(plain.asked, logits.shape[1])
        counts = F.pad(plain.counts, (0, logits.shape[1] - plain.counts.shape[1]))
        expected = float((counts * (logits.logsumexp(-1) - (asked * logits).sum(-1))).sum())
        if not math.isclose(value, expected, rel_tol=1e-6):
            raise WrongError(f"with a head that has a {what} the loss is {value:.6f}; expected {expected:.6f}")
    if not accepts(step, "position_ids"):
        return (
            "the embedding's scale and the head's bias and soft-cap are kept; "
            "positions were not checked: no position_ids are taken"
        )
    positions = torch.arange(bag_size * 2).repeat(2)[: window.shape[1]].expand(len(window), -1)
    model = Probe(VOCAB_SIZE)
    step(model, window, bag_size, position_ids=positions)
    (seen,) = calls(model)
    given = None if seen.positions is None else seen.positions.tolist()
    if given is None or len(given[0]) != seen.embeds.shape[1] or not given[0][0] < given[0][1] > given[0][2]:
        raise WrongError(
            f"position_ids that restart at token {2 * bag_size} reached {seen.embeds.shape[1]} positions as {given}; "
            f"expected them folded by bag, with a restart at position 2"
        )
    return "the embedding's scale, the head's bias and soft-cap, and positions are kept"


def check_evaluation(implementation: Implementation) -> str:
    """Error 7: at bag size 1, and in evaluation at any, it is the cross-entropy of the next token."""
    window = window_of(2, 5, 1)
    expected = _next_token(Probe(VOCAB_SIZE), window)
    if implementation.step is not None:
        value = value_of(implementation.step(Probe(VOCAB_SIZE), window, 1), "step")
    else:
        assert implementation.loss is not None
        inputs, targets = folded(implementation, window, 1)
        logits = Probe(VOCAB_SIZE)(input_ids=inputs[..., 0]).logits.detach()[:, : targets.shape[1]]
        value = value_of(implementation.loss(logits, targets), "loss")
    if not math.isclose(value, expected, rel_tol=1e-6):
        raise WrongError(f"at bag size 1 the loss is {value:.6f}; the next token's cross-entropy is {expected:.6f}")
    if implementation.evaluate is None:
        return "at bag size 1 it is next-token cross-entropy; evaluation was not checked: no evaluate is given"
    for bag_size in (1, 3):
        value = value_of(implementation.evaluate(Probe(VOCAB_SIZE), window, bag_size), "evaluate")
        if not math.isclose(value, expected, rel_tol=1e-6):
            raise WrongError(
                f"while bags of {bag_size} train, evaluation gives {value:.6f}; the next token's cross-entropy is "
                f"{expected:.6f}"
            )
    return "at bag size 1 and in evaluation it is next-token cross-entropy"


def check_phases(implementation: Implementation) -> str:
    """Error 11: in both phases every parameter has a gradient and the body sees one shape."""
    step = step_of(implementation)
    latents, shapes = 3, {}
    for bag_size in (1, 4):
        window = window_of(2, latents, bag_size)
        model = Probe(VOCAB_SIZE)
        loss = scalar(step(model, window, bag_size), "step")
        loss.backward()
        unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        if isinstance(step, torch.nn.Module):
            unused += [f"step.{name}" for name, parameter in step.named_parameters() if parameter.grad is None]
        if unused:
            raise WrongError(f"no gradient at bag size {bag_size}: {', '.join(unused)}")
        shapes[bag_size] = list(calls(model)[0].embeds.shape)
    if shapes[1] != shapes[4]:
        raise WrongError(f"for {latents} latents the body sees {shapes[4]} in bags of 4 and {shapes[1]} at bag size 1")
    return f"all parameters have gradients in both phases, and the body sees {shapes[1]} in both"


class _VocabularyWide(TorchDispatchMode):
    """Counts the numbers that operations write into tensors of at least N x V, and the products among them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.numbers, self.products = size, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(output, Tensor) or output.numel() < self.size or function.is_view:
                continue
            self.numbers += output.numel()
            self.products += function.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm")
        return result


def _next_token(model: Probe, window: Tensor) -> float:
    logits = model(input_ids=window[:, :-1]).logits
    return float(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()).detach())
