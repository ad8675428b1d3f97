"""Where a step's time goes: PyTorch's profiler over a few steps of each phase."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from superpose.train.step import StepResult
from superpose.train.watch.watcher import Watcher

# Of a stage's steps: after so many, so many are traced.
_SKIPPED, _TRACED = 2, 3


class Profile(Watcher):
    """Writes RUN/profile/step-N-rank-R.json, which open in Perfetto or chrome://tracing.

    Steps are traced after the start of each stage, and after the run was started or resumed.
    """

    _tracing: profile | None = None

    def after_step(self, done: int, result: StepResult) -> None:
        stages = {self.run.progress.step, *self.run.recipe.schedule.boundaries}
        if self._tracing is not None and done - _SKIPPED - _TRACED in stages:
            self._tracing.stop()
            folder = self.run.path / "profile"
            folder.mkdir(exist_ok=True)
            self._tracing.export_chrome_trace(str(folder / f"step-{done:08d}-rank-{self.run.ranks.rank}.json"))
            self._tracing = None
        elif self._tracing is None and done - _SKIPPED in stages:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._tracing = profile(activities=activities)
            self._tracing.start()

    def closed(self) -> None:
        if self._tracing is not None:
            self._tracing.stop()
