"""All twelve checks in turn."""

from __future__ import annotations

from collections.abc import Callable

from superpose.conform import body, run, targets
from superpose.conform.finding import Finding, NotCheckedError, WrongError
from superpose.conform.implementation import Implementation

CHECKS: dict[int, Callable[[Implementation], str]] = {
    1: targets.check_shift,
    2: targets.check_first_loss,
    3: body.check_work,
    4: targets.check_normalisation,
    5: targets.check_padding,
    6: body.check_sides,
    7: body.check_evaluation,
    8: run.check_decision,
    9: run.check_reading,
    10: run.check_speed,
    11: body.check_phases,
    12: run.check_counts,
}


def conform(implementation: Implementation) -> list[Finding]:
    """Which of the twelve errors an implementation makes, with evidence: a finding for each, in order."""
    return [_finding(number, check, implementation) for number, check in CHECKS.items()]


def _finding(number: int, check: Callable[[Implementation], str], implementation: Implementation) -> Finding:
    try:
        return Finding(number, "right", check(implementation))
    except WrongError as wrong:
        return Finding(number, "wrong", str(wrong))
    except NotCheckedError as missing:
        return Finding(number, "not checked", str(missing))
    except Exception as error:  # anything may happen in code that is not ours
        lines = str(error).strip().splitlines()
        return Finding(number, "raised", f"{type(error).__name__}: {lines[0] if lines else 'no message'}")
