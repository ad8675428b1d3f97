"""The examples of loops: by a stream and by a plan, gone on with, on two processes, accumulated and compiled."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from superpose import Schedule

ROOT = Path(__file__).parents[2]
SCHEDULE = Schedule(8, 4, 0.5)


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    both = example("distributed_loop").train(text, SCHEDULE)
    assert sorted(losses) == pytest.approx(sorted([*both, *both]), rel=1e-3)  # each process prints


@pytest.mark.error(n=9)
def test_accelerate(text, tmp_path):
    pytest.importorskip("accelerate")
    train = example("accelerate_loop").train
    through = train(text, SCHEDULE, tmp_path / "through")
    assert through == example("distributed_loop").train(text, SCHEDULE)
    assert train(text, SCHEDULE, tmp_path / "parts", accumulate=2) == pytest.approx(through, rel=1e-4)
    for stop in (2, 4, 6):
        begun = train(text, SCHEDULE, tmp_path / "out", accumulate=2, until=stop)
        rest = train(text, SCHEDULE, tmp_path / "out", accumulate=2, resume=True)
        assert begun + rest == train(text, SCHEDULE, tmp_path / "parts", accumulate=2)


@pytest.mark.error(n=9)
@pytest.mark.filterwarnings("ignore")
def test_lightning(text, tmp_path):
    pytest.importorskip("lightning")
    train = example("lightning_module").train
    through = train(text, SCHEDULE, tmp_path, accumulate=2)
    whole = [sum(through[place : place + 2]) / 2 for place in range(0, 16, 2)]
    assert whole == pytest.approx(example("distributed_loop").train(text, SCHEDULE), rel=1e-4)
    for stop in (2, 4, 6):
        begun = train(text, SCHEDULE, tmp_path, accumulate=2, until=stop)
        assert begun + train(text, SCHEDULE, tmp_path, accumulate=2, resume=tmp_path / "last.ckpt") == through
    torch._dynamo.reset()
    assert train(text, SCHEDULE, tmp_path, backend="eager") == pytest.approx(whole, rel=1e-4)


@pytest.mark.error(n=9)
@pytest.mark.filterwarnings("ignore")
def test_litgpt_in_fabric(text, corpus, tmp_path):
    pytest.importorskip("litgpt")
    module = example("fabric_litgpt")
    train, through = module.train, {plan: module.train(text, SCHEDULE, plan) for plan in (False, True)}
    assert through[False][0] == pytest.approx(5.545, rel=0.05)
    for plan, losses in through.items():
        kept = tmp_path / f"{plan}.ckpt"
        begun = train(text, SCHEDULE, plan, checkpoint=kept, until=4)
        assert begun + train(text, SCHEDULE, plan, checkpoint=kept) == losses
    torch._dynamo.reset()
    assert train(text, SCHEDULE, accumulate=2, backend="eager") == pytest.approx(through[False], rel=1e-4)
    settings = ["--steps", "8", "--bag-size", "4", "--ratio", "0.5", "--devices", "2"]
    losses = printed(str(ROOT / "examples/fabric_litgpt.py"), str(corpus), *settings)
    assert sorted(losses) == pytest.approx(sorted(2 * through[False]), rel=1e-3)
    # At bag size 1 it is the loss of litgpt's own forward pass.
    gpt = module.GPT(
        module.Config(vocab_size=256, padded_vocab_size=256, n_layer=2, n_head=2, n_embd=32, block_size=32)
    )
    window = torch.randint(256, (2, 17))
    ordinary = torch.nn.functional.cross_entropy(gpt(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    torch.testing.assert_close(module.Superposed(gpt)(window, 1), ordinary)
