"""How the learning rate of a step follows from the stages' factors: blended over a few steps, a pure function."""

from collections.abc import Sequence
from itertools import pairwise

from superpose.core.stage import Stage


def blended_factor(stages: Sequence[Stage], step: int) -> float:
    """What the learning rate of a step is multiplied by.

    Within a stage it is the stage's `lr_factor`. After a boundary, the `lr_blend_steps` of the stage that ended there
    are steps of equal size on the way from the value before to the new factor. A stage that is shorter hands over where
    it has come to.

    Args:
        stages: of a whole run, ascending and without gaps.
        step: counted from 0.
    """
    value = stages[0].lr_factor
    for before, stage in pairwise(stages):
        if step < stage.start:
            break
        done, blend = min(step, stage.stop - 1) - stage.start + 1, before.lr_blend_steps
        value = stage.lr_factor if done > blend else value + (stage.lr_factor - value) * done / (blend + 1)
    return value
