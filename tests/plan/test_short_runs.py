import pytest

from superpose.plan.prediction import step_limits
from superpose.plan.short_runs import too_short
from superpose.train.config import Recipe
from superpose.train.recipe_file import with_settings

_, ENOUGH = step_limits()


def test_a_short_run_is_told_how_many_steps_would_do():
    said = too_short(Recipe(), ENOUGH - 1)
    assert said.startswith(f"{ENOUGH - 1:,} steps may be too few for TST to win")
    assert said.endswith(f"(--steps {ENOUGH})")
    assert too_short(Recipe(), ENOUGH) is None


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("superposition", {"ratio": 0.0}),
        ("superposition", {"bag_size": 1}),
        ("superposition", {"ratio": 1.0}),
        ("superposition", {"mode": "output"}),
        ("superposition", {"bag_size": (8, 4), "ratio": (0.1, 0.1)}),
        ("train", {"embedding_lr_factor": 2.0}),
    ],
)
def test_nothing_is_said_of_runs_that_nobody_measured(section, settings):
    assert too_short(with_settings(Recipe(), section, **settings), 100) is None
