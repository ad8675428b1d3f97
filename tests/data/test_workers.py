import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superpose.data.workers import workers


def square(number):
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number, os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_errors_come_through(processes):
    shares = []
    with workers(processes, lambda what, share: shares.append(share)) as run:
        results = run(square, range(20), "squaring")
        assert [value for value, _ in results] == [number * number for number in range(20)]
        assert (os.getpid() in {process for _, process in results}) == (processes == 1)
        assert shares == sorted(shares)
        assert run(square, [], "squaring") == []
        with pytest.raises(ValueError, match="-1 is negative"):
            run(square, [1, -1], "squaring")


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        # Work is never defined in the script itself, which has no guard and is not run again.
        "from superpose.data.workers import workers\n"
        "from napping import nap\n"
        "with workers(2, lambda *_: None) as run: run(nap, [60, 60], 'napping')\n"
    )
    (tmp_path / "napping.py").write_text(
        "import os, time\n"
        "def nap(seconds):\n"
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
    pytest.fail("a worker is still there")


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_a_process_does_not_run_the_script_again(tmp_path, way):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os\n"
        "from superpose.data.workers import script_left_out\n"
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
