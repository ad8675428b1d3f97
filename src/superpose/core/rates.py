"""How the learning rate of a step follows from the stages' factors: blended over a few steps, a pure function."""

from collections.abc import Sequence

BLEND_STEPS = 20
"""Steps between two factors, by default: as many as AdamW's second moment looks back at its beta of 0.95."""


def blended_factor(starts: Sequence[int], factors: Sequence[float], step: int, blend_steps: int = BLEND_STEPS) -> float:
    """What the learning rate of a step is multiplied by.

    Within a stage it is the stage's factor. After each boundary it takes `blend_steps` steps of equal size on the way
    from the value before to the new factor. A stage that is shorter hands over where it has come to.

    Args:
        starts: first step of each stage, ascending; the first is 0.
        factors: of each stage.
        step: counted from 0.

    >>> [blended_factor((0, 10), (1.0, 0.5), step, 1) for step in range(8, 13)]
    [1.0, 1.0, 0.75, 0.5, 0.5]
    """
    value = factors[0]
    for number, (start, factor) in enumerate(zip(starts, factors, strict=True)):
        if number == 0:
            continue
        if step < start:
            break
        last = min(step, starts[number + 1] - 1) if number + 1 < len(starts) else step
        done = last - start + 1
        value = factor if done > blend_steps else value + (factor - value) * done / (blend_steps + 1)
    return value
