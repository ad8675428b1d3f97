"""What the evidence behind a plan says before a run starts: that it has too few steps for TST to win."""

from superpose.plan.evidence import SMALL_RULE, measured_points, short
from superpose.plan.fit import setting_of
from superpose.plan.prediction import step_limits
from superpose.train.config import Recipe


def too_short(recipe: Recipe, steps: int) -> str | None:
    """A sentence to print before a recipe is trained for so many steps: they are few, and how many would do.

    None where no measurement speaks against the run: there are steps enough, it has no bags, or it is of a kind that
    nobody measured.
    """
    _, enough = step_limits()
    if steps >= enough or recipe.schedule.ends_in_superposition:
        return None
    setting, unusual = setting_of(recipe)
    if setting is None or setting.ordinary or unusual:
        return None
    measured = f"models of {short(measured_points()[0].params)} parameters, {SMALL_RULE}"
    return (
        f"{steps:,} steps may be too few for TST to win: in our comparisons ({measured}) it won on every text only "
        f"from {enough:,} steps on; give it more (--steps {enough})"
    )
