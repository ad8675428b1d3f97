"""One command for first start, restart and requeue: ranks are killed, and torchrun's agent starts them again."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from superpose.data.store import TokenStore
from superpose.train import checkpoint, loop
from superpose.train.records import read_metrics
from superpose.train.running import SCHEDULERS
from tests.train.test_loop import changed, same_weights

BEGINNING = {"at the start": (1, "build"), "in superposition": (1, 5), "at the switch, while it is saved": (0, 8)}
END = {"before a checkpoint is whole": (0, "commit"), "in recovery": (1, 14), "at the export": (0, "export")}
"""Of each start but the last: who is killed, and when, at a step or in what else a run does."""


def killed(then):
    """A function that kills its process instead of what it stands for, where `then` says so of its arguments."""

    def instead_of(function):
        def call(*arguments, **named):
            if then(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    return instead_of


def started(moments, recipe, path, run):
    """What torchrun starts on each rank, again and again; all but the last time one of them is killed."""
    torch.set_num_threads(1)
    number = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    rank, moment = moments[number] if number < len(moments) else (None, None)
    if rank == int(os.environ["RANK"]):
        loop.learning_rate = killed(lambda args, step, *rest: step == moment)(loop.learning_rate)
        loop.build_state = killed(lambda *rest: moment == "build")(loop.build_state)
        loop.export_model = killed(lambda *rest: moment == "export")(loop.export_model)
        commit = killed(lambda path, state: moment == "commit" and state["step"] == 12)
        checkpoint.write_json = commit(checkpoint.write_json)
    loop.train(recipe, TokenStore.open(path), run, resume=True)


def torchrun(run, recipe, store, moments=()):
    """`torchrun --nproc-per-node 2 --max-restarts 3`, whose ranks begin with all that is imported already."""
    config = LaunchConfig(
        *(1, 1, 2),
        max_restarts=3,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="forkserver",
        run_id=run.name,
    )
    # The ranks are forked from a process that has imported all they need; unless it runs already, for other tests.
    multiprocessing.set_forkserver_preload(
        [__name__, "superpose.train.loop", "transformers.models.llama.modeling_llama"]
    )
    handled = (*SCHEDULERS, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in handled}
    try:
        elastic_launch(config, started)(moments, changed(recipe, "parallel", timeout=30), store.path, run)
    finally:  # the agent leaves its own
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def undisturbed(recipe, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("torchrun") / "whole"
    torchrun(run, recipe, store)
    return run


@pytest.mark.error(n=9)
@pytest.mark.parametrize("moments", [BEGINNING, END], ids=["beginning", "end"])
def test_ranks_killed_one_after_the_other_end_in_the_same_weights(undisturbed, recipe, store, tmp_path, moments):
    torchrun(tmp_path / "run", recipe, store, list(moments.values()))
    assert same_weights(tmp_path / "run", undisturbed)
    steps = [
        [record["step"] for record in read_metrics(run / "metrics.jsonl")] for run in (undisturbed, tmp_path / "run")
    ]
    assert steps[0] == steps[1]
    assert not list((tmp_path / "run" / "checkpoints").glob(".step-*"))
