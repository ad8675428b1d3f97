"""The examples of loops: by a stream and by a plan, gone on with, on two processes, accumulated and compiled."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from superpose import Schedule
from tests.conftest import load_example as example

ROOT = Path(__file__).parents[2]
SCHEDULE = Schedule(8, 4, 0.5)


def printed(*command):
    """The losses an example prints."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(loss) for loss in done.stdout.split()]


@pytest.fixture(scope="module")
def text(corpus):
    return corpus.read_bytes()


@pytest.mark.error(n=9)
@pytest.mark.parametrize("plan", [False, True])
def test_a_loop_of_its_own(text, tmp_path, plan):
    train = example("distributed_loop").train
    through = train(text, SCHEDULE, plan)
    assert through[0] == pytest.approx(5.545, rel=0.05)
    assert train(text, SCHEDULE, plan, accumulate=2) == pytest.approx(through, rel=1e-4)
    for stop in (2, 4, 6):
        kept = tmp_path / f"{stop}.pt"
        train(text, SCHEDULE, plan, checkpoint=kept, until=stop)
        assert train(text, SCHEDULE, plan, checkpoint=kept) == through
    with pytest.raises(ValueError, match="give the schedule it began by"):
        train(text, Schedule(16, 4, 0.5), plan, checkpoint=kept)


def test_a_loop_of_its_own_compiled(text):
    train = example("distributed_loop").train
    torch._dynamo.reset()
    assert train(text, SCHEDULE, backend="eager") == pytest.approx(train(text, SCHEDULE), rel=1e-5)


@pytest.mark.error(n=4)
@pytest.mark.error(n=11)
def test_a_loop_of_its_own_on_two_processes(text, corpus):
    command = ["--steps", "8", "--bag-size", "4", "--ratio", "0.5", "--accumulate", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    losses = printed(*torchrun, str(ROOT / "examples/distributed_loop.py"), str(corpus), *command)
    assert losses == pytest.approx(example("distributed_loop").train(text, SCHEDULE), rel=1e-3)


@pytest.mark.error(n=9)
@pytest.mark.parametrize("plan", [False, True])
def test_accelerate(text, tmp_path, plan):
    pytest.importorskip("accelerate")
    train = example("accelerate_loop").train
    through = train(text, SCHEDULE, tmp_path / "through", plan)
    assert through == example("distributed_loop").train(text, SCHEDULE, plan)
    parts = train(text, SCHEDULE, tmp_path / "parts", plan, accumulate=2)
    assert parts == pytest.approx(through, rel=1e-4)
    for stop in (2, 4, 6):
        begun = train(text, SCHEDULE, tmp_path / "out", plan, accumulate=2, until=stop)
        assert begun + train(text, SCHEDULE, tmp_path / "out", plan, accumulate=2, resume=True) == parts


def test_accelerate_compiled(text, tmp_path):
    state = pytest.importorskip("accelerate.state")
    train = example("accelerate_loop").train
    torch._dynamo.reset()
    # Its settings are those of the process.
    state.AcceleratorState._reset_state(reset_partial_state=True)
    compiled = train(text, SCHEDULE, tmp_path, backend="eager")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    assert compiled == pytest.approx(train(text, SCHEDULE, tmp_path), rel=1e-5)
