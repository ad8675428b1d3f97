"""Is somebody's training step right? Judged as it is, with its own model, check by check, with evidence.

from superpose.conform import Subject, conform, passes

verdicts = conform(Subject(step=my_step, model=my_model))
for verdict in verdicts:
    print(verdict.error, verdict.check, verdict.state, verdict.reason)
assert passes(verdicts)
"""

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from superpose.conform import amount, body, normalisation, padding, phases, positions, run
from superpose.conform.bench import Bench
from superpose.conform.prepare import prepared
from superpose.conform.reading import NotCheckedError, WrongError
from superpose.conform.subject import Subject, load
from superpose.errors import UserError, first_line

__all__ = ["CHECKS", "Subject", "Verdict", "conform", "load", "passes"]

State = Literal["right", "wrong", "not checked"]


@dataclass(frozen=True)
class Verdict:
    """A check's result.

    Attributes:
        error: number of the error it looks for, of the twelve of docs/method.md.
        check: its name; several checks may look for one error.
        state: "right": shown to be so; "wrong": shown not to be; "not checked": neither.
        reason: indices, values and gradients, or why it was not checked.
        promised: whether what the subject defines and declares asks for this check.
        cause: what explains this and other verdicts, in the same words in each; None for nothing.
    """

    error: int
    check: str
    state: State
    reason: str
    promised: bool
    cause: str | None = None


def _nothing(subject: Subject) -> None:
    """What is missing of a subject for checks that every subject can be put to."""


def _needs(*roles: str) -> Callable[[Subject], str | None]:
    """None if one of the roles is there, or an argument of that name is taken; else what to give."""

    def missing(subject: Subject) -> str | None:
        there = any(getattr(subject, role, None) is not None or subject.takes(role) for role in roles)
        return None if there else f"it needs {' or '.join(roles)}"

    return missing


def _needs_a_model(subject: Subject) -> str | None:
    given = subject.step is not None or subject.embed is not None
    return None if given else "fold and loss form no vectors; give embed, or step"


def _needs_ignored(subject: Subject) -> str | None:
    if subject.padding_side == "left" and not subject.takes("labels"):
        return "rows padded on the left hold all their targets"
    return _needs("labels", "attention_mask", "ignore_index")(subject)


@dataclass(frozen=True)
class Check:
    """What is checked: the error, its name, what carries it out and asks for it, and whether also without bags."""

    error: int
    name: str
    carry_out: Callable[[Bench], str]
    missing: Callable[[Subject], str | None] = _nothing
    ordinary: bool = False


CHECKS = (
    Check(1, "shift", positions.check_shift, ordinary=True),
    Check(2, "first loss", amount.check_first_loss, ordinary=True),
    Check(3, "work", amount.check_work),
    Check(4, "repeats", normalisation.check_repeats),
    Check(4, "ignored", normalisation.check_ignored, _needs_ignored, ordinary=True),
    Check(4, "parts", normalisation.check_parts, _needs("normalizer"), ordinary=True),
    Check(4, "accumulation", normalisation.check_accumulation, _needs("accumulate"), ordinary=True),
    Check(5, "mean", body.check_mean, _needs_a_model),
    Check(5, "padding", padding.check_padding, _needs("attention_mask", "labels", "ignore_index"), ordinary=True),
    Check(5, "documents", padding.check_documents, _needs("end_of_text", "document_ids"), ordinary=True),
    Check(6, "logits", body.check_logits, _needs_a_model),
    Check(6, "positions", body.check_positions, _needs("position_ids")),
    Check(7, "recovery", phases.check_recovery),
    Check(7, "evaluation", phases.check_evaluation, _needs("evaluate")),
    Check(8, "schedule", run.check_decision, _needs("bag_size_at")),
    Check(9, "reading", run.check_reading, _needs("batches")),
    Check(10, "speed", run.check_speed, _needs("step_seconds")),
    Check(11, "parameters", phases.check_phases, _needs("step")),
    Check(12, "counts", run.check_counts, _needs("counts")),
)
"""All checks, by the error they look for. Each raises `WrongError` with its evidence, or `NotCheckedError` with the
reason, or returns what it found right."""


def conform(subject: Subject, ordinary: bool = False) -> list[Verdict]:
    """Judges a subject: a verdict for each check, in order.

    Args:
        subject: what somebody wrote, and declares.
        ordinary: judge training without bags: `step(model, window)`.

    Raises:
        UserError: nothing can be judged, as the first plain call of the step fails.
    """
    if ordinary and subject.step is None:
        raise UserError("training without bags is judged by its step; give step(model, window)")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors; sharing them out takes longer than working on them
    try:
        with torch.random.fork_rng(devices=[]):
            bench = prepared(subject, ordinary)
            if not subject.mode and not ordinary:
                positions.find_mode(bench)
            verdicts = [_judge(check, bench) for check in CHECKS if check.ordinary or not ordinary]
    finally:
        torch.set_num_threads(threads)
    return _with_causes(verdicts, bench)


def passes(verdicts: Sequence[Verdict]) -> bool:
    """Whether all that the subject promises was shown to be right, and nothing to be wrong."""
    return all(one.state == "right" or (one.state == "not checked" and not one.promised) for one in verdicts)


def _judge(check: Check, bench: Bench) -> Verdict:
    missing = check.missing(bench.subject)
    if missing:
        return Verdict(check.error, check.name, "not checked", f"because {missing}", False)
    state: State = "right"
    try:
        reason = check.carry_out(bench)
    except WrongError as wrong:
        state, reason = "wrong", str(wrong)
    except NotCheckedError as error:
        state, reason = "not checked", f"because {error}"
    except Exception as error:  # anything may happen in code that is not ours
        at = traceback.extract_tb(error.__traceback__)[-1]
        state = "not checked"
        reason = f"because of {type(error).__name__}: {first_line(error)} ({Path(at.filename).name}, line {at.lineno})"
    return Verdict(check.error, check.name, state, reason, True)


def _with_causes(verdicts: list[Verdict], bench: Bench) -> list[Verdict]:
    """Names what explains several verdicts: the same reason, or an error that another check refers to."""
    often = Counter(one.reason for one in verdicts if one.promised and one.state != "right")
    wrong = {one.error: one.reason for one in reversed(verdicts) if one.state == "wrong"}
    named = []
    for one in verdicts:
        cause = one.reason if often[one.reason] > 1 else None
        for error, reason in wrong.items():
            if one.reason.endswith(f"see error {error}") or (cause is None and one.reason == reason):
                cause = bench.causes.get(error, reason)
        named.append(replace(one, cause=cause if one.state != "right" else None))
    return [replace(one, cause=one.cause if _explains(one.cause, named, bench) else None) for one in named]


def _explains(cause: str | None, verdicts: list[Verdict], bench: Bench) -> bool:
    return cause in bench.causes.values() or sum(one.cause == cause for one in verdicts) > 1
