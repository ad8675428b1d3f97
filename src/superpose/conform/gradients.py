"""The gradient at the logits of a loss, also where an operator hides them.

Shapes: R rows of logits, V vocabulary, D width.
"""

import torch
from torch import Tensor

from superpose.conform.reading import NotCheckedError, TooNarrowError
from superpose.conform.watch import Node, Watch


def gradients_at(nodes: list[Node], watch: Watch, cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [R, V], the gradient at them, and what went into the head [R, D], all in float64.

    Args:
        nodes: the logits that softmaxes were made of, after the backward pass.
        watch: what was seen of the step.
        cap: of logits that an operator hides; None for none.

    Raises:
        NotCheckedError: logits are hidden, and their gradient doesn't follow from the head's.
    """
    logits, gradients, hidden = [], [], []
    for node in nodes:
        assert node.values is not None
        values, made = flat(node.values), node.products()
        inputs = torch.cat([flat(one.inputs) for one in made])
        if made[0].fused and node.tensor is made[0].values:  # an operator's, which shows no logits
            values = values if cap is None else cap * torch.tanh(values / cap)
        gradient = node.tensor.grad
        logits.append(values.clamp(min=-1e9))
        gradients.append(None if gradient is None else gradient.reshape(values.shape).double())
        hidden.append(inputs if len(inputs) == len(values) else inputs[:0])
    known = [gradient for gradient in gradients if gradient is not None]
    if len(known) < len(gradients):
        solved = _solved(nodes, watch, torch.cat(logits), cap).split([len(part) for part in logits])
        known = [ours if theirs is None else theirs for theirs, ours in zip(gradients, solved, strict=True)]
    return torch.cat(logits), torch.cat(known), torch.cat(hidden) if all(map(len, hidden)) else hidden[0][:0]


def flat(values: Tensor) -> Tensor:
    """[..., D] to [R, D], in float64."""
    return values.reshape(-1, values.shape[-1]).double()


def _solved(nodes: list[Node], watch: Watch, logits: Tensor, cap: float | None) -> Tensor:
    """The gradient at fused logits [R, V], from the head's: d loss / d weight = gradient^T hidden."""
    made = [product for node in nodes for product in node.products()]
    weight = made[0].weight
    if any(one.weight is not weight for one in made) or weight.grad is None:
        raise NotCheckedError("the head's weight has no gradient, or several heads are hidden in operators")
    whole = weight.grad.double().clone()
    for lookup in watch.lookups:  # a tied embedding's part of it
        if lookup.weight is weight and lookup.output.grad is not None:
            ids = lookup.ids.reshape(-1)
            whole.index_add_(0, ids, -lookup.output.grad.reshape(len(ids), -1).double())
    inputs, raw = torch.cat([flat(one.inputs) for one in made]), torch.cat([flat(one.values) for one in made])
    solved: Tensor = (whole @ torch.linalg.pinv(inputs, rtol=1e-6)).T
    if len(inputs) != len(logits) or len(inputs.unique(dim=0)) > inputs.shape[1]:
        raise TooNarrowError(
            f"the head's logits are hidden in an operator, and a width of {inputs.shape[1]} is too little to tell "
            f"{len(inputs)} positions' gradients apart; take a wider model"
        )
    if cap is not None and not torch.allclose(raw, logits):
        solved = solved / (1 - (logits / cap).square()).clamp(min=1e-6)
    return solved
