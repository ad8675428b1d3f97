"""Where a step's time goes: PyTorch's profiler over a few steps of each phase."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

# Of a stage's steps: after so many, so many are traced.
_SKIPPED, _TRACED = 2, 3


@contextmanager
def profiled(run: Path, stages: Collection[int], rank: int) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number of steps done; writes RUN/profile/step-N-rank-R.json.

    The traces open in Perfetto or chrome://tracing.

    Args:
        run: directory of the run.
        stages: steps done at the start of each stage, and when the run was started or resumed.
        rank: of this process.
    """
    tracing: profile | None = None

    def after(done: int) -> None:
        nonlocal tracing
        if tracing is not None and done - _SKIPPED - _TRACED in stages:
            tracing.stop()
            folder = run / "profile"
            folder.mkdir(exist_ok=True)
            tracing.export_chrome_trace(str(folder / f"step-{done:08d}-rank-{rank}.json"))
            tracing = None
        elif tracing is None and done - _SKIPPED in stages:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            tracing = profile(activities=activities)
            tracing.start()

    try:
        yield after
    finally:
        if tracing is not None:
            tracing.stop()
