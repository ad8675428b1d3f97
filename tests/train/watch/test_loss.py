from superpose.train.records import Training
from superpose.train.watch.loss import Runaway


def training(step, loss, phase="recovery"):
    return Training(step=step, phase=phase, bag_size=1, **{"loss" if phase == "recovery" else "bag_loss": loss})


def test_a_loss_that_leaves_its_course():
    watch = Runaway(2.0)
    losses = [7.0, 5.0, 6.9, 7.5, 6.0, 7.1, 7.2, 7.3]
    assert [watch.leaves(training(step, loss)) for step, loss in enumerate(losses)] == [False] * 7 + [True]
    assert watch.since == 4
    assert not any(Runaway(0).leaves(training(step, 5.0 + step)) for step in range(20))


def test_a_new_phase_has_a_level_of_its_own():
    watch = Runaway(2.0)
    for step in range(5):
        assert not watch.leaves(training(step, 3.0, "superposition"))
    assert not any(watch.leaves(training(step, 6.0)) for step in range(5, 10))
