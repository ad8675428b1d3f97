"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["right", "wrong", "raised", "not checked"]

TITLES = {
    1: "targets leak into the input, or a token is skipped",
    2: "first loss is not log V",
    3: "work or memory grows with the bag",
    4: "normalisation under ignored and repeated targets",
    5: "padding enters the mean or the loss",
    6: "side inputs, scales, biases or caps forgotten",
    7: "evaluation in bags",
    8: "several places decide the phase",
    9: "text read again, at the switch or on resume",
    10: "reading cannot keep up",
    11: "parameters or shapes differ between the phases",
    12: "raw tokens, latents and FLOPs mixed up",
}
"""The twelve errors of docs/method.md, by number."""


@dataclass(frozen=True)
class Finding:
    """A check's result.

    Attributes:
        error: number of the error it looks for, see `TITLES`.
        verdict: "right": the error is not made as far as was checked; "wrong": it is made; "raised": the
            implementation raised an exception; "not checked": what the check needs was not given.
        evidence: indices, values and gradients.
    """

    error: int
    verdict: Verdict
    evidence: str

    @property
    def title(self) -> str:
        return TITLES[self.error]


class WrongError(Exception):
    """The error a check looks for is made; the message is the evidence."""


class NotCheckedError(Exception):
    """What the check needs was not given."""
