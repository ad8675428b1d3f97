"""A suite for implementations of token superposition, whoever wrote them: which of the twelve errors do they make?

Of a step of your own:

    from superpose.conform import Implementation, conform

    for finding in conform(Implementation(step=my_step)):
        print(finding.error, finding.verdict, finding.evidence)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from superpose.conform import run, step
from superpose.conform.implementation import Implementation, NotCheckedError, WrongError

__all__ = ["ERRORS", "Finding", "Implementation", "conform"]

Verdict = Literal["right", "wrong", "raised", "not checked"]
Check = Callable[[Implementation], str]

ERRORS: dict[int, tuple[str, Check]] = {
    1: ("targets leak into the input, or a token is skipped", step.check_shift),
    2: ("first loss is not log V", step.check_first_loss),
    3: ("work or memory grows with the bag", step.check_work),
    4: ("normalisation under ignored and repeated targets", step.check_normalisation),
    5: ("padding enters the mean or the loss", step.check_padding),
    6: ("side inputs, scales, biases or caps forgotten", step.check_sides),
    7: ("evaluation in bags", step.check_evaluation),
    8: ("several places decide the phase", run.check_decision),
    9: ("text read again, at the switch or on resume", run.check_reading),
    10: ("reading cannot keep up", run.check_speed),
    11: ("parameters or shapes differ between the phases", step.check_phases),
    12: ("raw tokens, latents and FLOPs mixed up", run.check_counts),
}
"""The twelve errors of docs/method.md by number: title, and the check, which raises `WrongError` with its evidence,
raises `NotCheckedError`, or returns a sentence on what it found right."""


@dataclass(frozen=True)
class Finding:
    """A check's result.

    Attributes:
        error: number of the error it looks for, see `ERRORS`.
        verdict: "right": the error is not made as far as was checked; "wrong": it is made; "raised": the
            implementation raised an exception; "not checked": what the check needs was not given.
        evidence: indices, values and gradients.
        title: of the error.
    """

    error: int
    verdict: Verdict
    evidence: str
    title: str


def conform(implementation: Implementation) -> list[Finding]:
    """Which of the twelve errors an implementation makes, with evidence: a finding for each, in order."""
    return [Finding(number, *_judge(check, implementation), title) for number, (title, check) in ERRORS.items()]


def _judge(check: Check, implementation: Implementation) -> tuple[Verdict, str]:
    try:
        return "right", check(implementation)
    except WrongError as wrong:
        return "wrong", str(wrong)
    except NotCheckedError as missing:
        return "not checked", str(missing)
    except Exception as error:  # anything may happen in code that is not ours
        lines = str(error).strip().splitlines()
        return "raised", f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
