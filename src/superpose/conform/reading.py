"""What a step made of a window: for each row of its logits, what it depends on, what it was asked for, and how much.

At logits z of which a softmax p was made, whatever computes the loss,

    d loss / d z = c' p - w

with w[v] the weight with which token v was asked for. A token that is in no window has w 0, which gives c'. So w comes
out of the gradient, z-loss or not; their difference, c' - sum w, is what a z-loss adds. Which places of a window a
row of logits depends on is found by changing them, one after another.

Shapes: B rows, L latents, S bag, T tokens of a window, R rows of logits, V vocabulary, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from superpose.conform.watch import Lookup, Watch

ROWS, LATENTS = 2, 3
TOLERANCES = {torch.float64: 1e-7, torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Of shares and losses, by the least precise dtype that a step computes in."""
MIXED = -2
Replace = Callable[[Lookup, int, Tensor], Tensor]


class WrongError(Exception):
    """The error a check looks for is made; the message is the evidence."""


class NotCheckedError(Exception):
    """A check could not be carried out; the message says why."""


class TooNarrowError(NotCheckedError):
    """Fewer numbers in a vector than positions, whose gradients are to be told apart."""


@dataclass(frozen=True)
class Reading:
    """A step's work on a window, in float64.

    Attributes:
        value: the loss.
        logits: [R, V], after bias and cap.
        asked: [R, V], weight with which a row is asked for a token; all of them sum to 1 for a mean.
        extra: [R], what the gradient's sum over the vocabulary is beside that of a cross-entropy: 0, or a z-loss's.
        uneven: largest difference of the gradient at tokens that nobody asks for from a softmax's, as a share of it.
        hidden: [R, D], what went into the head; empty where it is not known row by row.
        row, last: [R], which row of the window a row of logits depends on, and on which place last; -1 for none,
            `MIXED` for several rows.
        seen: [R, T], on which places.
        watch: what was seen on the way.
        unused: parameters without a gradient, by name.
        finite: whether all gradients are.
        kept: V-wide numbers that are kept for the backward pass.
        window: [B, T].
        tolerance: of shares and losses.
        smoothing: of labels, declared or found.
    """

    value: float
    logits: Tensor
    asked: Tensor
    extra: Tensor
    uneven: float
    hidden: Tensor
    row: Tensor
    last: Tensor
    seen: Tensor
    watch: Watch
    unused: set[str]
    finite: bool
    kept: int
    window: Tensor
    tolerance: float
    smoothing: float

    @property
    def near(self) -> float:
        """How far two losses may be apart."""
        return self.tolerance * max(1.0, abs(self.value))

    @property
    def cross_entropies(self) -> Tensor:
        """[R], sum over a row's targets of weight x cross-entropy, smoothed as is declared."""
        logs, spread = self.logits.log_softmax(-1), self.smoothing
        sharp = torch.where(self.asked == 0, 0, self.asked * logs).sum(-1)
        return -((1 - spread) * sharp + spread * self.asked.sum(-1) * logs.mean(-1)) if spread else -sharp


def asked_for(
    logits: Tensor, gradient: Tensor, window: Tensor, tolerance: float, smoothing: float
) -> tuple[Tensor, Tensor, float, float]:
    """Weights [R, V] with which tokens are asked for, what a z-loss adds [R], how uneven the rest is, and smoothing.

    The gradient at tokens that nobody asks for is c' (p - smoothing / V); if it is no multiple of p, it may be of this.
    """
    softmax, size = logits.softmax(-1), logits.shape[-1]
    never = torch.ones(size, dtype=torch.bool)
    never[window[(window >= 0) & (window < size)]] = False
    never[0] = False  # padding, often
    probabilities = softmax - smoothing / size
    total = gradient[:, never].sum(-1) / probabilities[:, never].sum(-1)
    asked = (total.unsqueeze(-1) * probabilities - gradient) / (1 - smoothing)
    scale = float(total.abs().max())
    uneven = float(asked[:, never].abs().max() / (total.unsqueeze(-1) * softmax).abs().max()) if scale else 0.0
    if uneven > uneven_from(tolerance) and not smoothing:
        row = int(gradient.abs().sum(-1).argmax())
        terms = torch.stack([softmax[row, never], torch.full_like(softmax[row, never], -1 / size)], -1)
        whole, spread = torch.linalg.lstsq(terms, gradient[row, never].unsqueeze(-1)).solution.flatten().tolist()
        if whole > 0 and 0 < spread / whole < 0.9:
            found = asked_for(logits, gradient, window, tolerance, spread / whole)
            if found[2] <= uneven_from(tolerance):
                return found
    if asked.min() < -10 * tolerance * asked.abs().max():
        uneven = 1.0  # something is to become less likely that is not asked for
    asked = torch.where(asked.abs() > tolerance * max(scale, 1e-300), asked, 0)
    return asked, total - asked.sum(-1), uneven, smoothing


def uneven_from(tolerance: float) -> float:
    """From here on a gradient is not a softmax's."""
    return max(5 * tolerance, 1e-4)


def largest(values: Tensor) -> float:
    """Of the numbers that are not a mask's."""
    return float(values[values.abs() < 1e6].abs().max())
