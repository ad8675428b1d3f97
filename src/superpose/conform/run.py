"""Checks of a whole run: who decides the phase, what is read when, and what is counted. Errors 8, 9, 10 and 12."""

import itertools
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from superpose.conform.implementation import Implementation, NotCheckedError, WrongError

_ROWS, _LATENTS, _STEPS, _BAG_SIZE, _RATIO = 2, 4, 20, 3, 0.4
_BOUNDARY = 8
# What the run reads, and a little more.
_TOKENS = _ROWS * _LATENTS * (_BOUNDARY * _BAG_SIZE + _STEPS - _BOUNDARY) + 2 * _ROWS * _BAG_SIZE * (_LATENTS + 1)
_TIMED_STEPS = 20
# Reading that takes a larger share of a step than this holds it up, unless something reads ahead.
_SHARE_OF_STEP = 0.03


def check_decision(implementation: Implementation) -> str:
    """Error 8: the bag size is a pure function of the step, and its boundary a share of the final steps."""
    at = implementation.need("bag_size_at")
    for total_steps, bag_size, ratio in ((20, 3, 0.4), (40, 3, 0.4), (1000, 6, 0.3), (10, 4, 0.0), (7, 4, 0.5)):
        forward = [int(at(step, total_steps, bag_size, ratio)) for step in range(total_steps)]
        backward = [int(at(step, total_steps, bag_size, ratio)) for step in reversed(range(total_steps))]
        run = f"{total_steps} steps, s {bag_size}, r {ratio}"
        for step, (first, second) in enumerate(zip(forward, reversed(backward), strict=True)):
            if first != second:
                raise WrongError(f"{run}: step {step} has bags of {first}, and asked in another order of {second}")
        boundary = next((step for step, size in enumerate(forward) if size == 1), total_steps)
        if forward != [bag_size] * boundary + [1] * (total_steps - boundary):
            raise WrongError(f"{run}: bag sizes {sorted(set(forward))} in no order of superposition, then recovery")
        if abs(boundary - ratio * total_steps) >= 1:
            raise WrongError(f"{run}: recovery starts at step {boundary}; expected {ratio * total_steps:g}")
    if implementation.batches is None:
        return "the bag size is a pure function of the step, and its boundary a share of all steps"
    for step, window in enumerate(_windows(implementation, 0)):
        read, said = _bag_size(window), int(at(step, _STEPS, _BAG_SIZE, _RATIO))
        if read != said:
            raise WrongError(f"step {step} reads windows for bags of {read}, and bag_size_at says {said}")
    return "the bag size is a pure function of the step; what is read agrees with it at every step"


def check_reading(implementation: Implementation) -> str:
    """Error 9: no token is input twice before all were, and a run that is resumed reads what it would have read."""
    windows = list(_windows(implementation, 0))
    sizes = [_bag_size(window) for window in windows]
    if len(windows) != _STEPS:
        raise WrongError(f"a run of {_STEPS} steps read {len(windows)} windows")
    step_of: dict[int, int] = {}
    for step, (window, size) in enumerate(zip(windows, sizes, strict=True)):
        for token in window[:, : size * _LATENTS].flatten().tolist():
            if token in step_of:
                before = step_of[token]
                raise WrongError(
                    f"token {token} of the text is input at step {before} (bags of {sizes[before]}) and again at step "
                    f"{step} (bags of {size}), with {_TOKENS - len(step_of)} tokens not read yet"
                )
            step_of[token] = step
        gaps = (window[:, 1:] - window[:, :-1]) % _TOKENS
        if (gaps != 1).any():
            row, place = (gaps != 1).nonzero()[0].tolist()
            token, after = window[row, place : place + 2].tolist()
            raise WrongError(f"step {step}, row {row}: after token {token} comes {after}")
    for start in (3, _BOUNDARY, _BOUNDARY + 5):
        for step, resumed in enumerate(_windows(implementation, start), start=start):
            if step >= _STEPS or not torch.equal(resumed, windows[step]):
                raise WrongError(f"resumed at step {start}, step {step} reads other tokens than a run without a stop")
    once = f"{len(step_of)} tokens were input once each through the switch"
    return f"{once}; resumed in both phases and at it, it reads the same"


def check_speed(implementation: Implementation) -> str:
    """Error 10: a superposition step's window is read in a small share of the step."""
    batches = implementation.need("batches")
    rows, latents, seconds = implementation.step_seconds or (16, 128, math.nan)
    taken = {}
    for bag_size in (1, 8):
        text = torch.arange(rows * latents * bag_size * (_TIMED_STEPS + 2))
        windows = iter(batches(text, rows, latents, _TIMED_STEPS, bag_size, float(bag_size > 1), 0))
        next(windows)  # what is set up once is not the step's
        started = time.perf_counter()
        count = sum(1 for _ in itertools.islice(windows, _TIMED_STEPS - 1))
        taken[bag_size] = (time.perf_counter() - started) / max(1, count)
    times = f"{taken[8] * 1e3:.2f} ms at s 8 and {taken[1] * 1e3:.2f} ms at s 1"
    evidence = f"a step's window of {rows} x {latents} latents is read in {times}"
    if math.isnan(seconds):
        raise NotCheckedError(f"{evidence}; give step_seconds, (rows, latents, seconds), to compare it with your step")
    evidence += f", {taken[8] / seconds:.1%} of a step"
    if taken[8] > _SHARE_OF_STEP * seconds:
        raise WrongError(f"{evidence}; expected at most {_SHARE_OF_STEP:.0%}, unless something reads ahead")
    return evidence


def check_counts(implementation: Implementation) -> str:
    """Error 12: bags change what is read, not what is computed."""
    counts = implementation.need("counts")
    steps, bag_size, ratio, latents = 1000, 6, 0.3, 512
    counted, ordinary = counts(steps, bag_size, ratio, latents), counts(steps, 1, 0.0, latents)
    expected = {
        "raw_tokens": steps * latents * (1 + ratio * (bag_size - 1)),
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


def _windows(implementation: Implementation, start: int) -> Iterator[Tensor]:
    batches = implementation.need("batches")
    return iter(batches(torch.arange(_TOKENS), _ROWS, _LATENTS, _STEPS, _BAG_SIZE, _RATIO, start))


def _bag_size(window: Tensor) -> int:
    sizes = {size * (_LATENTS + 1): size for size in (1, _BAG_SIZE)}
    if window.dim() != 2 or len(window) != _ROWS or window.shape[1] not in sizes:
        raise ValueError(
            f"batches gave a window {list(window.shape)}; expected [{_ROWS}, bag_size x {_LATENTS + 1}] with "
            f"bag size 1 or {_BAG_SIZE}"
        )
    return sizes[window.shape[1]]
