import json
import signal
from collections import defaultdict
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from superpose.compare import experiment
from superpose.compare.experiment import Outcome, Run, execute, plan_runs
from superpose.compare.report import Comparison, describe
from superpose.core import Schedule
from superpose.errors import UserError
from superpose.train.config import Recipe
from superpose.train.stopping import StoppedError
from tests.train.test_loop import changed


@pytest.fixture(scope="module")
def compared(recipe, store, tmp_path_factory):
    directory = tmp_path_factory.mktemp("compared")
    records = defaultdict(list)
    outcomes = execute(
        plan_runs(recipe, [1, 2]), store, directory, 2, lambda run, record: records[run.name].append(record)
    )
    comparison = Comparison(recipe, outcomes)
    comparison.write(directory, store)
    return directory, comparison, records


def test_arms_differ_in_superposition_alone(recipe):
    ordinary, tst, *_ = plan_runs(recipe, [5, 6])
    assert ordinary.recipe.model_dump(exclude={"superposition"}) == tst.recipe.model_dump(exclude={"superposition"})
    assert ordinary.recipe.schedule == Schedule(20)
    assert ordinary.recipe.train.seed == tst.recipe.train.seed == 5


def test_arms_have_one_precision(recipe, monkeypatch):
    """Also where measuring twice would choose twice."""
    choices = iter(["bfloat16", "float32"])
    monkeypatch.setattr(
        experiment, "chosen_precision", lambda recipe, _: changed(recipe, "train", precision=next(choices))
    )
    automatic = changed(recipe, "train", precision="auto")
    assert {run.recipe.train.precision for run in plan_runs(automatic, [1, 2])} == {"bfloat16"}


@pytest.mark.error(n=12)
def test_flops_are_equal_and_raw_tokens_are_not(compared):
    _, comparison, _ = compared
    ordinary, tst = comparison.results["ordinary"][0], comparison.results["tst"][0]
    assert ordinary["flops"] == tst["flops"]
    assert ordinary["latents"] == tst["latents"]
    assert tst["raw_tokens"] == 2.2 * ordinary["raw_tokens"]


def test_every_run_reports_and_leaves_a_model(compared):
    directory, _, records = compared
    for name in ("ordinary-seed1", "tst-seed1", "ordinary-seed2", "tst-seed2"):
        assert records[name][-1]["kind"] == "result"
        assert AutoModelForCausalLM.from_pretrained(directory / name / "model").config.model_type == "llama"


def test_what_is_written(compared):
    directory, comparison, _ = compared
    saved = json.loads((directory / "comparison.json").read_text())
    assert Recipe.model_validate(saved["recipe"]) == comparison.recipe
    assert saved["difference"]["val_loss"]["mean"] == comparison.difference("val_loss").mean
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")
    summary = (directory / "summary.md").read_text()
    assert "| raw tokens read | 1,280 | 2,816 | 2.20 x |" in summary
    assert "equal" in summary
    assert "95 % interval" in summary


def test_the_same_comparison_again_trains_nothing(compared, recipe, store):
    directory, comparison, _ = compared
    records = []
    outcomes = execute(plan_runs(recipe, [1, 2]), store, directory, 2, lambda run, record: records.append(record))
    assert {record["kind"] for record in records} == {"result"}
    assert Comparison(recipe, outcomes).results == comparison.results


def test_one_failure_loses_one_run(recipe, store, tmp_path):
    bad = Run("tst", 1, changed(recipe, "train", lr=1e30, grad_clip=0))
    good = Run("ordinary", 1, recipe.ordinary())
    failed, finished = execute([bad, good], store, tmp_path, 1)
    assert failed.result is None
    assert "lower train.lr" in failed.failure
    assert finished.result is not None


def test_a_process_that_dies_is_noticed(recipe, store, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "_train", _die)
    records = []
    (outcome,) = execute([Run("tst", 1, recipe)], store, tmp_path, 1, lambda run, record: records.append(record))
    assert outcome.result is None
    assert [record["kind"] for record in records] == ["failure"]  # and so the user is told
    assert "exit code 9" in outcome.failure


def _die(*arguments):
    raise SystemExit(9)


def made_up(recipe, losses):
    """A comparison with given validation losses, pairs of (ordinary, tst)."""
    outcomes = []
    for seed, pair in enumerate(losses):
        for arm, loss in zip(("ordinary", "tst"), pair, strict=True):
            result = {"val_loss": loss, "val_bits_per_byte": loss}
            outcomes.append(Outcome(Run(arm, seed, recipe), result))
    return Comparison(recipe, outcomes)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([(3.0, 2.9)], ["TST won", "0.1000 nats", "lower", "anecdote"]),
        ([(3.0, 3.1)], ["TST lost", "higher", "anecdote"]),
        ([(3.0, 2.9), (3.1, 3.01), (3.2, 3.1)], ["TST won", "95 % interval"]),
        ([(3.0, 3.1), (3.1, 3.19), (3.2, 3.3)], ["TST lost", "95 % interval"]),
        ([(3.0, 2.9), (3.1, 3.3), (3.2, 3.1)], ["Undecided", "includes 0", "lower at 2 of 3 seeds"]),
    ],
)
def test_the_verdict_says_which_way_it_went(recipe, losses, words):
    verdict = made_up(recipe, losses).verdict()
    for word in words:
        assert word in verdict


def test_a_seed_of_which_one_arm_failed_is_left_out(recipe):
    whole = made_up(recipe, [(3.0, 2.9), (3.1, 3.0)])
    outcomes = [
        Outcome(Run(arm, seed, recipe), {"val_loss": loss, "val_bits_per_byte": loss} if seed or arm == "tst" else None)
        for seed in (0, 1)
        for arm, loss in (("ordinary", 3.1), ("tst", 3.0))
    ]
    assert Comparison(recipe, outcomes).seeds == [1]
    assert whole.seeds == [0, 1]


def test_nothing_to_compare_is_refused(recipe):
    with pytest.raises(UserError, match="only one phase"):
        plan_runs(recipe.ordinary(), [1])
    with pytest.raises(UserError, match="ends in superposition"):
        plan_runs(changed(recipe, "superposition", bag_size=[4, 2], ratio=[0.5, 0.5]), [1])
    with pytest.raises(UserError, match="twice"):
        plan_runs(recipe, [1, 1])


def test_schedules_in_the_papers_letters():
    assert describe(Schedule(1000, 4, 0.3)) == "s 4, r 0.3"
    assert describe(Schedule(1000, (8, 4), (0.1, 0.2))) == "s 8, r 0.1; s 4, r 0.2"
    assert describe(Schedule(1000, 4, 0.3, "output")) == "s 4, r 0.3, output only"


def test_a_run_that_was_asked_to_stop_has_not_failed(recipe, store, tmp_path, monkeypatch):
    def stopped(*arguments, **settings):
        raise StoppedError(signal.SIGTERM, 3)

    monkeypatch.setattr(experiment, "train", stopped)
    records = SimpleNamespace(put=lambda record: pytest.fail(f"said {record}"))
    experiment._train(0, Run("tst", 1, recipe), store.path, tmp_path / "run", 1, records)
