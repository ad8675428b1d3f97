import signal
import time
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from superpose.compare.experiment import Design, plan_runs
from superpose.data.config import prepare
from superpose.engine import Engine, Event, Local, Resources
from superpose.errors import UserError
from superpose.files import one_at_a_time, read_json
from superpose.runs import pool as runs
from superpose.runs.pool import Outcome, Run, execute, link, named_directory, settled
from superpose.train.loop import train
from superpose.train.recipe_file import with_settings
from superpose.train.records import read_metrics
from superpose.train.running import StoppedError
from tests.train.test_loop import changed, weights


def ordinary(recipe, steps, **settings):
    return Run("ordinary", with_settings(recipe.ordinary(), "train", steps=steps, **settings))


def trained(planned, store, pool, jobs, listener=lambda run, record: None):
    """What becomes of runs in processes of this machine."""
    with Local() as engine:
        return execute(planned, store, pool, engine, jobs, listener)


@pytest.fixture(scope="module")
def family(recipe, store, tmp_path_factory):
    """Ordinary runs of 20, 30 and 45 steps, planned in another order, and a TST run."""
    pool = tmp_path_factory.mktemp("pool")
    planned = [ordinary(recipe, 30), Run("tst", recipe), ordinary(recipe, 45), ordinary(recipe, 20)]
    records = defaultdict(list)
    outcomes = trained(planned, store, pool, 2, lambda run, record: records[run.name].append(record))
    return planned, outcomes, records, pool


def test_outcomes_come_in_the_order_of_the_plan(family):
    planned, outcomes, records, _ = family
    assert [outcome.run for outcome in outcomes] == planned
    for outcome in outcomes:
        assert outcome.failure is None
        assert records[outcome.run.name][-1]["result"] == outcome.result
        assert AutoModelForCausalLM.from_pretrained(outcome.directory / "model").config.model_type == "llama"


def test_a_longer_ordinary_run_branches_from_a_shorter_one(family):
    _, (thirty, _, fortyfive, twenty), records, _ = family
    assert min(record["step"] for record in records["ordinary-20-seed1"][:-1]) == 0
    assert min(record["step"] for record in records["ordinary-30-seed1"][:-1]) == 18  # 20 steps decay over the last 2
    assert min(record["step"] for record in records["ordinary-45-seed1"][:-1]) == 27
    assert twenty.result["latents"] < thirty.result["latents"] < fortyfive.result["latents"]


def test_a_branch_is_the_run_it_would_be_alone_to_the_bit(family, recipe, store, tmp_path):
    _, (thirty, *_), _, _ = family
    train(ordinary(recipe, 30).recipe, store, tmp_path / "alone")
    branched, alone = weights(thirty.directory), weights(tmp_path / "alone")
    assert all(branched[name].equal(alone[name]) for name in alone)
    ours, theirs = (
        [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "validation"]
        for path in (thirty.directory, tmp_path / "alone")
    )
    same = ("step", "val_loss", "raw_tokens", "latents", "flops")
    assert [[r[name] for name in same] for r in ours] == [[r[name] for name in same] for r in theirs]


def test_a_branch_whose_trunk_is_damaged_starts_alone(recipe, store, tmp_path):
    trunk = ordinary(recipe, 20).recipe
    train(trunk, store, tmp_path / "trunk")
    stable = tmp_path / "trunk/checkpoints" / f"step-{trunk.stable_steps:08d}"
    next(stable.glob("*.safetensors")).write_bytes(b"no longer")
    records = []
    train(ordinary(recipe, 30).recipe, store, tmp_path / "run", listener=records.append, trunk=tmp_path / "trunk")
    assert "passed over" in next(record["message"] for record in records if record["kind"] == "warning")
    assert min(record["step"] for record in records) == 0


