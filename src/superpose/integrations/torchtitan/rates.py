"""TorchTitan's learning rates, times the `lr_factor` of each step."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from torchtitan.components.optimizer import LRSchedulersContainer

from superpose.core.schedule import Schedule


class StageRates(LRSchedulersContainer):
    """TorchTitan's warmup and decay; a step's rate is multiplied by its stage's factor (`superpose.core.rates`)."""

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        schedule: Annotated[Schedule | None, tyro.conf.Suppress] = None
        # The trainer's.

        def build(self, *, optimizers: Any, training_steps: int) -> LRSchedulersContainer:
            built = LRSchedulersContainer.Config.build(self, optimizers=optimizers, training_steps=training_steps)
            schedule, (of_step,) = self.schedule, {lr for each in built for lr in each.lr_lambdas}
            assert schedule is not None

            def scaled(step: int) -> float:
                # It is asked for the step after the last one too, which nothing trains.
                factor = schedule.step_at(min(step, schedule.total_steps - 1)).lr_factor
                return float(of_step(step) * factor)

            return StageRates(optimizers, scaled)
