import pytest

from superpose.train import running
from superpose.train.running import Clock


def test_pauses_do_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(running.time, "perf_counter", lambda: now[0])
    spent = Clock(7.0)
    now[0] += 50
    with spent.paused():  # it has not begun
        now[0] += 50
    assert spent.seconds == 7
    with spent.running():
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
    now[0] += 50
    assert spent.seconds == 10


def test_what_fails_is_no_longer_counted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(running.time, "perf_counter", lambda: now[0])
    spent = Clock(0.0)

    def fail():
        with spent.running():
            now[0] += 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    now[0] += 50
    assert spent.seconds == 2