@pytest.mark.parametrize("other", ["lr", "seed", "corpus", "longer", "tst"])
def test_nothing_is_taken_from_a_run_that_is_no_beginning(recipe, store, corpus, tmp_path, other):
    trunk = ordinary(recipe, 20).recipe
    recipes = {
        "lr": with_settings(trunk, "train", lr=3e-3),
        "seed": with_settings(trunk, "train", seed=7),
        "longer": with_settings(trunk, "train", steps=40),
        "tst": recipe,
    }
    trunk, trunk_store = recipes.get(other, trunk), store
    if other == "corpus":
        trunk_store = prepare(trunk.data.model_copy(update={"seed": 5}))
    train(trunk, trunk_store, tmp_path / "trunk")
    records = []
    train(ordinary(recipe, 30).recipe, store, tmp_path / "run", listener=records.append, trunk=tmp_path / "trunk")
    assert min(record["step"] for record in records) == 0


def test_what_is_finished_is_not_trained_again(family, store):
    planned, outcomes, _, pool = family
    records = []
    again = trained(planned, store, pool, 2, lambda run, record: records.append(record))
    assert {record["kind"] for record in records} == {"result"}
    assert [outcome.result for outcome in again] == [outcome.result for outcome in outcomes]


def test_runs_are_known_by_what_they_compute(recipe, store, data_args):
    run = Run("tst", recipe)
    key = run.key(store)
    assert Run("another name", recipe).key(store) == key
    assert Run("tst", with_settings(recipe, "train", threads=3, track=["wandb"], device="cuda")).key(store) == key
    assert Run("tst", with_settings(recipe, "data", corpus="moved")).key(store) == key
    for section, settings in (
        ("train", {"seed": 9}),
        ("train", {"lr": 1e-3}),
        ("superposition", {"bag_size": 5}),
        ("model", {"config": {**recipe.model.config, "num_hidden_layers": 2}}),
    ):
        assert Run("tst", with_settings(recipe, section, **settings)).key(store) != key
    assert run.key(prepare(data_args.model_copy(update={"seed": 3}))) != key


def test_a_setting_added_later_leaves_names_as_they_are(recipe):
    """Defaults are no part of a run's name, so a new setting at its default does not train everything again."""
    assert set(recipe.computing) <= {f"{section}.{name}" for section, values in recipe for name in values.model_dump()}
    assert "train.reinit_embeddings" not in recipe.computing
    assert recipe.computing["train.steps"] == 20


def test_one_failure_loses_one_run(recipe, store, tmp_path):
    bad = Run("tst", changed(recipe, "train", lr=1e30, grad_clip=0))
    good = ordinary(recipe, 20)
    failed, finished = trained([bad, good], store, tmp_path, 1)
    assert failed.result is None
    assert "lower train.lr" in failed.failure
    assert finished.result is not None


