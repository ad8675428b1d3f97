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

from superpose.conform.implementation import Implementation, WrongError, accepts
from superpose.conform.probe import (
    NOISE,
    VOCAB_SIZE,
    Probe,
    call_of,
    folded,
    observe,
    scalar,
    step_of,
    value_of,
    window_of,
)

# Vocabulary-wide work may be a little more at a larger bag (a gather, a sort), not in proportion to it.
_GROWTH = 1.5


def check_work(implementation: Implementation) -> str:
    """Error 3: one head product and one softmax serve all targets of a bag."""
    latents, rows, vocab_size, width = 4, 2, 1024, 8
    size = rows * latents * vocab_size
    found = {}
    for bag_size in (2, 8):
        window = window_of(rows, latents, bag_size)
        if implementation.step is None:
            _, targets = folded(implementation, window, bag_size)
            logits = torch.zeros(*targets.shape[:2], vocab_size, dtype=torch.float64, requires_grad=True)
        counter = _VocabularyWide(size)
        with counter, torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
            if implementation.step is not None:
                loss = scalar(implementation.step(Probe(vocab_size, width), window, bag_size), "step")
            else:  # without the work of a model that is not theirs
                loss = scalar(implementation.need("loss")(logits, targets), "loss")
            loss.backward()
        found[bag_size] = (counter.numbers / size, sum(counter.kept.values()) / size, counter.products)
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
    step = implementation.need("step")
    bag_size = 3
    window = window_of(2, 3, bag_size)
    plain = observe(implementation, window, bag_size)
    scaled = Probe(VOCAB_SIZE, scale=3.0)
    step(scaled, window, bag_size)
    embeds = call_of(scaled).embeds.detach()
    if not torch.allclose(embeds, 3 * plain.saw, atol=NOISE):
        raise WrongError(
            f"an embedding that multiplies its vectors by 3, as Gemma's does by sqrt(D), was looked up without it: "
            f"the largest share is {float(embeds.abs().max()):.4f}, not {float(3 * plain.saw.max()):.4f}"
        )
    for what, model in (("bias", Probe(VOCAB_SIZE, bias=True)), ("soft-cap", Probe(VOCAB_SIZE, softcap=0.5))):
        value = value_of(step(model, window, bag_size))
        logits = model.head(call_of(model).hidden.detach()).detach()
        expected = float((plain.counts * (logits.logsumexp(-1) - (plain.asked * logits).sum(-1))).sum())
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
    seen = call_of(model)
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
    logits = Probe(VOCAB_SIZE)(input_ids=window[:, :-1]).logits
    expected = float(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()).detach())
    value = value_of(step_of(implementation)(Probe(VOCAB_SIZE), window, 1))
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
