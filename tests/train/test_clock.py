from superpose.train import clock
from superpose.train.clock import Clock


def test_pauses_do_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    spent = Clock(7.0)
    now[0] += 2
    with spent.paused():
        now[0] += 50
        assert spent.seconds == 9
        with spent.paused():  # in a pause already
            now[0] += 50
        now[0] += 50
        assert spent.seconds == 9
    now[0] += 1
    assert spent.seconds == 10
