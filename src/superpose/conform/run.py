"""Checks of a whole run: who decides the phase, what is read when, and what is counted. Errors 8, 9, 10 and 12."""

import itertools
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from superpose.conform.bench import Bench
from superpose.conform.reading import NotCheckedError, WrongError
from superpose.conform.subject import Subject
from superpose.errors import first_line

_ROWS, _LATENTS, _STEPS, _BAG_SIZE, _RATIO = 2, 4, 20, 3, 0.4
_BOUNDARY = 8
# What the run reads, and a little more.
_TOKENS = _ROWS * _LATENTS * (_BOUNDARY * _BAG_SIZE + _STEPS - _BOUNDARY) + 2 * _ROWS * _BAG_SIZE * (_LATENTS + 1)
_TIMED_STEPS = 20
# Reading that takes a larger share of a step than this holds it up, unless something reads ahead.
_SHARE_OF_STEP = 0.03


def check_decision(bench: Bench) -> str:
    """Error 8: the bag size is a pure function of the step, and its boundary a share of the final steps."""
    subject, refused = bench.subject, ""
    at = subject.bag_size_at
    assert at is not None
    for total_steps, bag_size, ratio in ((20, 3, 0.4), (40, 3, 0.4), (1000, 6, 0.3), (10, 4, 0.0), (7, 4, 0.5)):
        run = f"{total_steps} steps, s {bag_size}, r {ratio}"
        try:
            forward = [int(at(step, total_steps, bag_size, ratio)) for step in range(total_steps)]
            backward = [int(at(step, total_steps, bag_size, ratio)) for step in reversed(range(total_steps))]
        except Exception as error:
            if ratio == 0:  # a run without superposition may need no schedule
                refused = f"; it refuses r 0 ({type(error).__name__})"
                continue
            raise NotCheckedError(f"bag_size_at raised {type(error).__name__} for {run}: {first_line(error)}") from None
        for step, (first, second) in enumerate(zip(forward, reversed(backward), strict=True)):
            if first != second:
                raise WrongError(f"{run}: step {step} has bags of {first}, and asked in another order of {second}")
        after = max((step for step, size in enumerate(forward) if size != 1), default=-1) + 1
        two = forward == [bag_size] * after + [1] * (total_steps - after)
        if subject.schedule == "two phases" and not two:
            raise WrongError(
                f"{run}: bag sizes {sorted(set(forward))} in no order of superposition, then recovery; if sizes change "
                f"on purpose, declare `schedule = 'stages'`"
            )
        # Where sizes are drawn, the last ones may be 1.
        least = ratio * total_steps * (1 if subject.schedule == "two phases" else 0.5)
        if not least - 1 < after < ratio * total_steps + 1:
            raise WrongError(f"{run}: recovery starts at step {after}; expected {ratio * total_steps:g}")
    if subject.batches is None:
        return f"the bag size is a pure function of the step, and its boundary a share of all steps{refused}"
    for step, window in enumerate(_windows(subject, 0)):
        read, said = _bag_size(subject, window), int(at(step, _STEPS, _BAG_SIZE, _RATIO))
        if read != said:
            raise WrongError(f"step {step} reads windows for bags of {read}, and bag_size_at says {said}")
    return f"the bag size is a pure function of the step; what is read agrees with it at every step{refused}"


def check_reading(bench: Bench) -> str:
    """Error 9: no token is input twice before all were, and a run that is resumed reads what it would have read."""
    subject = bench.subject
    windows = list(itertools.islice(_windows(subject, 0), _STEPS + 1))
    sizes = [_bag_size(subject, window) for window in windows]
    if len(windows) != _STEPS:
        raise WrongError(f"a run of {_STEPS} steps read {len(windows)} windows")
    step_of: dict[int, int] = {}
    for step, (window, size) in enumerate(zip(windows, sizes, strict=True)):
        length = window.shape[1] - size
        for token in window[:, :length].flatten().tolist() if subject.reading == "in order" else ():
            if token in step_of:
                before = step_of[token]
                raise WrongError(
                    f"token {token} of the text is input at step {before} (bags of {sizes[before]}) and again at step "
                    f"{step} (bags of {size}), with {_TOKENS - len(step_of)} tokens not read yet; windows drawn at "
                    f"random on purpose are declared by `reading = 'random'`"
                )
            step_of[token] = step
        gaps = (window[:, 1:] - window[:, :-1]) % _TOKENS
        if (gaps != 1).any():
            row, place = (gaps != 1).nonzero()[0].tolist()
            token, after = window[row, place : place + 2].tolist()
            raise WrongError(f"step {step}, row {row}: after token {token} comes {after}")
    for start in (3, _BOUNDARY, _BOUNDARY + 5):
        for step, resumed in enumerate(itertools.islice(_windows(subject, start), _STEPS), start=start):
            if step >= _STEPS or not torch.equal(resumed, windows[step]):
                raise WrongError(f"resumed at step {start}, step {step} reads other tokens than a run without a stop")
    once = f"{len(step_of)} tokens were input once each through the switch" if step_of else "rows are parts of the text"
    return f"{once}; resumed in both phases and at it, it reads the same"


