"""TorchTitan's checkpoints with the schedule they were trained by, so that a run goes on by the one it began by.

    CHECKPOINTS/step-600/superpose.json    the schedule, and how rows grow; all else there is TorchTitan's own

What a step reads and computes is a function of the step and of the schedule. By another schedule a run would go on
somewhere else in the text, and nothing would look wrong.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import fsspec
import torch.distributed as dist
import tyro
from torchtitan.components.checkpoint import TRAIN_STATE, CheckpointManager

from superpose.core.schedule import Schedule
from superpose.data.windows import Expand
from superpose.files import parse_json

NAME = "superpose.json"


class ScheduleCheckpoints(CheckpointManager):
    """Writes the schedule into each checkpoint that a run can go on from, and compares it there."""

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        schedule: Annotated[Schedule | None, tyro.conf.Suppress] = None
        expand: Annotated[Expand, tyro.conf.Suppress] = "sequence"
        # Both are the trainer's.

    def __init__(self, config: Config, **parts: Any) -> None:
        super().__init__(config, **parts)
        self._schedule, self._expand = config.schedule, config.expand

    def dcp_save(self, state_dict: dict[str, Any], checkpoint_id: str, *rest: Any, **named: Any) -> Any:
        """As TorchTitan's; the schedule is there before the checkpoint is whole."""
        if self._schedule is not None and _goes_on(state_dict) and dist.get_rank() == 0:
            files, folder = fsspec.core.url_to_fs(str(checkpoint_id))
            files.makedirs(folder, exist_ok=True)
            stored = {"schedule": self._schedule.to_dict(), "expand": self._expand}
            files.pipe_file(f"{folder}/{NAME}", json.dumps(stored, indent=1).encode())
        return super().dcp_save(state_dict, checkpoint_id, *rest, **named)

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, *rest: Any, **named: Any) -> None:
        """As TorchTitan's.

        Raises:
            ValueError: the checkpoint was trained by another schedule; both are named.
        """
        if self._schedule is not None and _goes_on(state_dict):
            files, folder = fsspec.core.url_to_fs(str(checkpoint_id))
            if files.exists(f"{folder}/{NAME}"):  # earlier versions wrote none
                self._compare(f"{folder}/{NAME}", files.cat_file(f"{folder}/{NAME}"))
        super().dcp_load(state_dict, checkpoint_id, *rest, **named)

    def _compare(self, name: str, content: bytes) -> None:
        assert self._schedule is not None
        stored = parse_json(content, name)
        try:
            self._schedule.check_same(stored.get("schedule", {}))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if (began := stored.get("expand")) != self._expand:
            raise ValueError(
                f"{name}: the run began with superposition.expand {began!r}; give that, not {self._expand!r}"
            )


def _goes_on(state_dict: dict[str, Any]) -> bool:
    """Whether it holds how far the run has come, and not the model alone."""
    return TRAIN_STATE in state_dict
