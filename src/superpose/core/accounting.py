"""Counting what a run costs, on four axes that must not be mixed up.

==========  =====================================================================================
raw tokens  tokens of the corpus that went in, s to a bag
latents     positions the model computed: what a step's time and FLOPs are made of
FLOPs       floating-point operations of forward and backward passes
seconds     measured, never computed
==========  =====================================================================================

A superposition step and a recovery step have equal latents and equal FLOPs; it is raw tokens that differ
(arXiv 2605.06546, section 3.3). Where superposition has more rows instead of longer ones, its rows are shorter in
latents, and attention costs less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from superpose.core.schedule import Schedule
from superpose.core.stage import Stage


@dataclass(frozen=True)
class Cost:
    """Cumulative cost of the first steps of a run."""

    steps: int
    latents: int
    raw_tokens: int
    flops: int


def flops_per_latent(matmul_parameters: int, num_layers: int, attention_width: int, latents: int) -> int:
    """Forward and backward FLOPs of one latent position (PaLM, arXiv 2204.02311, appendix B).

    Each weight of a matrix product takes 2 FLOPs forward and 4 backward; attention scores and their use take
    12 x layers x width x latents, counted without the causal half, as most published figures are.

    Args:
        matmul_parameters: weights a position is multiplied with, the head included, look-up tables not; of a
            mixture of experts only the active ones.
        num_layers: attention layers.
        attention_width: heads x head dimension.
        latents: L, positions of a row.
    """
    return 6 * matmul_parameters + 12 * num_layers * attention_width * latents


def extra_heads_flops(count: int, width: int, vocab_size: int) -> int:
    """Forward and backward FLOPs of one latent in the extra heads (`superpose.core.extra_heads`) and their losses.

    Each multiplies by its own matrix [width, width], and by the model's unembedding [vocab_size, width] once more.
    """
    return 6 * count * (width * width + vocab_size * width)


def cost(
    schedule: Schedule,
    latents_per_step: int,
    flops_of_latent: Callable[[Stage], int],
    until: int | None = None,
) -> Cost:
    """What steps 0 to `until - 1` (by default all) cost.

    Args:
        latents_per_step: rows x latents of a row, the same in every stage.
        flops_of_latent: of each stage; they differ only where rows are shorter, and attention with them. A stage of
            several bag sizes is asked for as one of each.
    """
    until = schedule.total_steps if until is None else until
    flops = sum(steps * latents_per_step * flops_of_latent(stage) for stage, steps in schedule.counts(until))
    return Cost(until, until * latents_per_step, schedule.raw_tokens(latents_per_step, until), flops)
