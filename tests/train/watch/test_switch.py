from superpose.train.records import Training
from superpose.train.watch.switch import switch


def training(step, loss, phase="recovery"):
    return Training(step=step, phase=phase, bag_size=1, **{"loss" if phase == "recovery" else "bag_loss": loss})


def test_the_spike_and_how_long_it_lasts():
    records = [
        training(10, 6.0, "superposition"),
        training(20, 5.0, "superposition"),
        training(30, 6.5),
        training(40, 5.2),
        training(50, 4.9),
    ]
    found = switch(records)
    assert (found.step, found.bag_loss, found.spike, found.steps_to_recover) == (20, 5.0, 1.5, 30)
    assert switch(records[:4]).steps_to_recover is None
    assert switch(records[:2]) is None
    assert switch(records[2:]) is None
