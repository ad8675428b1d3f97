"""Where a step's time goes: PyTorch's profiler over a few steps of each phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

# Of a stage's steps, counted from its first: one to warm the profiler up, then these.
_WARM, _FIRST, _LAST = 2, 3, 5


@contextmanager
def profiled(run: Path, first_step: int, starts: tuple[int, ...], rank: int) -> Iterator[Callable[[], None]]:
    """Yields what to call after each step; writes RUN/profile/step-N-rank-R.json for chrome://tracing or Perfetto.

    Args:
        run: directory of the run.
        first_step: number of the step that comes first.
        starts: first step of each stage.
        rank: of this process.
    """

    def action(count: int) -> ProfilerAction:
        step = first_step + count
        place = step - max((start for start in (*starts, first_step) if start <= step), default=first_step)
        if place == _LAST:
            return ProfilerAction.RECORD_AND_SAVE
        if _FIRST <= place < _LAST:
            return ProfilerAction.RECORD
        return ProfilerAction.WARMUP if place == _WARM else ProfilerAction.NONE

    def write(profiler: profile) -> None:
        folder = run / "profile"
        folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"step-{first_step + profiler.step_num:08d}-rank-{rank}.json"))

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities, schedule=action, on_trace_ready=write) as profiler:
        yield profiler.step
