"""A Ray cluster of two nodes on this machine. One is cut off in the middle of a run, and so is a driver."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from checks.cluster import Cluster
from safetensors.torch import load_file

from superpose import __version__
from superpose.data.prepare import prepare_store
from superpose.engine import Job, Local, LostError, Resources
from superpose.engine.jobs import Event
from superpose.engine.ray import Ray, _expect
from superpose.errors import UserError
from superpose.runs.pool import Run, execute
from superpose.train.recipe_file import with_settings
from tests.engine.test_local import die, negative, squares
from tests.train.test_loop import changed

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what Ray remarks of its own parts
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nodes are found by their processes in /proc"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with Cluster([1, 1]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def engine(cluster):
    """One for all: a driver's processes on the nodes are its own, and the first run of each imports PyTorch."""
    with Ray(cluster.address) as engine:
        yield engine


@pytest.fixture(scope="module")
def long(recipe):
    """Two runs of seconds, with a checkpoint every few steps."""
    longer = with_settings(recipe, "train", steps=500, checkpoint_every=20, eval_every=500, warmup_steps=20)
    return [Run("tst", longer), Run("ordinary", longer.ordinary())]


@pytest.fixture(scope="module")
def undisturbed(long, store, tmp_path_factory):
    pool = tmp_path_factory.mktemp("undisturbed")
    with Local() as engine:
        execute(long, store, pool, engine)
    return pool


def same_weights(one, other):
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_no_cluster_is_said_in_a_sentence():
    """First, because a process that is part of a cluster asks for no other."""
    with pytest.raises(UserError, match="no Ray cluster answers at 127"), Ray("127.0.0.1:1"):
        pass


class Brought:
    """A letter that Ray brings, or the error that it brings in its place."""

    def __init__(self, *letter, error=None):
        self._letter, self._error = letter, error

    def result(self):
        if self._error:
            raise self._error
        return self._letter


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_letters_are_read_as_they_were_written_in_whatever_order_ray_brings_them(engine, order):
    end = Event("job", "done", None)
    letters = [([("job", 1)], []), ([("job", 2), ("gone", 7)], []), ([("job", 3)], [end])]
    engine._tasks["job"], before = None, engine._next
    for number in order:
        records, ended = letters[number]
        engine._read(Brought("box", number, records), ended)
    heard = [engine._events.popleft() for _ in range(4)]
    assert [event.value for event in heard] == [1, 2, 3, None]
    assert heard[-1] is end
    # The mailbox was lost, and one letter with it: what came after that is read all the same, and so is another's.
    engine._read(Brought("box", 4, [("job", 5)]), [])
    assert not engine._events
    engine._read(Brought(error=engine._ray.exceptions.RayError("lost")), [])
    engine._read(Brought("other", 0, [("job", 6)]), [])
    assert [engine._events.popleft().value for _ in range(2)] == [5, 6]
    del engine._tasks["job"]
    engine._next = before


def test_jobs_tell_return_fail_and_die_as_they_do_here(engine):
    calls = {"good": (squares, 2, 3), "bad": (negative, -1), "dead": (die, 9)}
    for key, call in calls.items():
        engine.submit(key, Job.of(*call))
    heard = defaultdict(list)
    while not all(heard[key] and heard[key][-1].kind != "record" for key in calls):
        event = engine.heard()
        heard[event.key].append(event)
    assert [event.value for event in heard["good"][:-1]] == [4, 9]
    assert isinstance(heard["bad"][-1].value, ValueError)
    assert isinstance(heard["dead"][-1].value, LostError)
    assert "exit code 9" in str(heard["dead"][-1].value)


def test_runs_end_in_the_bits_of_local_ones_and_one_that_fails_takes_none_with_it(engine, recipe, store, tmp_path):
    longer = with_settings(recipe.ordinary(), "train", steps=30)
    planned = [Run("tst", recipe), Run("ordinary", recipe.ordinary()), Run("ordinary", longer)]
    bad = Run("bad", changed(recipe, "train", lr=1e30, grad_clip=0))
    kinds = defaultdict(list)
    listener = lambda run, record: kinds[run.name].append(record["kind"])  # noqa: E731
    *ours, failed = execute([*planned, bad], store, tmp_path / "ray", engine, listener=listener)
    with Local() as local:
        theirs = execute(planned, store, tmp_path / "local", local)
    for one, other in zip(ours, theirs, strict=True):
        assert same_weights(one.directory, other.directory)
        assert kinds[one.run.name].count("training") >= 10
        assert kinds[one.run.name][-1] == "result"
    assert "lower train.lr" in failed.failure