def test_a_process_that_dies_is_noticed(recipe, store, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_train", _die)
    records = []
    (outcome,) = trained([Run("tst", recipe)], store, tmp_path, 1, lambda run, record: records.append(record))
    assert outcome.result is None
    assert [record["kind"] for record in records] == ["failure"]  # and so the user is told
    assert "exit code 9" in outcome.failure


def _die(*arguments):
    raise SystemExit(9)


class TwoRanks(Local):
    """Gives each run two GPUs, which need not be there where it is trained on a CPU."""

    def __init__(self):
        super().__init__(devices=["0", "1"])

    def room(self, count, jobs=0, on_gpu=False):
        return 1, Resources(cores=2, gpus=2)


def test_a_run_of_several_gpus_is_trained_by_ranks_that_save_and_go_on_together(recipe, store, tmp_path):
    run, steps = Run("tst", recipe), []

    def listener(run, record):
        if record["kind"] == "training":
            steps.append(record["step"])
            if steps == list(range(1, 11)):
                raise KeyboardInterrupt

    with TwoRanks() as engine:
        with pytest.raises(KeyboardInterrupt):
            execute([run], store, tmp_path, engine, listener=listener)
        (outcome,) = execute([run], store, tmp_path, engine, listener=listener)
    assert outcome.failure is None
    assert outcome.result["ranks"] == 2
    assert steps[10] > 10, "they began anew"
    assert steps[-1] == 20


def test_a_run_that_is_told_to_stop_ends_as_shells_say_it(recipe, store, tmp_path, monkeypatch):
    def stopped(*arguments, **settings):
        raise StoppedError(signal.SIGTERM, 3)

    monkeypatch.setattr(runs, "train", stopped)
    with pytest.raises(SystemExit) as ended:
        runs._train(pytest.fail, recipe, store.path, tmp_path / "run", None, Resources())
    assert ended.value.code == 128 + signal.SIGTERM


def test_all_runs_have_one_precision(recipe, monkeypatch):
    """Also where measuring twice would choose twice."""
    choices = iter(["bfloat16", "float32"])
    monkeypatch.setattr(runs, "chosen_precision", lambda recipe, _: changed(recipe, "train", precision=next(choices)))
    chosen = settled(changed(recipe, "train", precision="auto"), Local())
    assert {run.recipe.train.precision for run in plan_runs(Design(chosen, (1, 2)), {})} == {"bfloat16"}


class AtOnce(Engine):
    """Does each job when it is heard of, in this process, as fast as it can; nothing is trained."""

    def __init__(self, at_a_time):
        self.at_a_time, self.waiting, self.most = at_a_time, deque(), 0

    def __exit__(self, *error):
        pass

    def room(self, count, jobs=0, on_gpu=False):
        return min(self.at_a_time, count), Resources()

    def call(self, work, *arguments, on_gpu=False):
        return work(*arguments)

    def submit(self, key, job):
        self.waiting += [Event(key, "record", {"kind": "warning", "step": step}) for step in range(3)]
        self.waiting.append(Event(key, "done", {"val_loss": 1.0}))
        self.most = max(self.most, sum(event.kind == "done" for event in self.waiting))

    def heard(self):
        return self.waiting.popleft()

    def cancel(self, *keys):
        assert not keys


def test_many_runs_cost_as_little_each_as_few(recipe, store, tmp_path):
    """Twice as many take no more than thrice as long: what is done for a run does not grow with their number."""

    def seconds(count):
        planned = [ordinary(recipe, 20 + count % 3, seed=seed) for seed in range(count)]
        engine, records = AtOnce(64), []
        started = time.process_time()
        outcomes = execute(planned, store, tmp_path, engine, listener=lambda run, record: records.append(record))
        took = time.process_time() - started
        assert [outcome.run for outcome in outcomes] == planned
        assert len(records) == 4 * count
        assert engine.most == 64
        return took

    seconds(100)
    assert seconds(400) < 3 * max(seconds(200), 0.05)


def test_links_lead_to_the_runs(family, tmp_path):
    _, outcomes, _, _ = family
    link(outcomes, tmp_path / "named")
    link(outcomes, tmp_path / "named")
    assert read_json(tmp_path / "named/ordinary-30-seed1/result.json") == outcomes[0].result
    (tmp_path / "taken/tst-20-seed1").mkdir(parents=True)
    with pytest.raises(UserError, match="in the way"):
        link(outcomes, tmp_path / "taken")
    link([Outcome(Run("tst", outcomes[1].run.recipe), tmp_path / "never", None)], tmp_path / "empty")
    assert not any((tmp_path / "empty").iterdir())


def test_a_run_that_somebody_else_trains_is_waited_for(recipe, store, tmp_path):
    with ThreadPoolExecutor(1) as another:
        with one_at_a_time(tmp_path / "run"):
            waiting = another.submit(runs._trained, recipe, store, tmp_path / "run", None, lambda record: None)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            assert not (tmp_path / "run").exists()
        assert waiting.result()["steps"] == recipe.train.steps


def test_a_bucket_is_no_folder_for_runs():
    with pytest.raises(UserError, match="s3:/bucket is no folder"):
        named_directory(Path("s3://bucket"), "mine")
    assert named_directory(Path("runs"), "mine") == Path("runs/mine")
