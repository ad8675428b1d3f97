import multiprocessing
import os
import signal
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from superpose.data.config import prepare
from superpose.errors import UserError
from superpose.files import one_at_a_time, read_json
from superpose.runs import pool as runs
from superpose.runs.pool import Outcome, Run, execute, link
from superpose.train.config import with_settings
from superpose.train.loop import train
from superpose.train.records import read_metrics
from superpose.train.running import StoppedError
from tests.train.test_loop import changed, weights


def ordinary(recipe, steps, **settings):
    return Run("ordinary", with_settings(recipe.ordinary(), "train", steps=steps, **settings))


@pytest.fixture(scope="module")
def family(recipe, store, tmp_path_factory):
    """Ordinary runs of 20, 30 and 45 steps, planned in another order, and a TST run."""
    pool = tmp_path_factory.mktemp("pool")
    planned = [ordinary(recipe, 30), Run("tst", recipe), ordinary(recipe, 45), ordinary(recipe, 20)]
    records = defaultdict(list)
    outcomes = execute(planned, store, pool, 2, lambda run, record: records[run.name].append(record))
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
    again = execute(planned, store, pool, 2, lambda run, record: records.append(record))
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
    failed, finished = execute([bad, good], store, tmp_path, 1)
    assert failed.result is None
    assert "lower train.lr" in failed.failure
    assert finished.result is not None


def test_a_process_that_dies_is_noticed(recipe, store, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_train", _die)
    records = []
    (outcome,) = execute([Run("tst", recipe)], store, tmp_path, 1, lambda run, record: records.append(record))
    assert outcome.result is None
    assert [record["kind"] for record in records] == ["failure"]  # and so the user is told
    assert "exit code 9" in outcome.failure


def _die(*arguments):
    raise SystemExit(9)


def test_a_run_that_was_asked_to_stop_has_not_failed(recipe, store, tmp_path, monkeypatch):
    def stopped(*arguments, **settings):
        raise StoppedError(signal.SIGTERM, 3)

    monkeypatch.setattr(runs, "train", stopped)
    monkeypatch.setattr(runs, "_stop_with_parent", lambda: None)
    records = SimpleNamespace(put=lambda record: pytest.fail(f"said {record}"))
    runs._train("key", recipe, store.path, tmp_path / "run", None, 1, records)


def test_runs_stop_with_the_process_that_started_them():
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    parent = context.Process(target=_start_a_child, args=(told,))
    parent.start()
    child = told.get(timeout=60)
    parent.kill()
    parent.join()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if "Z" in read_state(child):
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent by 10 s")


def read_state(process):
    with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0]


def _start_a_child(told):
    child = runs._context(()).Process(target=_wait, args=(told,))
    child.start()
    child.join()


def _wait(told):
    import threading

    threading.Thread(target=runs._stop_with_parent, daemon=True).start()
    told.put(os.getpid())
    time.sleep(120)


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
