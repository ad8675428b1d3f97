"""Processes of this machine: what they do, how they end, and which GPU is whose."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from superpose.engine import Job, Local, LostError, Resources
from superpose.errors import UserError


def job(work, *arguments, **settings):
    """One that finds ready what runs need: the first to start decides that for all, those of other tests too."""
    return Job.of(work, *arguments, imports=("superpose.train.loop",), **settings)


def squares(tell, *numbers):
    for number in numbers:
        tell(number * number)
    return os.getpid()


def negative(tell, number):
    raise ValueError(f"{number} is negative")


def die(tell, code):
    tell("its last words")
    sys.stdout.flush()
    os._exit(code)


def wait(tell, path):
    """Tells its process, and writes a file when it is asked to stop."""
    signal.signal(signal.SIGTERM, lambda *_: (Path(path).touch(), os._exit(0)))
    tell(os.getpid())
    time.sleep(60)


def devices(tell, seconds):
    started = time.monotonic()
    time.sleep(seconds)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), started, time.monotonic()


def rank(tell):
    tell(int(os.environ["RANK"]))
    return {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")}


def fail_on_rank_1(tell):
    if os.environ["RANK"] == "1":
        raise UserError("rank 1 failed")
    time.sleep(60)


def all_of(engine, jobs):
    """What is heard of some jobs until all have ended, by key."""
    heard = {key: [] for key in jobs}
    for key, job in jobs.items():
        engine.submit(key, job)
    while not all(events and events[-1].kind != "record" for events in heard.values()):
        event = engine.heard()
        heard[event.key].append(event)
    return heard


@pytest.fixture
def engine():
    with Local(devices=["3", "5"]) as engine:
        yield engine


@pytest.mark.parametrize("alone", [True, False])
def test_records_come_in_order_and_then_what_a_job_returned(engine, alone):
    heard = all_of(engine, {str(n): job(squares, n, n + 1, n + 2, alone=alone) for n in range(3)})
    for n, events in enumerate(heard.values()):
        assert [event.value for event in events[:-1]] == [n**2, (n + 1) ** 2, (n + 2) ** 2]
        assert [event.kind for event in events] == ["record"] * 3 + ["done"]
    assert os.getpid() not in {events[-1].value for events in heard.values()}


def test_a_process_is_a_runs_own_or_shared(engine):
    def processes(alone):
        return {all_of(engine, {"job": job(squares, alone=alone)})["job"][-1].value for _ in range(2)}

    assert len(processes(alone=True)) == 2
    assert len(processes(alone=False)) == 1


def test_an_error_comes_through_and_takes_no_other_job_with_it(engine):
    heard = all_of(engine, {"bad": job(negative, -1), "dead": job(die, 9), "good": job(squares, 4)})
    assert isinstance(heard["bad"][-1].value, ValueError)
    assert "negative" in "".join(heard["bad"][-1].value.__notes__)
    assert [event.value for event in heard["dead"][:-1]] == ["its last words"]
    assert isinstance(heard["dead"][-1].value, LostError)
    assert "exit code 9" in str(heard["dead"][-1].value)
    assert [event.kind for event in heard["good"]] == ["record", "done"]


def test_a_job_that_is_cancelled_is_asked_to_stop_and_not_heard_again(engine, tmp_path):
    engine.submit("stopped", job(wait, tmp_path / "told"))
    process = engine.heard().value
    engine.cancel("stopped")
    assert (tmp_path / "told").exists()
    assert not alive(process)
    assert {event.key for event in all_of(engine, {"next": job(squares, 1)})["next"]} == {"next"}


def test_every_gpu_has_one_job_at_a_time(engine):
    at_a_time, resources = engine.room(count=10, on_gpu=True)
    assert (at_a_time, resources.gpus) == (2, 1)
    heard, waiting = [], list("abcd")
    for _ in range(at_a_time):
        engine.submit(waiting.pop(), job(devices, 0.05, resources=resources))
    while len(heard) < 4:
        heard.append(engine.heard().value)
        if waiting:
            engine.submit(waiting.pop(), job(devices, 0.05, resources=resources))
    for name in ("3", "5"):
        spans = sorted((started, ended) for used, started, ended in heard if used == name)
        assert len(spans) >= 1
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert {name for name, *_ in heard} == {"3", "5"}


def test_more_jobs_than_gpus_share_them_and_one_job_can_have_several(engine):
    at_a_time, resources = engine.room(count=10, jobs=3, on_gpu=True)
    assert (at_a_time, resources.gpus) == (3, 0.5)
    heard = all_of(engine, {key: job(devices, 0.2, resources=resources) for key in "abc"})
    assert sorted(events[-1].value[0] for events in heard.values()) in (["3", "3", "5"], ["3", "5", "5"])
    assert Local(gpus=2, devices=["0", "1", "2", "3", "4"]).room(10, on_gpu=True)[0] == 2
    with pytest.raises(UserError, match="3 at a time with 1 GPUs each do not fit on the 2"):
        Local(gpus=1, devices=["0", "1"]).room(10, jobs=3, on_gpu=True)
    with pytest.raises(UserError, match="no GPU"):
        Local(devices=[]).room(1, on_gpu=True)
    with pytest.raises(UserError, match=r"train\.device=cuda"):
        Local(gpus=1).room(1)


def test_a_job_of_several_gpus_has_a_rank_on_each_of_which_the_first_speaks(engine):
    (*records, done) = all_of(engine, {"job": job(rank, resources=Resources(gpus=2))})["job"]
    assert 0 in {record.value for record in records}
    expected = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    assert {name: value for name, value in done.value.items() if name != "CUDA_VISIBLE_DEVICES"} == expected
    assert sorted(done.value["CUDA_VISIBLE_DEVICES"].split(",")) == ["3", "5"]


def test_a_rank_that_fails_ends_the_others(engine):
    started = time.monotonic()
    (failed,) = all_of(engine, {"job": job(fail_on_rank_1, resources=Resources(gpus=2))})["job"]
    assert str(failed.value) == "rank 1 failed"
    assert time.monotonic() - started < 30


def test_cores_are_divided_among_the_jobs_at_a_time(monkeypatch):
    monkeypatch.setattr("superpose.engine.local.available_cores", lambda: 8)
    assert Local().room(count=100) == (8, Resources(1))
    assert Local().room(count=2) == (2, Resources(4))
    assert Local().room(count=100, jobs=3) == (3, Resources(2))
    assert Local().room(count=100, jobs=20) == (20, Resources(1))
    assert Local(cores=4).room(count=100) == (2, Resources(4))
    with pytest.raises(UserError, match="do not fit on the 8"):
        Local(cores=4).room(count=100, jobs=3)


@pytest.mark.parametrize("alone", [True, False])
def test_processes_do_not_outlive_one_that_is_killed(tmp_path, alone):
    script = tmp_path / "parent.py"
    script.write_text(
        # Work is never defined in the script itself, which has no guard and is not run again.
        "from superpose.engine import Job, Local\n"
        "from napping import nap\n"
        "with Local() as engine:\n"
        f"    for key in 'ab': engine.submit(key, Job.of(nap, 60, alone={alone}))\n"
        "    engine.heard()\n"
    )
    (tmp_path / "napping.py").write_text(
        "import os, time\n"
        "def nap(tell, seconds):\n"
        "    os.write(1, b'%d\\n' % os.getpid())  # a line in one piece, of two processes\n"
        "    time.sleep(seconds)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not any(map(alive, children)):
            return
        time.sleep(0.1)
    pytest.fail("a process is still there")


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_a_process_does_not_run_the_script_again(tmp_path, way):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os\n"
        "from superpose.engine.local import script_left_out\n"
        "print('once', flush=True)\n"
        f"process = multiprocessing.get_context({way!r}).Process(target=os.getcwd)\n"
        "with script_left_out(): process.start()\n"
        "process.join()\n"
        "print(process.exitcode)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["once", "0"], done.stderr


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
