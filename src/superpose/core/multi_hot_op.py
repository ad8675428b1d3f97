"""The operator behind `linear_multi_hot_cross_entropy`, and its backward pass.

torch.compile sees one operator, `superpose::linear_multi_hot`, with a shape function and a backward pass: the graph
stays whole and the operator is not traced into. What it does is `superpose.core.sweep`.

Shapes: N positions (B rows x L latents), S targets of a position (a bag), D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from superpose.core.sweep import Settings, room_for_gradients, sweep


@torch.library.custom_op("superpose::linear_multi_hot", mutates_args=())
def linear_multi_hot(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    form_gradients: bool,
    wanted: Sequence[bool],
    numbers: Sequence[float],
    sizes: Sequence[int],
    group: str,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of the positions' losses [], the losses [N], and, if they are to be formed, the gradients of the sum.

    Args:
        targets: [N, S], token 0 in place of ignored ones.
        shares: [N, S] of each target in its bag, 0 for ignored ones; their dtype is that of all sums.
        form_gradients: of hidden, weight and bias, those that are `wanted`; the others come back empty.
        wanted, numbers, sizes, group, product_dtype: `Settings.packed`.
    """
    settings = Settings.of(wanted if form_gradients else [False] * 3, numbers, sizes, group, product_dtype)
    losses, gradients = sweep(hidden, weight, bias, targets, shares, None, settings)
    return losses.sum(), losses, *gradients


@torch.library.custom_op("superpose::linear_multi_hot_gradients", mutates_args=())
def linear_multi_hot_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    upstream: Tensor,
    wanted: Sequence[bool],
    numbers: Sequence[float],
    sizes: Sequence[int],
    group: str,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, for an upstream gradient [N] that positions meet."""
    settings = Settings.of(wanted, numbers, sizes, group, product_dtype)
    return sweep(hidden, weight, bias, targets, shares, upstream, settings)[1]


@linear_multi_hot.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    form_gradients: bool,
    wanted: Sequence[bool],
    *packed: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    settings = Settings.of(wanted if form_gradients else [False] * 3, *packed)
    gradients = room_for_gradients(hidden, weight, bias, shares, settings)
    return shares.new_empty(()), shares.new_empty(hidden.shape[0]), *gradients


@linear_multi_hot_gradients.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    upstream: Tensor,
    *packed: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return room_for_gradients(hidden, weight, bias, shares, Settings.of(*packed))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, shares, formed, *packed = inputs
    _, _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.formed, ctx.packed = formed, packed
    ctx.gradients = [gradients] if formed else []
    ctx.save_for_backward(hidden, weight, bias, targets, shares)


def _backward(ctx: Any, grad_total: Tensor | None, grad_losses: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.packed[0]
    no_gradients = (None,) * (3 + len(ctx.packed))  # of targets, shares, form_gradients and the settings
    upstream = grad_total if ctx.formed else grad_losses
    if upstream is None:
        return None, None, None, *no_gradients
    if not ctx.formed:
        gradients = linear_multi_hot_gradients(*ctx.saved_tensors, upstream, *ctx.packed)
    else:
        # Gradients are there for one backward pass, which gives them away; another over a graph that was kept forms
        # them anew. So there is no second copy of the largest of them.
        formed = ctx.gradients.pop() if ctx.gradients else linear_multi_hot(*ctx.saved_tensors, True, *ctx.packed)[2:]
        gradients = _scaled(formed, upstream)
    operands = ctx.saved_tensors[:3]
    return (
        *(g.to(of.dtype) if want else None for g, of, want in zip(gradients, operands, wanted, strict=True)),
        *no_gradients,
    )


def _scaled(gradients: Sequence[Tensor], factor: Tensor) -> Sequence[Tensor]:
    """The gradients times a factor [], in place."""
    if type(factor) is not Tensor:  # traced: the compiler finds room, and knows no numbers
        return [gradient * factor for gradient in gradients]
    if factor.is_cpu and factor == 1:
        return gradients
    return [gradient.mul_(factor) for gradient in gradients]


linear_multi_hot.register_autograd(torch.autograd.function.once_differentiable(_backward), setup_context=_keep)