def test_a_run_that_no_node_has_room_for_is_refused(engine, monkeypatch):
    monkeypatch.setattr("superpose.engine.ray._SECONDS_TO_JOIN", 0)
    assert engine.room(count=10) == (10, Resources(cores=1))
    assert engine.room(count=10, jobs=3) == (3, Resources(cores=1))
    with pytest.raises(UserError, match="no node of the Ray cluster has 1 cores and 1 GPUs for a run"):
        engine.room(count=10, on_gpu=True)


def test_an_engine_that_was_left_may_be_entered_again(cluster, engine, tmp_path):
    again = Ray(cluster.address)
    for number in (1, 2):
        with again:
            again.share(tmp_path)
            assert again.call(abs, -number) == number


def test_preparing_on_two_nodes_gives_the_same_store_with_any_number_of_workers(engine, data_args, tmp_path):
    alone = prepare_store(data_args.preparation, tmp_path / "alone", processes=1)
    for workers in (1, 2, 4):
        spread = prepare_store(data_args.preparation, tmp_path / f"of-{workers}", workers, engine=engine)
        assert spread.manifest == alone.manifest
        assert spread.verify() == []


@pytest.mark.faults
def test_a_node_that_is_cut_off_costs_steps_since_the_last_checkpoint_alone(
    cluster, engine, long, store, undisturbed, tmp_path
):
    steps = defaultdict(list)

    def listener(run, record):
        if record["kind"] == "training":
            steps[run.arm].append(record["step"])
        if len(cluster.nodes) == 2 and all(max(steps[arm], default=0) > 50 for arm in ("tst", "ordinary")):
            cluster.kill(1)

    outcomes = execute(long, store, tmp_path, engine, listener=listener)
    assert len(cluster.nodes) == 1, "the runs were over before the node was killed"
    cluster.add(1)
    for outcome in outcomes:
        assert same_weights(outcome.directory, undisturbed / outcome.directory.name)
    back = [(one, two) for known in steps.values() for one, two in itertools.pairwise(known) if two <= one]
    # The run that was on the node goes on from its checkpoint, whether or not its last steps were heard of before.
    assert len(back) <= 1, "the other was disturbed"
    assert all(20 < again <= last < again + 60 for last, again in back)


@pytest.mark.faults
def test_a_driver_that_is_killed_goes_on_when_it_is_started_again(cluster, engine, long, store, undisturbed, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from superpose.data.store import TokenStore\n"
        "from superpose.engine.ray import Ray\n"
        "from superpose.runs.pool import Run, execute\n"
        "from superpose.train.config import Recipe\n"
        "store, pool, recipes = sys.argv[1:]\n"
        "runs = [Run(arm, Recipe.model_validate(recipe)) for arm, recipe in json.loads(recipes).items()]\n"
        f"with Ray({cluster.address!r}) as engine: execute(runs, TokenStore.open(Path(store)), Path(pool), engine)\n"
    )
    recipes = json.dumps({run.arm: run.recipe.model_dump(mode="json") for run in long})
    driver = subprocess.Popen([sys.executable, script, store.path, tmp_path / "pool", recipes])
    directories = [tmp_path / "pool" / run.key(store) for run in long]
    wait_for(lambda: any(list((path / "checkpoints").glob("step-*")) for path in directories))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    first = defaultdict(list)
    outcomes = execute(
        long, store, tmp_path / "pool", engine, listener=lambda run, record: first[run.arm].append(record.get("step"))
    )
    for outcome in outcomes:
        assert same_weights(outcome.directory, undisturbed / outcome.directory.name)
    assert max(known[0] for known in first.values()) >= 20, "all runs began anew"


def test_a_node_that_sees_other_files_or_has_another_version_says_so_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"does not see .* put it on a file system that all nodes see"):
        _expect(__version__, [(str(tmp_path / "absent"), "hash")])
    with pytest.raises(UserError, match="install the same on all nodes"):
        _expect("0.0.1", [])


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited a minute in vain")
