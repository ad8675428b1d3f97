import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from superpose.train import running
from superpose.train.loop import train
from superpose.train.running import Clock, StoppedError, stop_requests
from tests.train.test_loop import same_weights


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


@pytest.fixture(autouse=True)
def handlers():
    """Python's own, whatever started the tests: a shell lets what it runs in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 5), (signal.SIGINT, 8), (signal.SIGUSR1, 9)])
def test_the_step_is_finished_and_saved(recipe, store, tmp_path, number, step):
    """In superposition, at the switch and after it; what follows is the run that was never stopped."""
    train(recipe, store, tmp_path / "whole")

    def stop(record):
        if record["kind"] == "training" and record["step"] == step - 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"{number.name} after step {step}") as stopped:
        train(recipe, store, tmp_path / "run", listener=stop)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").exists()
    train(recipe, store, tmp_path / "run", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def test_the_second_time_it_ends_at_once():
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a terminal and what started the process may both send one
        assert request.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_torchrun_passes_on_is_no_second_signal(monkeypatch, number):
    """A scheduler tells all processes of a job, and torchrun its ranks once more."""
    now = [100.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    before = signal.signal(number, lambda number, frame: ended.append(number))
    ended = []
    try:
        with stop_requests() as request:
            for since in (0, 1, 3.9):
                now[0] += since
                os.kill(os.getpid(), number)
                assert request.number == number
            assert ended == []
            now[0] += 0.2
            os.kill(os.getpid(), number)
            assert ended == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_what_a_scheduler_ends_stops_first_what_it_has_started(number, code):
    def work():
        with running.ended_in_order():
            try:
                os.kill(os.getpid(), number)
            finally:
                left.append(signal.getsignal(number))

    left = []
    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == code
    assert left == [signal.SIG_DFL], "a second one ends at once"


def test_a_handler_of_somebody_elses_stays():
    def theirs(number, frame):
        heard.append(number)

    heard = []
    before = signal.signal(signal.SIGUSR1, theirs)
    try:
        with running.ended_in_order():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is theirs
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_is_to_be_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.number == 0


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with stop_requests() as request:
            seen.append(request.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_the_command_line_says_what_happened(recipe, corpus, tmp_path):
    run = tmp_path / "run"
    settings = {
        **{f"data.{name}": getattr(recipe.data, name) for name in ("corpus", "vocab_size", "val_megabytes")},
        **{"train.steps": 100_000, "train.batch_size": 4, "train.latents": 16, "train.eval_every": 100_000},
        **{"data.val_fraction": 0.1, "model.config.hidden_size": 16, "train.log_every": 1},
    }
    path = tmp_path / "recipe.toml"
    path.write_text("")
    command = [sys.executable, "-m", "superpose", "train", str(path), "--out", str(run), "--resume"]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("training") > 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "starts at step 0" in " ".join(out.split())
    assert "stopped by SIGTERM after step" in out
    assert "the same command goes on" in " ".join(out.split())
    assert error == ""
    assert len(list((run / "checkpoints").iterdir())) == 1