def check_speed(bench: Bench) -> str:
    """Error 10: a superposition step's window is read in a small share of the step."""
    subject = bench.subject
    if subject.batches is None or subject.step_seconds is None:
        raise NotCheckedError("it needs batches beside step_seconds")
    rows, latents, seconds = subject.step_seconds
    taken = {}
    for bag_size in (1, 8):
        text = torch.arange(rows * latents * bag_size * (_TIMED_STEPS + 2))
        windows = iter(subject.batches(text, rows, latents, _TIMED_STEPS, bag_size, float(bag_size > 1), 0))
        next(windows)  # what is set up once is not the step's
        started = time.perf_counter()
        count = sum(1 for _ in itertools.islice(windows, _TIMED_STEPS - 1))
        taken[bag_size] = (time.perf_counter() - started) / max(1, count)
    evidence = (
        f"a step's window of {rows} x {latents} latents is read in {taken[8] * 1e3:.2f} ms at s 8 and "
        f"{taken[1] * 1e3:.2f} ms at s 1, {taken[8] / seconds:.1%} of a step"
    )
    if taken[8] > _SHARE_OF_STEP * seconds:
        raise WrongError(f"{evidence}; expected at most {_SHARE_OF_STEP:.0%}, unless something reads ahead")
    return evidence


def check_counts(bench: Bench) -> str:
    """Error 12: bags change what is read, not what is computed."""
    counts, mode = bench.subject.counts, bench.mode
    assert counts is not None
    steps, bag_size, ratio, latents = 1000, 6, 0.3, 512
    counted, ordinary = counts(steps, bag_size, ratio, latents), counts(steps, 1, 0.0, latents)
    read = 1 if mode == "output" else 1 + ratio * (bag_size - 1)
    expected = {
        "raw_tokens": steps * latents * read,
        "latents": steps * latents,
        "flops": ordinary.get("flops"),
    }
    known = [name for name in expected if name in counted]
    if not known:
        raise NotCheckedError("counts returned none of raw_tokens, latents and flops")
    for name in known:
        if not math.isclose(counted[name], expected[name] or math.nan, rel_tol=1e-6):
            raise WrongError(
                f"{name} of {steps} steps of {latents} latents, s {bag_size}, r {ratio}: {counted[name]:.6g}; "
                f"expected {expected[name]:.6g}" + (", as without bags" if name == "flops" else "")
            )
    return f"{', '.join(known)} are counted apart"


def _windows(subject: Subject, start: int) -> Iterator[Tensor]:
    assert subject.batches is not None
    return iter(subject.batches(torch.arange(_TOKENS), _ROWS, _LATENTS, _STEPS, _BAG_SIZE, _RATIO, start))


def _bag_size(subject: Subject, window: Tensor) -> int:
    """Of a window of [rows, S x (L + 1)]; where stages have sizes of their own, whatever it can be."""
    length, free = window.shape[-1], subject.schedule == "stages"
    if subject.mode == "output":
        size = length - _LATENTS
    else:
        size = length // (_LATENTS + 1) if length % (_LATENTS + 1) == 0 else 0
    if window.dim() != 2 or len(window) != _ROWS or not (size >= 1 if free else size in (1, _BAG_SIZE)):
        raise NotCheckedError(
            f"batches gave a window {list(window.shape)}; expected [{_ROWS}, bag_size x {_LATENTS + 1}] with "
            f"bag size 1 or {_BAG_SIZE}"
        )
    return size
